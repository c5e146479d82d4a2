"""Is a serve_config.yaml valid? Ray alone would ignore what it does not know.

``python -m deployments.validate FILE`` prints one problem per line; exit status 1 when there are
any. Every key is held against Ray's own schema, every app's ``args`` against its builder's model,
every ``user_config`` against the model that its deployment takes, and the pools that apps name
against those that there are.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from deployments.accounts.config import AccountsConfig
from deployments.gateway.config import GatewayConfig
from deployments.models.config import ModelsConfig

__all__ = ["problems"]

# What the deployments' `reconfigure` methods take.
_USER_CONFIGS: Mapping[str, type[BaseModel]] = {
    "Accounts": AccountsConfig,
    "Gateway": GatewayConfig,
    "Models": ModelsConfig,
}
_RENDER = "deployments.render.builder:build"
# Their ``args`` say which pools jobs may name.
_DOORS = ("deployments.gateway.builder:build", "deployments.intake.builder:build")
_DEFAULT_POOL = "default"
# Where pydantic's words are those of a Python programmer.
_PLAIN: Mapping[str, str] = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "decimal_parsing": "must be a number",
    "dict_type": "must be a mapping of names to values",
    "extra_forbidden": "unknown key",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_parsing": "must be a whole number",
    "list_type": "must be a list",
    "missing": "is missing",
    "model_attributes_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of names to values",
    "string_type": "must be text",
}


def problems(config: Any) -> Iterator[str]:
    """What is wrong with a parsed serve_config.yaml: one line each, with the path to it, in which
    applications and deployments have their names."""
    for problem in _problems(config):
        yield _named(config, problem)


def _named(config: Any, problem: str) -> str:
    """Put names in the place of numbers: ``applications.models.deployments.Models.user_config``."""
    path, colon, told = problem.partition(": ")
    steps, value = path.split("."), config
    for at, step in enumerate(steps):
        if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
            name = value.get("name") if isinstance(value, dict) else None
            if steps[at - 1] in ("applications", "deployments") and isinstance(name, str):
                steps[at] = name
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return ".".join(steps) + colon + told


def _problems(config: Any) -> Iterator[str]:
    # First: what the schema misses may stand under a mistyped key.
    yield from _unknown("", config, ServeDeploySchema)
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        yield from _validation("", error, ServeDeploySchema)
        return
    for number, app in enumerate(config["applications"]):
        yield from _app(f"applications.{number}", app)
    yield from _pools(config["applications"])


def _pools(apps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A job for a pool that is not there would wait for ever."""
    pools = []
    for number, app in enumerate(apps):
        if app["import_path"] == _RENDER:
            pools.append(pool := (app.get("args") or {}).get("pool", _DEFAULT_POOL))
            if app.get("name") != f"render-{pool}":
                yield f"applications.{number}.name: pool {pool!r} is looked for in 'render-{pool}'"
    if not pools:
        return  # a farm for text; its gateway has to name some pool all the same
    there_are = f"there are: {', '.join(map(str, pools))}"
    for number, app in enumerate(apps):
        args, path = app.get("args") or {}, f"applications.{number}.args"
        named = args.get("pools", [_DEFAULT_POOL]) if app["import_path"] in _DOORS else None
        # What is no list was told of before.
        for pool in named if isinstance(named, list) else []:
            if pool not in pools:
                yield f"{path}.pools: there is no pool {pool!r}; {there_are}"
        larger = args.get("larger_pool") if app["import_path"] == _RENDER else None
        if larger is not None and larger not in pools:
            yield f"{path}.larger_pool: there is no pool {larger!r}; {there_are}"


