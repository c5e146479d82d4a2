"""Deploying serve_config.yaml: what `serve deploy` does, without the second it takes to start."""

from __future__ import annotations

import asyncio
import json
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

__all__ = ["deploy", "deployed_from", "load_serve_config", "redeploy", "withdraw"]

_POLL_SECONDS = 0.2
_WITHDRAW_SECONDS = 8.0


def load_serve_config(path: Path, ports: Ports) -> dict[str, Any]:
    """The file's content, with the doors at this stack's ports.

    Raises:
        StackError: it is not there, not YAML, or not a mapping with ``applications``.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise StackError(f"there is no {path}: name the apps to deploy with --config") from None
    except (OSError, yaml.YAMLError) as error:
        raise StackError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
        raise StackError(f"{path} has no list of applications")
    config["http_options"] = {**(config.get("http_options") or {}), "port": ports.door}
    if config.get("grpc_options"):
        config["grpc_options"]["port"] = ports.grpc
    return config


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
    while waiting := await _waiting(options, wanted):
        told(f"waiting for {', '.join(sorted(waiting))}")
        await asyncio.sleep(_POLL_SECONDS)
    told("waiting for the door")
    await _door(options)
    told(f"{len(wanted)} apps")


async def withdraw(options: Options) -> None:
    """Ask Serve to end its replicas, so that they flush what they hold; give up after a while."""
    try:
        async with asyncio.timeout(_WITHDRAW_SECONDS):
            await _call(options, "DELETE", None, seconds=_WITHDRAW_SECONDS)
    except TimeoutError:
        return


async def _waiting(options: Options, wanted: set[str]) -> set[str]:
    """Names of apps that do not run yet."""
    status, answer = await _call(options, "GET", None, seconds=10)
    if status != 200:
        return wanted
    apps: Mapping[str, Any] = json.loads(answer).get("applications", {})
    for name in wanted & apps.keys():
        if apps[name]["status"] == "DEPLOY_FAILED":
            raise StackError(f"app {name} cannot start: {_reason(apps[name])}")
    return {name for name in wanted if apps.get(name, {}).get("status") != "RUNNING"}


async def _door(options: Options) -> None:
    while True:
        status, _ = await asyncio.to_thread(call, "GET", f"{options.settings.door}/readyz")
        # A farm of other apps has no /readyz; its door is open when it answers at all.
        if status in (200, 404):
            return
        await asyncio.sleep(_POLL_SECONDS)


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
    """The last line of the innermost message, where a traceback says what happened."""
    messages = [str(app.get("message", ""))]
    messages += [str(part.get("message", "")) for part in app.get("deployments", {}).values()]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason given (see `moyin logs ray`)"


def _short(answer: bytes) -> str:
    text = answer.decode(errors="replace").strip()
    return text.splitlines()[-1][:500] if text else "no reason given"
