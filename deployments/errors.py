"""Errors in the shape that a path's clients read, for code that answers in the place of any app.

HAProxy does the same by itself in `moyin/stack/haproxy.lua`.
"""

from __future__ import annotations

from deployments.gateway.errors import render_error as gateway_error
from deployments.models.errors import render_error as models_error
from moyin.access.gatekeeper import ErrorBody, problem_details
from moyin.errors import MoyinError

__all__ = ["app_of", "render_error"]

# Prefixes that HAProxy hands to apps of their own; the gateway has all other paths.
_APPS = {"v1": models_error, "accounts": problem_details}


def app_of(path: str) -> str | None:
    """Return the first segment of ``path`` if an app other than the gateway serves it."""
    first = path[1:].partition("/")[0]
    return first if first in _APPS else None


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render ``error`` as the app that serves ``path`` would."""
    app = app_of(path)
    render = gateway_error if app is None else _APPS[app]
    return render(error, request_id, path)
