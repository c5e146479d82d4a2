"""Deploys serve_config.yaml to Serve through Ray's REST API.

The command `serve deploy` would do the same, but takes a second to start.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from moyin.errors import StackError
from moyin.stack.layout import explain_os_errors, replace_file
from moyin.stack.options import Options
from moyin.stack.ports import Ports
from moyin.stack.ray import build_dashboard_url, read_api_token
from moyin.stack.service import send_request

# Each poll costs Serve's controller and Ray's dashboard 40 ms of processor time together.
_APPS_POLL_SECONDS = 1.0
_GATEWAY_POLL_SECONDS = 0.2
_SUBMIT_RETRIES = 3
_SUBMIT_PAUSE_SECONDS = 1.0
_WITHDRAW_SECONDS = 8.0
_VALIDATE_SECONDS = 120.0
# The beginning of the last line of pydantic's error messages.
_PYDANTIC_ADVICE = "For further information visit "


def load_serve_config(path: Path, ports: Ports) -> dict[str, Any]:
    """Load the app configuration with the ports of this stack, or raise `StackError`."""
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise StackError(
            f"the app configuration {path} does not exist: name another one with --config"
        ) from None
    except (OSError, yaml.YAMLError) as error:
        raise StackError(
            f"the app configuration {path} cannot be read: {error}: correct it, or name another one "
            "with --config"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
        raise StackError(f"{path}: applications must be a list of apps, each with a name")
    for index, app in enumerate(config["applications"]):
        if not isinstance(app, dict) or not isinstance(app.get("name"), str):
            raise StackError(f"{path}: applications.{index}.name must be a string")
    for option_name, port in (("http_options", ports.door), ("grpc_options", ports.grpc)):
        if not isinstance(config.get(option_name) or {}, dict):
            raise StackError(
                f"{path}: {option_name} must be a mapping, as in {option_name}: {{port: {port}}}"
            )
        if config.get(option_name) or option_name == "http_options":
            config[option_name] = {**(config.get(option_name) or {}), "port": port}
    return config


def find_isolated_pools(path: Path) -> list[str]:
    """Return the names of the render pools with ``isolation: strict``, which is the default.

    Returns an empty list if the file is not valid; `find_config_problems` reports the reason.
    """
    try:
        pools = [
            app.get("args") or {}
            for app in yaml.safe_load(path.read_text())["applications"]
            if app.get("import_path") == "deployments.render.builder:build"
        ]
        return [
            str(pool.get("pool", "default"))
            for pool in pools
            if (pool.get("comfyui") or {}).get("isolation", "strict") == "strict"
        ]
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return []


def find_renderer_shares(path: Path) -> list[tuple[str, float]]:
    """Return the pool name and the share of a GPU for each renderer that is started at first.

    Returns an empty list if the file is not valid; `find_config_problems` reports the reason.
    """
    try:
        pools = [
            app.get("args") or {}
            for app in yaml.safe_load(path.read_text())["applications"]
            if app.get("import_path") == "deployments.render.builder:build"
        ]
        return [
            (str(pool.get("pool", "default")), float(pool.get("gpus", 1)))
            for pool in pools
            for _ in range(int(pool.get("min_actors", pool.get("actors", 1))))
        ]
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError):
        return []


def find_text_backends(path: Path) -> list[dict[str, Any]]:
    """Return the settings of all apps' back ends, as ``user_config`` has them.

    Returns an empty list if the file is not valid; `find_config_problems` reports the reason.
    """
    try:
        return [
            {"name": "unnamed", **backend}
            for app in yaml.safe_load(path.read_text())["applications"]
            for deployment in app.get("deployments") or ()
            for backend in (deployment.get("user_config") or {}).get("backends") or ()
        ]
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return []


def find_config_problems(path: Path) -> list[str]:
    """Validate the app configuration and return its problems as texts that name the field.

    Serve itself ignores unknown keys and does not report a wrong ``user_config``: running replicas
    only log that they reject it. The validation imports Ray, so it runs in a child process.
    """
    try:
        process = subprocess.run(
            [sys.executable, "-m", "deployments.validate", str(path)],
            capture_output=True,
            text=True,
            timeout=_VALIDATE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # Not raised, because `up` adds the problems to the reason of another failure.
        return [f"{path} could not be validated within {_VALIDATE_SECONDS:g} seconds: try again"]
    if process.returncode == 0:
        return []
    return process.stdout.splitlines() or [_get_last_line_of_body(process.stderr.encode())]


async def deploy_apps(options: Options, on_progress: Callable[[str], None]) -> None:
    """Deploy the app configuration, and wait until all apps are running and the gateway is ready.

    The function ``on_progress`` is called with each new line of progress. Raises `StackError` with
    Serve's reason if Serve rejects the file or an app cannot start.
    """
    config = load_serve_config(options.serve_config, options.ports)
    await _submit_config(options, config, on_progress)
    layout = options.layout
    with explain_os_errors(layout.run):
        replace_file(layout.serve_config, yaml.safe_dump(config, sort_keys=False).encode())
        replace_file(layout.deployed_from, str(options.serve_config).encode())


async def redeploy_apps(options: Options, on_progress: Callable[[str], None]) -> None:
    """Deploy the last deployed configuration again, after a restart of Ray.

    Raises the same errors as `deploy_apps`.
    """
    last_config_path = options.layout.serve_config
    if not last_config_path.exists():
        await deploy_apps(options, on_progress)
        return
    await _submit_config(options, load_serve_config(last_config_path, options.ports), on_progress)


def read_last_deployed_path(options: Options) -> Path | None:
    """Return the path of the configuration that was deployed last, or None if there is none."""
    try:
        return Path(options.layout.deployed_from.read_text())
    except FileNotFoundError:
        return None


async def _submit_config(
    options: Options, config: dict[str, Any], on_progress: Callable[[str], None]
) -> None:
    request_body = json.dumps(config).encode()
    status, body = await _call_serve(options, "PUT", request_body, seconds=60)
    for _ in range(_SUBMIT_RETRIES):
        if 0 < status < 500:
            break
        # Ray's dashboard fails while Serve's controller still starts. Submitting is idempotent.
        reason = f"status {status}" if status else _get_last_line_of_body(body)
        on_progress(f"Ray's dashboard failed ({reason}); trying again")
        await asyncio.sleep(_SUBMIT_PAUSE_SECONDS)
        status, body = await _call_serve(options, "PUT", request_body, seconds=60)
    if status != 200:
        raise StackError(
            f"Serve rejected the app configuration {options.serve_config.name}: "
            f"{_get_last_line_of_body(body)}"
        )
    app_names = {app["name"] for app in config["applications"]}
    last_line = ""
    while pending_apps := await _find_pending_apps(options, app_names):
        reasons = "; ".join(dict.fromkeys(reason for reason in pending_apps.values() if reason))
        progress_line = f"waiting for {', '.join(sorted(pending_apps))}{reasons and f': {reasons}'}"
        if progress_line != last_line:
            on_progress(last_line := progress_line)
        await asyncio.sleep(_APPS_POLL_SECONDS)
    await _wait_for_gateway(options, _has_gateway(config), on_progress)
    on_progress(f"{len(app_names)} apps")


async def delete_apps(options: Options) -> None:
    """Make Serve stop its replicas, so that they write their data; wait at most 8 seconds."""
    try:
        async with asyncio.timeout(_WITHDRAW_SECONDS):
            await _call_serve(options, "DELETE", None, seconds=_WITHDRAW_SECONDS)
    except TimeoutError:
        return


async def _find_pending_apps(options: Options, app_names: set[str]) -> dict[str, str]:
    """Return the apps that do not run yet, each with Serve's last message or "".

    Raises:
        StackError: an app cannot start.
    """
    status, body = await _call_serve(options, "GET", None, seconds=10)
    if status != 200:
        return dict.fromkeys(app_names, "")
    apps: Mapping[str, Any] = json.loads(body).get("applications", {})
    for name in app_names & apps.keys():
        if apps[name]["status"] == "DEPLOY_FAILED":
            reason = _get_last_message(apps[name]) or "no reason given (see `moyin logs ray`)"
            raise StackError(f"app {name} cannot start: {reason}")
    return {
        name: _get_last_message(apps.get(name, {}))
        for name in app_names
        if apps.get(name, {}).get("status") != "RUNNING"
    }


async def _wait_for_gateway(
    options: Options, has_gateway: bool, on_progress: Callable[[str], None]
) -> None:
    """Wait until the gateway is ready; if no gateway is configured, wait until HAProxy responds.

    HAProxy responds with 503 until the gateway is ready. A 404 also ends the wait: another app
    than the gateway is at ``/``, and has no ``/readyz``.

    Args:
        has_gateway: True if an app has the route ``/``.
        on_progress: called with each new line of progress.
    """
    last_line = ""
    while True:
        progress_line = "waiting for the gateway"
        status, body = await asyncio.to_thread(
            send_request, "GET", f"{options.settings.door}/readyz"
        )
        if status in (200, 404) or (status and not has_gateway):
            return
        if failed_checks := _list_failed_checks(body):
            progress_line += f", which waits for {', '.join(failed_checks)}"
        if progress_line != last_line:
            on_progress(last_line := progress_line)
        await asyncio.sleep(_GATEWAY_POLL_SECONDS)


def _has_gateway(config: Mapping[str, Any]) -> bool:
    # Serve's default for route_prefix is the root.
    return any(app.get("route_prefix", "/") == "/" for app in config["applications"])


def _list_failed_checks(body: bytes) -> list[str]:
    """Return the names of the failed checks in a ``/readyz`` body; empty for other bodies."""
    try:
        checks = json.loads(body)["checks"]
        return sorted(name for name, result in checks.items() if result != "ok")
    except (ValueError, LookupError, TypeError, AttributeError):
        return []


async def _call_serve(
    options: Options, method: str, body: bytes | None, *, seconds: float
) -> tuple[int, bytes]:
    return await asyncio.to_thread(
        send_request,
        method,
        f"{build_dashboard_url(options)}/api/serve/applications/",
        body=body,
        bearer_token=read_api_token(options),
        timeout_seconds=seconds,
    )


def _get_last_message(app: Mapping[str, Any]) -> str:
    """Return the last line of Serve's messages about an app; after a traceback, it is the error."""
    messages = [str(app.get("message", ""))]
    messages += [str(part.get("message", "")) for part in app.get("deployments", {}).values()]
    return _get_last_line("\n".join(messages))


def _get_last_line_of_body(body: bytes) -> str:
    return _get_last_line(body.decode(errors="replace")) or "no reason given"


def _get_last_line(text: str) -> str:
    """Return the last non-empty line of a text, or the field and problem in a pydantic error.

    The value of the field is left out, because it may be a secret.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 2 and lines[-1].startswith(_PYDANTIC_ADVICE):
        field, problem = lines[-3:-1]
        return f"{field}: {problem.partition(' [type=')[0]}"[:500]
    return lines[-1][:500] if lines else ""
