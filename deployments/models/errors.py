"""Renders errors of the models app in the protocol of the request."""

from __future__ import annotations

from moyin.access.gatekeeper import ErrorBody, ErrorRenderer, render_problem_details
from moyin.access.gatekeeper.asgi import Scope
from moyin.errors import MoyinError
from moyin.text.protocol.anthropic.errors import render_error as anthropic_error
from moyin.text.protocol.ollama.errors import render_error as ollama_error
from moyin.text.protocol.openai.errors import render_error as openai_error
from moyin.text.protocol.responses.errors import render_error as responses_error

_PREFIX = "/v1"
_MODELS_PATH = f"{_PREFIX}/models"
_MOYIN_PATHS = tuple(
    f"{_PREFIX}/{name}"
    for name in ("requests", "usage", "route", "feedback", "quality", "health", "readyz")
)


def is_anthropic_client(scope: Scope) -> bool:
    """Return True if a client uses Anthropic's protocol, on a path that several protocols share."""
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


def choose_renderer(scope: Scope) -> ErrorRenderer:
    """Return the function that renders errors in the protocol of a request's client and path."""
    path = scope["path"]
    if (path == _MODELS_PATH or path.startswith(f"{_MODELS_PATH}/")) and is_anthropic_client(scope):
        return anthropic_error
    return render_error


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render ``error`` in the protocol to which ``path`` belongs."""
    if path.startswith(f"{_PREFIX}/messages"):
        return anthropic_error(error, request_id, path)
    if path.startswith(f"{_PREFIX}/ollama"):
        return ollama_error(error, request_id, path)
    if path.startswith(f"{_PREFIX}/responses"):
        return responses_error(error, request_id, path)
    if path.startswith(_MOYIN_PATHS):
        return render_problem_details(error, request_id, path)
    return openai_error(error, request_id, path)
