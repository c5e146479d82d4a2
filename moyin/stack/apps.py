"""Deploying serve_config.yaml: what `serve deploy` does, without the second it takes to start."""

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
from moyin.stack.ray import dashboard, token
from moyin.stack.web import call

__all__ = [
    "deploy",
    "deployed_from",
    "load_serve_config",
    "problems",
    "redeploy",
    "strict_pools",
    "withdraw",
]

_POLL_SECONDS = 0.2
_WITHDRAW_SECONDS = 8.0
_VALIDATE_SECONDS = 120.0
# The last line of every error of pydantic's.
_PYDANTICS_ADVICE = "For further information visit "


def load_serve_config(path: Path, ports: Ports) -> dict[str, Any]:
    """The file's content, with the doors at this stack's ports.

    Raises:
        StackError: it is not there, not YAML, or not of the shape that Serve and we count on.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise StackError(f"there is no {path}: name the apps to deploy with --config") from None
    except (OSError, yaml.YAMLError) as error:
        raise StackError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
        raise StackError(f"{path} has no list of applications")
    for number, app in enumerate(config["applications"]):
        if not isinstance(app, dict) or not isinstance(app.get("name"), str):
            raise StackError(f"{path}: applications.{number}.name is missing")
    for key, port in (("http_options", ports.door), ("grpc_options", ports.grpc)):
        if not isinstance(config.get(key) or {}, dict):
            raise StackError(f"{path}: {key} must be a mapping")
        if config.get(key) or key == "http_options":
            config[key] = {**(config.get(key) or {}), "port": port}
    return config


def strict_pools(path: Path) -> list[str]:
    """Names of the render pools in the file whose ComfyUIs the kernel is to confine, as it is by
    default; none where the file can't be read, which `problems` tells of."""
    try:
        found = yaml.safe_load(path.read_text())["applications"]
        pools = [
            app.get("args") or {}
            for app in found
            if app.get("import_path") == "deployments.render.builder:build"
        ]
        return [
            str(pool.get("pool", "default"))
            for pool in pools
            if (pool.get("comfyui") or {}).get("isolation", "strict") == "strict"
        ]
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return []


