"""Errors in the shape that a path's clients read, also where code answers in the place of an app.

HAProxy does the same by itself in `moyin/stack/haproxy.lua`.
"""

from __future__ import annotations

from deployments.models.errors import render_error as models_error
from moyin.access.gatekeeper import ErrorBody, problem_details
from moyin.comfy_api.protocol.errors import render_error as comfyui_error
from moyin.comfy_api.protocol.paths import is_comfyui
from moyin.comfy_api.protocol_v2.errors import render_error as comfyui_v2_error
from moyin.errors import MoyinError
from moyin.http.problems import error_event
from moyin.text.protocol.ollama.errors import render_error as ollama_error
from moyin.text.protocol.ollama.errors import render_error_event as render_ollama_error_event

__all__ = ["app_of", "render_error", "render_stream_error"]

# Prefixes that HAProxy hands to apps of their own; the gateway has all other paths.
_APPS = {"v1": models_error, "accounts": problem_details}
# Ollama's own paths, which the shipped route table hands to the models app. A request that the
# gateway refuses gets the error that Ollama would send.
_OLLAMA = frozenset(
    f"/api/{name}" for name in ("chat", "generate", "tags", "show", "ps", "embed", "version")
)
# Not all below /api/v2: some routes there belong to ComfyUI's first API.
_COMFYUI_V2 = ("/api/v2/jobs", "/api/v2/assets")


def app_of(path: str) -> str | None:
    """Return the first segment of ``path`` if an app other than the gateway serves it."""
    first = path[1:].partition("/")[0]
    return first if first in _APPS else None


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render ``error`` as the app that serves ``path`` would."""
    app = app_of(path)
    render = _gateway_error if app is None else _APPS[app]
    return render(error, request_id, path)


def render_stream_error(
    error: MoyinError, request_id: str, path: str, media_type: str
) -> bytes | None:
    """Render ``error`` as the last event of a stream; None where the media type has no events."""
    if path in _OLLAMA:
        return (
            render_ollama_error_event(error, request_id)
            if media_type == "application/x-ndjson"
            else None
        )
    return error_event(error, request_id, path, media_type)


def _gateway_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    if path in _OLLAMA:
        return ollama_error(error, request_id, path)
    if path.startswith(_COMFYUI_V2):
        return comfyui_v2_error(error, request_id, path)
    if is_comfyui(path):
        return comfyui_error(error, request_id, path)
    return problem_details(error, request_id, path)
