"""Checks the requests of chat steps, and reads the text in responses; without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.domain.job import ChatProtocol
from moyin.errors import InvalidRequest, StepFailed

__all__ = ["check", "path_of", "text_of", "to_unstreamed"]


def check(protocol: ChatProtocol, request: Mapping[str, Any], field: str) -> None:
    """Check a request for mistakes that the models app would refuse.

    Args:
        field: the path of ``request``, for errors.

    Raises:
        InvalidRequest: a member is wrong.
    """
    if protocol is ChatProtocol.RESPONSES:
        if not request.get("input"):
            raise InvalidRequest(
                "input must be text or a list with at least one item", field=f"{field}.input"
            )
    else:
        _check_messages(protocol, request, field)
    if not isinstance(request.get("model"), str):
        raise InvalidRequest(
            "model must be a string; `auto` lets the router choose", field=f"{field}.model"
        )
    if request.get("stream"):
        raise InvalidRequest("a job's answer is not streamed; omit stream", field=f"{field}.stream")


def _check_messages(protocol: ChatProtocol, request: Mapping[str, Any], field: str) -> None:
    messages = request.get("messages")
    has_prompt = protocol is ChatProtocol.OLLAMA and isinstance(request.get("prompt"), str)
    if not has_prompt and (not isinstance(messages, list) or not messages):
        raise InvalidRequest(
            "messages must be a list with at least one message", field=f"{field}.messages"
        )


def path_of(protocol: ChatProtocol, request: Mapping[str, Any]) -> str:
    """Return the route of the models app for ``request``."""
    match protocol:
        case ChatProtocol.OPENAI:
            return "/v1/chat/completions"
        case ChatProtocol.ANTHROPIC:
            return "/v1/messages"
        case ChatProtocol.OLLAMA:
            return f"/v1/ollama/api/{'generate' if 'prompt' in request else 'chat'}"
        case ChatProtocol.RESPONSES:
            return "/v1/responses"


def to_unstreamed(protocol: ChatProtocol, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the request with streaming turned off, which is Ollama's default."""
    return {**request, "stream": False} if protocol is ChatProtocol.OLLAMA else request


def text_of(protocol: ChatProtocol, body: Any) -> str | None:
    """Return the text in a response; None if the model only called tools.

    Raises:
        StepFailed: the body is not a response of the protocol.
    """
    try:
        return _text(protocol, body)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise StepFailed(
            f"the back end's response is not one of the protocol {protocol.value!r}"
        ) from None


def _text(protocol: ChatProtocol, body: Any) -> str | None:
    match protocol:
        case ChatProtocol.OPENAI:
            content = body["choices"][0]["message"]["content"]
            return content if isinstance(content, str) else None
        case ChatProtocol.ANTHROPIC:
            texts = [block["text"] for block in body["content"] if block["type"] == "text"]
            return "".join(texts) if texts else None
        case ChatProtocol.OLLAMA:
            text = body["response"] if "response" in body else body["message"]["content"]
            return text or None
        case ChatProtocol.RESPONSES:
            messages = [item for item in body["output"] if item["type"] == "message"]
            texts = [part.get("text", "") for item in messages for part in item["content"]]
            return "".join(texts) or None
