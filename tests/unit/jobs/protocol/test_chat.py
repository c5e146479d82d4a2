from __future__ import annotations

from typing import Any

import pytest

from moyin.domain.job import ChatProtocol
from moyin.errors import InvalidRequest, StepFailed
from moyin.jobs.protocol import chat

HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("protocol", "request_", "path"),
    [
        ("openai", {"model": "m", "messages": HELLO}, "/v1/chat/completions"),
        ("anthropic", {"model": "m", "messages": HELLO, "max_tokens": 5}, "/v1/messages"),
        ("ollama", {"model": "m", "messages": HELLO}, "/v1/ollama/api/chat"),
        ("ollama", {"model": "m", "prompt": "hi"}, "/v1/ollama/api/generate"),
    ],
)
def test_a_request_has_the_route_of_its_protocol_and_no_stream(
    protocol: str, request_: dict[str, Any], path: str
) -> None:
    kind = ChatProtocol(protocol)
    chat.check(kind, request_, "request")
    assert chat.path_of(kind, request_) == path
    assert chat.to_unstreamed(kind, request_).get("stream") is (
        False if protocol == "ollama" else None
    )


@pytest.mark.parametrize(
    ("protocol", "request_", "field"),
    [
        ("openai", {"model": "m", "prompt": "hi"}, "request.messages"),
        ("anthropic", {"messages": HELLO}, "request.model"),
        ("ollama", {"model": "m"}, "request.messages"),
        ("ollama", {"model": "m", "prompt": "hi", "stream": True}, "request.stream"),
    ],
)
def test_an_invalid_request_names_its_member(
    protocol: str, request_: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat.check(ChatProtocol(protocol), request_, "request")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("protocol", "body", "text"),
    [
        ("openai", {"choices": [{"message": {"content": "hi"}}]}, "hi"),
        ("openai", {"choices": [{"message": {"content": None}}]}, None),
        (
            "anthropic",
            {"content": [{"type": "thinking"}, {"type": "text", "text": "hi"}]},
            "hi",
        ),
        ("anthropic", {"content": [{"type": "tool_use"}]}, None),
        ("ollama", {"message": {"content": "hi"}}, "hi"),
        ("ollama", {"message": {"content": ""}}, None),
        ("ollama", {"response": "hi"}, "hi"),
    ],
)
def test_the_text_of_a_response_is_read(
    protocol: str, body: dict[str, Any], text: str | None
) -> None:
    assert chat.text_of(ChatProtocol(protocol), body) == text


@pytest.mark.parametrize("protocol", list(ChatProtocol))
@pytest.mark.parametrize("body", [{}, [], None, {"content": [3]}, {"choices": []}])
def test_an_invalid_response_fails_the_step(protocol: ChatProtocol, body: Any) -> None:
    with pytest.raises(StepFailed):
        chat.text_of(protocol, body)