def problems(path: Path) -> list[str]:
    """What is wrong in the file, each with its field; in a process of its own, since it takes Ray.

    Replicas that run refuse a wrong ``user_config`` in their logs only, so that nobody's typing
    error takes an app down, and Serve ignores keys that it does not know: both say "deployed".
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "deployments.validate", str(path)],
            capture_output=True,
            text=True,
            timeout=_VALIDATE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # Of `up`, which failed already, this must not take the place of its own words.
        return [f"{path} could not be checked within {_VALIDATE_SECONDS:g} seconds"]
    if done.returncode == 0:
        return []
    return done.stdout.splitlines() or [_short(done.stderr.encode())]


async def deploy(options: Options, told: Callable[[str], None]) -> None:
    """Hand the apps to Serve; return when all run and the door is ready.

    Args:
        told: gets a line about what is still awaited, at every change.

    Raises:
        StackError: Serve refuses the file, or an app can't start; with Serve's own reason.
    """
    config = load_serve_config(options.serve_config, options.ports)
    await _hand_over(options, config, told)
    layout = options.layout
    with explain_os_errors(layout.run):
        replace_file(layout.serve_config, yaml.safe_dump(config, sort_keys=False).encode())
        replace_file(layout.deployed_from, str(options.serve_config).encode())


async def redeploy(options: Options, told: Callable[[str], None]) -> None:
    """Hand over what `deploy` handed over last, by whomever: Ray has been started again.

    Raises:
        StackError: as `deploy`.
    """
    kept = options.layout.serve_config
    if not kept.exists():
        await deploy(options, told)
        return
    await _hand_over(options, load_serve_config(kept, options.ports), told)


def deployed_from(options: Options) -> Path | None:
    """The file that was deployed last over this data folder; None when none was."""
    try:
        return Path(options.layout.deployed_from.read_text())
    except FileNotFoundError:
        return None


async def _hand_over(options: Options, config: dict[str, Any], told: Callable[[str], None]) -> None:
    status, answer = await _call(options, "PUT", json.dumps(config).encode(), seconds=60)
    if status != 200:
        raise StackError(f"Serve refuses {options.serve_config.name}: {_short(answer)}")
    wanted = {app["name"] for app in config["applications"]}
    before = ""
    while waiting := await _waiting(options, wanted):
        why = "; ".join(dict.fromkeys(reason for reason in waiting.values() if reason))
        text = f"waiting for {', '.join(sorted(waiting))}{why and f': {why}'}"
        if text != before:
            told(before := text)
        await asyncio.sleep(_POLL_SECONDS)
    await _door(options, _has_gateway(config), told)
    told(f"{len(wanted)} apps")


async def withdraw(options: Options) -> None:
    """Ask Serve to end its replicas, so that they flush what they hold; give up after a while."""
    try:
        async with asyncio.timeout(_WITHDRAW_SECONDS):
            await _call(options, "DELETE", None, seconds=_WITHDRAW_SECONDS)
    except TimeoutError:
        return


async def _waiting(options: Options, wanted: set[str]) -> dict[str, str]:
    """Apps that do not run yet, by name, with what Serve says of why, which is mostly nothing."""
    status, answer = await _call(options, "GET", None, seconds=10)
    if status != 200:
        return dict.fromkeys(wanted, "")
    apps: Mapping[str, Any] = json.loads(answer).get("applications", {})
    for name in wanted & apps.keys():
        if apps[name]["status"] == "DEPLOY_FAILED":
            raise StackError(f"app {name} cannot start: {_reason(apps[name])}")
    return {
        name: _words(apps.get(name, {}))
        for name in wanted
        if apps.get(name, {}).get("status") != "RUNNING"
    }


async def _door(options: Options, has_gateway: bool, told: Callable[[str], None]) -> None:
    """Wait until the gateway answers; without an app at ``/``, until HAProxy does.

    An app of another kind at ``/`` has no /readyz: it is ready when it says so. HAProxy answers 503
    until it knows the app.
    """
    before = ""
    while True:
        text = "waiting for the door"
        status, answer = await asyncio.to_thread(call, "GET", f"{options.settings.door}/readyz")
        if status in (200, 404) or (status and not has_gateway):
            return
        if absent := _absent(answer):
            text += f", which waits for {', '.join(absent)}"
        if text != before:
            told(before := text)
        await asyncio.sleep(_POLL_SECONDS)


def _has_gateway(config: Mapping[str, Any]) -> bool:
    # Serve's default is the root.
    return any(app.get("route_prefix", "/") == "/" for app in config["applications"])


def _absent(answer: bytes) -> list[str]:
    """What the gateway can't reach, by its answer to /readyz; nothing while it is not the gateway's."""
    try:
        checks = json.loads(answer)["checks"]
        return sorted(name for name, found in checks.items() if found != "ok")
    except (ValueError, LookupError, TypeError, AttributeError):
        return []


async def _call(
    options: Options, method: str, body: bytes | None, *, seconds: float
) -> tuple[int, bytes]:
    return await asyncio.to_thread(
        call,
        method,
        f"{dashboard(options)}/api/serve/applications/",
        body=body,
        bearer=token(options),
        timeout=seconds,
    )


def _reason(app: Mapping[str, Any]) -> str:
    return _words(app) or "no reason given (see `moyin logs ray`)"


def _words(app: Mapping[str, Any]) -> str:
    """The last line of the innermost message, where a traceback says what happened."""
    messages = [str(app.get("message", ""))]
    messages += [str(part.get("message", "")) for part in app.get("deployments", {}).values()]
    return _last_words("\n".join(messages))


def _short(answer: bytes) -> str:
    return _last_words(answer.decode(errors="replace")) or "no reason given"


def _last_words(text: str) -> str:
    """The last line that says something; of pydantic's the field, and never the value there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 2 and lines[-1].startswith(_PYDANTICS_ADVICE):
        field, wrong = lines[-3:-1]
        return f"{field}: {wrong.partition(' [type=')[0]}"[:500]
    return lines[-1][:500] if lines else ""
