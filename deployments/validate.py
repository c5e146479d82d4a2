"""Validates serve_config.yaml more strictly than Ray, which ignores unknown keys.

``python -m deployments.validate FILE`` prints each problem on a line and exits with status 1 if the
file has problems. It compares keys with Ray's schema, each app's ``args`` with the model of its
builder, each ``user_config`` with the model of its deployment, and pool names with the pools in the
file.
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

_USER_CONFIG_MODELS: Mapping[str, type[BaseModel]] = {
    "Accounts": AccountsConfig,
    "Gateway": GatewayConfig,
    "Models": ModelsConfig,
}
_RENDER_BUILDER = "deployments.render.builder:build"
_POOL_USER_BUILDERS = ("deployments.gateway.builder:build", "deployments.intake.builder:build")
_DEFAULT_POOL = "default"
# Replaces pydantic messages that only Python programmers understand.
_PLAIN_MESSAGES: Mapping[str, str] = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("decimal_parsing", "float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(
        ("dict_type", "model_attributes_type", "model_type"), "must be a mapping of names to values"
    ),
    "extra_forbidden": "unknown key",
    "int_parsing": "must be a whole number",
    "list_type": "must be a list",
    "missing": "is missing",
    "string_type": "must be text",
}


def find_problems(config: Any) -> Iterator[str]:
    """Yield each problem of a parsed serve_config.yaml as a line that begins with the field's path.

    The path names applications and deployments, as in ``applications.models.args.pools``.
    """
    for problem in _find_numbered_problems(config):
        yield _replace_numbers(config, problem)


def _replace_numbers(config: Any, problem: str) -> str:
    """Return the line of a problem with names instead of list indexes in its path.

    Only the indexes of applications and deployments are replaced.
    """
    path, colon, message = problem.partition(": ")
    keys, value = path.split("."), config
    for position, key in enumerate(keys):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
            name = value.get("name") if isinstance(value, dict) else None
            if keys[position - 1] in ("applications", "deployments") and isinstance(name, str):
                keys[position] = name
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return ".".join(keys) + colon + message


def _find_numbered_problems(config: Any) -> Iterator[str]:
    # Unknown keys are reported first, because a mistyped key may contain a required value.
    yield from _find_unknown_keys("", config, ServeDeploySchema)
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        yield from _describe_errors("", error, ServeDeploySchema)
        return
    yield from _check_grpc((config.get("grpc_options") or {}).get("grpc_servicer_functions") or [])
    for number, app in enumerate(config["applications"]):
        yield from _check_app(f"applications.{number}", app)
    yield from _check_pools(config["applications"])


def _check_grpc(function_paths: Sequence[str]) -> Iterator[str]:
    """Yield a problem for each gRPC function that cannot be imported; Serve could not start."""
    for number, path in enumerate(function_paths):
        module, _, name = path.rpartition(".")
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            yield (
                f"grpc_options.grpc_servicer_functions.{number}: {error}; Moyin's functions are "
                "moyin.jobs.grpc.moyin_pb2_grpc.add_MoyinServicer_to_server and "
                "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server"
            )


def _check_pools(apps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the problems of the names of render pools.

    The app of a pool must be named after the pool. The pools that other apps name must exist,
    because a job for a pool that does not exist would wait for ever.
    """
    pools = []
    for number, app in enumerate(apps):
        if app["import_path"] == _RENDER_BUILDER:
            pools.append(pool := (app.get("args") or {}).get("pool", _DEFAULT_POOL))
            if app.get("name") != f"render-{pool}":
                yield f"applications.{number}.name: must be 'render-{pool}' for the pool {pool!r}"
    if not pools:
        return  # A stack for text only has no pools, although its gateway names the default pool.
    pool_list = f"the pools are {', '.join(map(str, pools))}"
    for number, app in enumerate(apps):
        args, path = app.get("args") or {}, f"applications.{number}.args"
        named_pools = (
            args.get("pools", [_DEFAULT_POOL])
            if app["import_path"] in _POOL_USER_BUILDERS
            else None
        )
        # `_check_app` reports a value that is not a list.
        for pool in named_pools if isinstance(named_pools, list) else []:
            if pool not in pools:
                yield f"{path}.pools: there is no pool {pool!r}; {pool_list}"
        larger_pool = args.get("larger_pool") if app["import_path"] == _RENDER_BUILDER else None
        if larger_pool is not None and larger_pool not in pools:
            yield f"{path}.larger_pool: there is no pool {larger_pool!r}; {pool_list}"


