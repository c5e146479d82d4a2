"""Renders errors in the format that the clients of a path expect.

The gateway and the replicas' middleware use this module for errors that no app renders. HAProxy
renders its own errors in the same way, in `moyin/stack/haproxy.lua`.
"""

from __future__ import annotations

from deployments.models.errors import render_error as render_models_error
from moyin.access.gatekeeper import ErrorBody, problem_details
from moyin.comfy_api.protocol.errors import render_error as render_comfyui_error
from moyin.comfy_api.protocol.paths import is_comfyui
from moyin.comfy_api.protocol_v2.errors import render_error as render_comfyui_v2_error
from moyin.errors import MoyinError
from moyin.http.problems import error_event
from moyin.text.protocol.ollama.errors import error_event as ollama_error_event
from moyin.text.protocol.ollama.errors import render_error as render_ollama_error

__all__ = ["find_app_prefix", "render_error", "render_stream_error"]

# Error renderers of the apps that HAProxy routes to by prefix; all other paths are the gateway's.
_RENDERERS = {"v1": render_models_error, "accounts": problem_details}
# Ollama's own paths, which the shipped route table forwards to the models app. A request that the
# gateway refuses gets the error that Ollama would send.
_OLLAMA_PATHS = frozenset(
    f"/api/{name}" for name in ("chat", "generate", "tags", "show", "ps", "embed", "version")
)
# Other paths below /api/v2 belong to ComfyUI's first API.
_COMFYUI_V2_PATHS = ("/api/v2/jobs", "/api/v2/assets")


def find_app_prefix(path: str) -> str | None:
    """Return the first segment of ``path``, or None if the gateway serves the path."""
    prefix = path[1:].partition("/")[0]
    return prefix if prefix in _RENDERERS else None


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render ``error`` in the format of the app that serves ``path``."""
    prefix = find_app_prefix(path)
    render = _render_gateway_error if prefix is None else _RENDERERS[prefix]
    return render(error, request_id, path)


def render_stream_error(
    error: MoyinError, request_id: str, path: str, media_type: str
) -> bytes | None:
    """Render ``error`` as the last event of a stream, or return None if ``media_type`` has no events."""
    if path in _OLLAMA_PATHS:
        return (
            ollama_error_event(error, request_id) if media_type == "application/x-ndjson" else None
        )
    return error_event(error, request_id, path, media_type)


def _render_gateway_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    if path in _OLLAMA_PATHS:
        return render_ollama_error(error, request_id, path)
    if path.startswith(_COMFYUI_V2_PATHS):
        return render_comfyui_v2_error(error, request_id, path)
    if is_comfyui(path):
        return render_comfyui_error(error, request_id, path)
    return problem_details(error, request_id, path)
