"""Chat steps: where a body of each protocol goes, and what text its answer holds. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.domain.job import ChatProtocol
from moyin.errors import InvalidRequest, StepFailed

__all__ = ["check", "path_of", "sent", "text_of"]


def check(protocol: ChatProtocol, request: Mapping[str, Any], field: str) -> None:
    """Refuse what the models app would surely refuse.

    Args:
        field: the path of ``request``, for errors.

    Raises:
        InvalidRequest: naming the member.
    """
    messages = request.get("messages")
    prompted = protocol is ChatProtocol.OLLAMA and isinstance(request.get("prompt"), str)
    if not prompted and (not isinstance(messages, list) or not messages):
        raise InvalidRequest(
            "messages must be a list with at least one message", field=f"{field}.messages"
        )
    if not isinstance(request.get("model"), str):
        raise InvalidRequest(
            "model must be a string; `auto` lets the router choose", field=f"{field}.model"
        )
    if request.get("stream"):
        raise InvalidRequest(
            "a job's answer is not streamed; leave stream out", field=f"{field}.stream"
        )


def path_of(protocol: ChatProtocol, request: Mapping[str, Any]) -> str:
    """The route of the models app that takes ``request``."""
    match protocol:
        case ChatProtocol.OPENAI:
            return "/v1/chat/completions"
        case ChatProtocol.ANTHROPIC:
            return "/v1/messages"
        case ChatProtocol.OLLAMA:
            return f"/v1/ollama/api/{'generate' if 'prompt' in request else 'chat'}"


def sent(protocol: ChatProtocol, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """``request`` as a job sends it: Ollama streams unless told not to."""
    return {**request, "stream": False} if protocol is ChatProtocol.OLLAMA else request


def text_of(protocol: ChatProtocol, body: Any) -> str | None:
    """The text in a whole answer; None where the model only called tools.

    Raises:
        StepFailed: the body is no answer.
    """
    try:
        return _text(protocol, body)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise StepFailed(f"the answer is none of the protocol {protocol.value!r}") from None


def _text(protocol: ChatProtocol, body: Any) -> str | None:
    match protocol:
        case ChatProtocol.OPENAI:
            content = body["choices"][0]["message"]["content"]
            return content if isinstance(content, str) else None
        case ChatProtocol.ANTHROPIC:
            texts = [block["text"] for block in body["content"] if block["type"] == "text"]
            return "".join(texts) if texts else None
        case ChatProtocol.OLLAMA:
            said = body["response"] if "response" in body else body["message"]["content"]
            return said or None
