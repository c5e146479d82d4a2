"""Errors of the gateway, in the shape that the path's clients read."""

from __future__ import annotations

from moyin.errors import MoyinError
from moyin.gatekeeper import ErrorBody, problem_details
from moyin.protocols.comfyui.errors import render_error as comfyui_error
from moyin.protocols.comfyui.paths import is_comfyui
from moyin.protocols.ollama.errors import render_error as ollama_error

__all__ = ["render_error"]

# Ollama's own paths, which the shipped route table hands to the models app. What is refused before
# it gets there is told as Ollama would.
_OLLAMA = frozenset(
    f"/api/{name}" for name in ("chat", "generate", "tags", "show", "ps", "embed", "version")
)


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    if is_comfyui(path):
        return comfyui_error(error, request_id, path)
    render = ollama_error if path in _OLLAMA else problem_details
    return render(error, request_id, path)
