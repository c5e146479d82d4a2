"""Renders errors of the models app in the protocol of the request's path."""

from __future__ import annotations

from moyin.access.gatekeeper import ErrorBody, ErrorRenderer, render_problem_details
from moyin.access.gatekeeper.asgi import Scope
from moyin.errors import MoyinError
from moyin.text.protocol.anthropic.errors import render_error as anthropic_error
from moyin.text.protocol.ollama.errors import render_error as ollama_error
from moyin.text.protocol.openai.errors import render_error as openai_error

__all__ = ["render_error", "renderer_of", "speaks_anthropic"]

_PREFIX = "/v1"
_MODELS = f"{_PREFIX}/models"
_MOYIN_PATHS = tuple(
    f"{_PREFIX}/{name}" for name in ("requests", "route", "feedback", "quality", "health", "readyz")
)


def speaks_anthropic(scope: Scope) -> bool:
    """Tell whether the client speaks Anthropic's protocol, on paths that protocols share."""
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


def renderer_of(scope: Scope) -> ErrorRenderer:
    """Return the error renderer for a request.

    The path alone does not suffice: OpenAI's and Anthropic's clients list models under the same one.
    """
    path = scope["path"]
    if (path == _MODELS or path.startswith(f"{_MODELS}/")) and speaks_anthropic(scope):
        return anthropic_error
    return render_error


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render ``error`` in the protocol of ``path``."""
    if path.startswith(f"{_PREFIX}/messages"):
        return anthropic_error(error, request_id, path)
    if path.startswith(f"{_PREFIX}/ollama"):
        return ollama_error(error, request_id, path)
    if path.startswith(_MOYIN_PATHS):
        return render_problem_details(error, request_id, path)
    return openai_error(error, request_id, path)
