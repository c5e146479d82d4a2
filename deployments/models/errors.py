"""Errors of the models app, in the shape of the protocol that the path belongs to."""

from __future__ import annotations

from moyin.errors import MoyinError
from moyin.gatekeeper import ErrorBody, problem_details
from moyin.protocols.anthropic.errors import render_error as anthropic_error
from moyin.protocols.ollama.errors import render_error as ollama_error
from moyin.protocols.openai.errors import render_error as openai_error

__all__ = ["render_error"]

_PREFIX = "/v1"
_OURS = tuple(
    f"{_PREFIX}/{name}"
    for name in ("requests", "route", "feedback", "quality", "healthz", "readyz")
)


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """An error in the shape of the protocol that ``path`` belongs to."""
    if path.startswith(f"{_PREFIX}/messages"):
        return anthropic_error(error, request_id, path)
    if path.startswith(f"{_PREFIX}/ollama"):
        return ollama_error(error, request_id, path)
    if path.startswith(_OURS):
        return problem_details(error, request_id, path)
    return openai_error(error, request_id, path)
