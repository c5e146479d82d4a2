"""Errors of the gateway, in the shape that the path's clients read."""

from __future__ import annotations

from moyin.access.gatekeeper import ErrorBody, problem_details
from moyin.comfy_api.protocol.errors import render_error as comfyui_error
from moyin.comfy_api.protocol.paths import is_comfyui
from moyin.comfy_api.protocol_v2.errors import render_error as comfyui_v2_error
from moyin.errors import MoyinError
from moyin.http.problems import error_event
from moyin.text.protocol.ollama.errors import error_line
from moyin.text.protocol.ollama.errors import render_error as ollama_error

__all__ = ["render_error", "render_stream_error"]

# Ollama's own paths, which the shipped route table hands to the models app. What is refused before
# it gets there is told as Ollama would.
_OLLAMA = frozenset(
    f"/api/{name}" for name in ("chat", "generate", "tags", "show", "ps", "embed", "version")
)
# Not all below /api/v2: some routes there are of ComfyUI's first API.
_COMFYUI_V2 = ("/api/v2/jobs", "/api/v2/assets")


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    if path in _OLLAMA:
        return ollama_error(error, request_id, path)
    if path.startswith(_COMFYUI_V2):
        return comfyui_v2_error(error, request_id, path)
    if is_comfyui(path):
        return comfyui_error(error, request_id, path)
    return problem_details(error, request_id, path)


def render_stream_error(
    error: MoyinError, request_id: str, path: str, media_type: str
) -> bytes | None:
    if path in _OLLAMA:
        return error_line(error, request_id) if media_type == "application/x-ndjson" else None
    return error_event(error, request_id, path, media_type)
