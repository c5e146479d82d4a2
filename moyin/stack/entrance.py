"""Checks whether a stack whose processes all run can be reached, which `moyin status` reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moyin.stack.options import Options
from moyin.stack.ray import build_dashboard_url, read_api_token
from moyin.stack.service import send_request
from moyin.stack.state import PartStatus, Phase, StackState

_APPS = "apps"
_ANSWER_SECONDS = 3.0


def check_entrance(
    options: Options,
    state: StackState,
    send: Callable[..., tuple[int, bytes]] = send_request,
) -> StackState:
    """Return the state, degraded with a reason if the apps of a ready stack cannot be reached.

    Blocks for at most six seconds. The supervisor sees neither HAProxy nor Serve's controller, which
    Ray starts and replaces. Before the stack is ready, no answer is expected, and the state is kept.
    """
    if state.phase is not Phase.READY or _APPS not in state.parts:
        return state
    problems = [
        problem
        for problem in (_check_haproxy(options, send), _check_controller(options, send))
        if problem
    ]
    if not problems:
        return state
    apps = replace(state.parts[_APPS], status=PartStatus.FAILED, detail="; ".join(problems))
    return replace(state, phase=Phase.DEGRADED, parts={**state.parts, _APPS: apps})


def _check_haproxy(options: Options, send: Callable[..., tuple[int, bytes]]) -> str:
    """Return why the entrance, HAProxy with a gateway behind it, cannot be used, or ""."""
    url = f"{options.settings.door}/healthz"
    status, body = send("GET", url, timeout_seconds=_ANSWER_SECONDS)
    if not status:
        return f"HAProxy does not answer at {url}: {body.decode(errors='replace')}"
    if status >= 500:
        return f"no app answers behind HAProxy: {url} has status {status}"
    return ""


def _check_controller(options: Options, send: Callable[..., tuple[int, bytes]]) -> str:
    """Return why Serve, which starts and replaces replicas, does not work, or ""."""
    status, body = send(
        "GET",
        f"{build_dashboard_url(options)}/api/serve/applications/",
        bearer_token=read_api_token(options),
        timeout_seconds=_ANSWER_SECONDS,
    )
    if status != 200:
        reason = f"status {status}" if status else body.decode(errors="replace")
        return f"Serve's controller does not answer Ray's dashboard: {reason}"
    return "" if _has_apps(body) else "Serve has no running controller or no apps"


def _has_apps(body: bytes) -> bool:
    try:
        answer: Any = json.loads(body)
        return bool(answer["applications"])
    except (ValueError, LookupError, TypeError):
        return False
