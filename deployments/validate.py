"""Validates a serve_config.yaml, in which Ray ignores unknown keys.

``python -m deployments.validate FILE`` prints one problem per line, and exits with status 1 if there
are any. Keys are checked against Ray's schema, each app's ``args`` against its builder's model, each
``user_config`` against its deployment's model, and names of pools against the pools in the file.
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

# The models of what each deployment's `reconfigure` takes.
_USER_CONFIGS: Mapping[str, type[BaseModel]] = {
    "Accounts": AccountsConfig,
    "Gateway": GatewayConfig,
    "Models": ModelsConfig,
}
_RENDER = "deployments.render.builder:build"
# Apps whose ``args`` name the pools that jobs may use.
_POOL_USERS = ("deployments.gateway.builder:build", "deployments.intake.builder:build")
_DEFAULT_POOL = "default"
# Replaces pydantic messages that only Python programmers understand.
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
    """Yield each problem of a parsed serve_config.yaml as one line that begins with its path.

    The path has the names of applications and deployments instead of numbers.
    """
    for problem in _problems(config):
        yield _named(config, problem)


def _named(config: Any, problem: str) -> str:
    """Replace numbers by names, as in ``applications.models.deployments.Models.user_config``."""
    path, colon, message = problem.partition(": ")
    steps, value = path.split("."), config
    for at, step in enumerate(steps):
        if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
            name = value.get("name") if isinstance(value, dict) else None
            if steps[at - 1] in ("applications", "deployments") and isinstance(name, str):
                steps[at] = name
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return ".".join(steps) + colon + message


def _problems(config: Any) -> Iterator[str]:
    # First, since a required value may stand under a mistyped key.
    yield from _unknown("", config, ServeDeploySchema)
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        yield from _validation("", error, ServeDeploySchema)
        return
    yield from _grpc((config.get("grpc_options") or {}).get("grpc_servicer_functions") or [])
    for number, app in enumerate(config["applications"]):
        yield from _app(f"applications.{number}", app)
    yield from _pools(config["applications"])


def _grpc(functions: Sequence[str]) -> Iterator[str]:
    """Check that the gRPC services can be imported: Serve would not start without them."""
    for number, path in enumerate(functions):
        module, _, name = path.rpartition(".")
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            yield (
                f"grpc_options.grpc_servicer_functions.{number}: {error}; Moyin's is "
                "moyin.jobs.grpc.moyin_pb2_grpc.add_MoyinServicer_to_server"
            )


def _pools(apps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Check names of pools: a job for a pool that does not exist would wait for ever."""
    pools = []
    for number, app in enumerate(apps):
        if app["import_path"] == _RENDER:
            pools.append(pool := (app.get("args") or {}).get("pool", _DEFAULT_POOL))
            if app.get("name") != f"render-{pool}":
                yield f"applications.{number}.name: pool {pool!r} is looked for in 'render-{pool}'"
    if not pools:
        return  # A farm for text only; its gateway names a pool all the same.
    known = f"pools: {', '.join(map(str, pools))}"
    for number, app in enumerate(apps):
        args, path = app.get("args") or {}, f"applications.{number}.args"
        named = args.get("pools", [_DEFAULT_POOL]) if app["import_path"] in _POOL_USERS else None
        # A value that is no list was reported before.
        for pool in named if isinstance(named, list) else []:
            if pool not in pools:
                yield f"{path}.pools: there is no pool {pool!r}; {known}"
        larger = args.get("larger_pool") if app["import_path"] == _RENDER else None
        if larger is not None and larger not in pools:
            yield f"{path}.larger_pool: there is no pool {larger!r}; {known}"


def _app(path: str, app: Mapping[str, Any]) -> Iterator[str]:
    if "route_prefix" not in app:
        yield f"{path}.route_prefix: is missing; write null for an app without HTTP routes"
    if app.get("runtime_env"):
        return  # Its code and packages exist on the cluster only.
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
    """Check that the deployments in the file exist, and their ``user_config``."""
    bound = {deployment.name: deployment for deployment in _bound(application)}
    for number, deployment in enumerate(app.get("deployments") or []):
        place = f"{path}.deployments.{number}"
        if deployment["name"] not in bound:
            known = ", ".join(sorted(bound))
            yield f"{place}.name: there is no deployment {deployment['name']!r}; deployments: {known}"
            continue
        if "user_config" not in deployment:
            continue
        model = _USER_CONFIGS.get(deployment["name"])
        if model is None:
            yield f"{place}.user_config: {deployment['name']} has no user_config"
            continue
        try:
            model.model_validate(deployment["user_config"])
        except ValidationError as error:
            yield from _validation(f"{place}.user_config.", error, model)


def _bound(application: Any) -> Iterator[Any]:
    """Yield the deployments of a bound application, with those among its arguments."""
    # Ray has no public access to this tree.
    bound = application._bound_deployment
    yield bound
    for argument in (*bound.init_args, *bound.init_kwargs.values()):
        if hasattr(argument, "_bound_deployment"):
            yield from _bound(argument)


def _unknown(path: str, value: Any, annotation: Any) -> Iterator[str]:
    """Report keys in ``value`` that the pydantic model in ``annotation`` does not have."""
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
    """Return the first pydantic model in an annotation such as ``list[Model] | None``."""
    return next(_models(annotation), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _validation(
    path: str, error: ValidationError, model: type[BaseModel] | None = None
) -> Iterator[str]:
    """Describe validation errors for the author of the file.

    Args:
        model: the model that the value was validated with; None if unknown.
    """
    for item in error.errors():
        loc, kind = item["loc"], item["type"]
        message = _PLAIN.get(kind, item["msg"].removeprefix("Value error, "))
        if kind == "extra_forbidden" and (closest := _closest_field(model, loc)):
            message += f"; did you mean {closest!r}?"
        place = f"{path}{'.'.join(map(str, loc))}".rstrip(".")
        yield f"{place or 'the file'}: {message}"


def _closest_field(model: type[BaseModel] | None, loc: Sequence[int | str]) -> str | None:
    """Return the field whose name is closest to the mistyped last part of ``loc``."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part)) if model is not None else None
        if field is not None:
            # The chosen member of a union is not known here.
            inner = set(_models(field.annotation))
            model = inner.pop() if len(inner) == 1 else None
    names = model.model_fields if model is not None else ()
    return next(iter(difflib.get_close_matches(str(loc[-1]), names, n=1)), None)


def main() -> int:
    """Print the problems of the file in the command line."""
    path = Path(sys.argv[1])
    try:
        lines = list(problems(yaml.safe_load(path.read_text())))
    except (OSError, yaml.YAMLError) as error:
        lines = [f"{path} cannot be read: {' '.join(str(error).split())}"]
    for line in lines:
        print(line)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