def _app(path: str, app: Mapping[str, Any]) -> Iterator[str]:
    if "route_prefix" not in app:
        yield f"{path}.route_prefix: say it, even when it is null"
    if app.get("runtime_env"):
        return  # its code and packages are there, not here
    module_name, _, name = app["import_path"].partition(":")
    try:
        module = importlib.import_module(module_name)
        build = getattr(module, name)
    except (ImportError, AttributeError) as error:
        yield f"{path}.import_path: {error}"
        return
    try:
        # Ray's own call: it hands a plain dict to a builder whose annotation is a string.
        application = call_user_app_builder_with_args_if_necessary(build, app.get("args") or {})
    except ValidationError as error:
        yield from _validation(f"{path}.args.", error)
        return
    except (AttributeError, TypeError, ValueError) as error:
        yield f"{path}.args: {error}"
        return
    yield from _deployments(path, app, application)


def _deployments(path: str, app: Mapping[str, Any], application: Any) -> Iterator[str]:
    """Deployments that the file tunes must be there, and their ``user_config`` be of their kind."""
    bound = {deployment.name: deployment for deployment in _bound(application)}
    for number, deployment in enumerate(app.get("deployments") or []):
        place = f"{path}.deployments.{number}"
        if deployment["name"] not in bound:
            known = ", ".join(sorted(bound))
            yield f"{place}.name: there is no {deployment['name']!r}; there are: {known}"
            continue
        if "user_config" not in deployment:
            continue
        model = _USER_CONFIGS.get(deployment["name"])
        if model is None:
            yield f"{place}.user_config: {deployment['name']} takes none"
            continue
        try:
            model.model_validate(deployment["user_config"])
        except ValidationError as error:
            yield from _validation(f"{place}.user_config.", error, model)


def _bound(application: Any) -> Iterator[Any]:
    """The deployments of a bound application, with those that it was given as arguments."""
    # Ray keeps the tree in these attributes and offers no public way to it.
    bound = application._bound_deployment
    yield bound
    for argument in (*bound.init_args, *bound.init_kwargs.values()):
        if hasattr(argument, "_bound_deployment"):
            yield from _bound(argument)


def _unknown(path: str, value: Any, annotation: Any) -> Iterator[str]:
    """Keys in ``value`` that the pydantic model in ``annotation`` has no field for."""
    model = _model(annotation)
    if model is None:
        return
    for position, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
        if not isinstance(item, dict):
            continue
        here = path if position is None else f"{path}{position}."
        for key, inner in item.items():
            field = model.model_fields.get(key)
            if field is None:
                yield f"{here}{key}: unknown key"
            else:
                yield from _unknown(f"{here}{key}.", inner, field.annotation)


def _model(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model in an annotation such as ``list[Model] | None``."""
    return next(_models(annotation), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _validation(
    path: str, error: ValidationError, model: type[BaseModel] | None = None
) -> Iterator[str]:
    """What is wrong, in words for the file's author instead of a programmer.

    Args:
        model: what the value was held against; None: not known here.
    """
    for item in error.errors():
        loc, kind = item["loc"], item["type"]
        message = _PLAIN.get(kind, item["msg"].removeprefix("Value error, "))
        if kind == "extra_forbidden" and (meant := _meant(model, loc)):
            message += f"; is {meant!r} meant?"
        place = f"{path}{'.'.join(map(str, loc))}".rstrip(".")
        yield f"{place or 'the file'}: {message}"


def _meant(model: type[BaseModel] | None, loc: Sequence[int | str]) -> str | None:
    """The field that a mistyped last part of ``loc`` is closest to."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part)) if model is not None else None
        if field is not None:
            # Of a union it can't be told here which one was chosen.
            inner = set(_models(field.annotation))
            model = inner.pop() if len(inner) == 1 else None
    names = model.model_fields if model is not None else ()
    return next(iter(difflib.get_close_matches(str(loc[-1]), names, n=1)), None)


def main() -> int:
    path = Path(sys.argv[1])
    try:
        found = list(problems(yaml.safe_load(path.read_text())))
    except (OSError, yaml.YAMLError) as error:
        found = [f"{path} cannot be read: {' '.join(str(error).split())}"]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
