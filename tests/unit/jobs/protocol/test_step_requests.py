from __future__ import annotations

from typing import Any

import pytest

from moyin.domain.job import ChatProtocol
from moyin.errors import InvalidRequest, StepFailed
from moyin.jobs.protocol.step_requests import (
    check_chat_request,
    check_step_path,
    disable_streaming,
    extract_text,
    get_chat_path,
)

HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("protocol", "chat_request", "path"),
    [
        ("openai", {"model": "m", "messages": HELLO}, "/v1/chat/completions"),
        ("anthropic", {"model": "m", "messages": HELLO, "max_tokens": 5}, "/v1/messages"),
        ("ollama", {"model": "m", "messages": HELLO}, "/v1/ollama/api/chat"),
        ("ollama", {"model": "m", "prompt": "hi"}, "/v1/ollama/api/generate"),
    ],
)
def test_a_request_has_the_route_of_its_protocol_and_no_stream(
    protocol: str, chat_request: dict[str, Any], path: str
) -> None:
    chat_protocol = ChatProtocol(protocol)
    check_chat_request(chat_protocol, chat_request, "request")
    assert get_chat_path(chat_protocol, chat_request) == path
    assert disable_streaming(chat_protocol, chat_request).get("stream") is (
        False if protocol == "ollama" else None
    )


@pytest.mark.parametrize(
    ("protocol", "chat_request", "field"),
    [
        ("openai", {"model": "m", "prompt": "hi"}, "request.messages"),
        ("anthropic", {"messages": HELLO}, "request.model"),
        ("ollama", {"model": "m"}, "request.messages"),
        ("ollama", {"model": "m", "prompt": "hi", "stream": True}, "request.stream"),
    ],
)
def test_an_invalid_request_names_its_member(
    protocol: str, chat_request: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        check_chat_request(ChatProtocol(protocol), chat_request, "request")
    assert exc_info.value.field == field


@pytest.mark.parametrize(
    ("protocol", "body", "expected_text"),
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
    protocol: str, body: dict[str, Any], expected_text: str | None
) -> None:
    assert extract_text(ChatProtocol(protocol), body) == expected_text


@pytest.mark.parametrize("protocol", list(ChatProtocol))
@pytest.mark.parametrize("body", [{}, [], None, {"content": [3]}, {"choices": []}])
def test_an_invalid_response_fails_the_step(protocol: ChatProtocol, body: Any) -> None:
    with pytest.raises(StepFailed):
        extract_text(protocol, body)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/models", "/v1/models?x=../y", "/a%20b", "/jobsite", "/x/jobs", "/a.b/..c", "/a//b"],
)
def test_plain_paths_are_allowed(path: str) -> None:
    check_step_path(path, field="path")


@pytest.mark.parametrize(
    "path",
    ["", "v1", "http://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil", "/a b",
     "/a\nb", "/a#b", "/..", "/a/../b", "/a/%2e%2e/b", "/a/%252e%252E/b", "/a/./b", "/a%5c..%5cb",
     "/jobs", "/jobs/", "/jobs/1/retry", "/jobs?x=1", "/Jobs", "/%6aobs", "/%256aobs", "/.//jobs",
     "/jobs%2f1", "///jobs", "/%2fjobs", "/prompt", "/api/prompt", "/api/v2/jobs", "/comfy/api/prompt",
     "/v1/images/generations", "/accounts", "/accounts/keys", "/%61ccounts/me",
     "/%" + 4_000 * "25" + "6aobs"],
)  # fmt: skip
def test_unsafe_and_reserved_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        check_step_path(path, field="steps.0.request.path")
    assert exc_info.value.field == "steps.0.request.path"