def _check_app(path: str, app: Mapping[str, Any]) -> Iterator[str]:
    if "route_prefix" not in app:
        yield f"{path}.route_prefix: is missing; write null for an app without HTTP routes"
    if app.get("runtime_env"):
        return  # The app's code and packages exist only on the cluster.
    module_name, _, name = app["import_path"].partition(":")
    try:
        module = importlib.import_module(module_name)
        build = getattr(module, name)
    except (ImportError, AttributeError) as error:
        yield f"{path}.import_path: {error}"
        return
    try:
        # Ray's own function is used: it passes a plain dict to a builder whose annotation is a
        # string.
        application = call_user_app_builder_with_args_if_necessary(build, app.get("args") or {})
    except ValidationError as error:
        yield from _describe_errors(f"{path}.args.", error)
        return
    except (AttributeError, TypeError, ValueError) as error:
        yield f"{path}.args: {error}"
        return
    yield from _check_deployments(path, app, application)


def _check_deployments(path: str, app: Mapping[str, Any], application: Any) -> Iterator[str]:
    """Yield the problems of an app's deployments: unknown names and invalid ``user_config``.

    Args:
        path: the path of the app in the file, for the problems.
        app: the app's part of the file.
        application: the Serve application that the app's builder returned.
    """
    bound_names = {deployment.name for deployment in _iterate_bound_deployments(application)}
    for number, deployment in enumerate(app.get("deployments") or []):
        field_path = f"{path}.deployments.{number}"
        if deployment["name"] not in bound_names:
            deployment_names = ", ".join(sorted(bound_names))
            yield (
                f"{field_path}.name: there is no deployment {deployment['name']!r}; the app's deployments "
                f"are {deployment_names}"
            )
            continue
        if "user_config" not in deployment:
            continue
        model = _USER_CONFIG_MODELS.get(deployment["name"])
        if model is None:
            yield f"{field_path}.user_config: {deployment['name']} has no user_config; remove it"
            continue
        try:
            model.model_validate(deployment["user_config"])
        except ValidationError as error:
            yield from _describe_errors(f"{field_path}.user_config.", error, model)


def _iterate_bound_deployments(application: Any) -> Iterator[Any]:
    """Yield the deployment that ``application`` binds and the deployments in its arguments."""
    bound_deployment = application._bound_deployment
    yield bound_deployment
    for argument in (*bound_deployment.init_args, *bound_deployment.init_kwargs.values()):
        if hasattr(argument, "_bound_deployment"):
            yield from _iterate_bound_deployments(argument)


def _find_unknown_keys(path: str, value: Any, annotation: Any) -> Iterator[str]:
    """Yield a problem for each key in ``value`` that the pydantic model does not have.

    Args:
        path: the path of ``value`` in the file, with a dot at its end.
        annotation: the annotation of ``value``, which contains the model.
    """
    model = next(_find_models(annotation), None)
    if model is None:
        return
    for position, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
        if not isinstance(item, dict):
            continue
        item_path = path if position is None else f"{path}{position}."
        for key, inner_value in item.items():
            field = model.model_fields.get(key)
            if field is None:
                yield f"{item_path}{key}: unknown key"
            else:
                yield from _find_unknown_keys(f"{item_path}{key}.", inner_value, field.annotation)


def _find_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models in an annotation such as ``list[Model] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _find_models(argument)


def _describe_errors(
    path: str, error: ValidationError, model: type[BaseModel] | None = None
) -> Iterator[str]:
    """Describe pydantic's validation errors without terms of Python.

    Args:
        path: path of the validated value in the file, with a dot at its end.
        model: model of the value, used to suggest corrections of mistyped keys; None if unknown.
    """
    for error_details in error.errors():
        location, error_type = error_details["loc"], error_details["type"]
        message = _PLAIN_MESSAGES.get(
            error_type, error_details["msg"].removeprefix("Value error, ")
        )
        if error_type == "extra_forbidden" and (
            closest_name := _find_closest_field(model, location)
        ):
            message += f"; did you mean {closest_name!r}?"
        field_path = f"{path}{'.'.join(map(str, location))}".rstrip(".")
        yield f"{field_path or 'the file'}: {message}"


def _find_closest_field(model: type[BaseModel] | None, location: Sequence[int | str]) -> str | None:
    """Return the name of the field that is most similar to the mistyped last key of a location.

    Returns None if no field is similar.
    """
    for key in location[:-1]:
        field = model.model_fields.get(str(key)) if model is not None else None
        if field is not None:
            # If the field is a union of models, the intended model is unknown.
            inner_models = set(_find_models(field.annotation))
            model = inner_models.pop() if len(inner_models) == 1 else None
    names = model.model_fields if model is not None else ()
    return next(iter(difflib.get_close_matches(str(location[-1]), names, n=1)), None)


def main() -> int:
    """Print the problems of the file that the command line names; return the exit status."""
    path = Path(sys.argv[1])
    try:
        lines = list(find_problems(yaml.safe_load(path.read_text())))
    except (OSError, yaml.YAMLError) as error:
        lines = [f"{path} cannot be read: {' '.join(str(error).split())}"]
    for line in lines:
        print(line)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
