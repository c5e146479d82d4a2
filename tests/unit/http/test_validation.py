from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from moyin.comfy_api.protocol_v2 import request_to_domain as v2
from moyin.errors import BodyTooLarge, InvalidJson, InvalidRequest
from moyin.http.validation import parse_object, parse_token_count, validate
from moyin.jobs.protocol import request_to_domain as jobs
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.ratings import FeedbackBody

NOW = datetime(2026, 1, 1, tzinfo=UTC)
USER = {"role": "user", "content": "hi"}
GOOD = {"model": "m", "max_tokens": 5, "messages": [USER]}
BOTH: list[ProtocolCodec] = [OpenAICodec(), AnthropicCodec()]


@pytest.mark.parametrize("codec", BOTH, ids=["openai", "anthropic"])
@pytest.mark.parametrize("body", [b"", b"{", b'{"a": NaN}', b"\xff"])
def test_invalid_json_is_refused(codec: ProtocolCodec, body: bytes) -> None:
    with pytest.raises(InvalidJson):
        codec.parse(body)


@pytest.mark.parametrize(
    "parse",
    [parse_object, OpenAICodec().parse, lambda body: jobs.parse_job(body, NOW), v2.parse_job],
)
def test_body_with_too_many_values_is_refused_unparsed(
    parse: Callable[[bytes], Any],
) -> None:
    for value in (b"{},", b"[],", b"1,"):
        body = b'{"x": [' + value * 500_001 + b"1]}"
        with pytest.raises(BodyTooLarge) as exc_info:
            parse(body)
        assert exc_info.value.details == {"max_values": 500_000}
    assert parse_object(b'{"x": [' + b"1," * 400_000 + b"1]}")
    # A picture in base64 is one value.
    assert parse_object(b'{"x": "data:image/png;base64,' + b"A" * 10_000_000 + b'"}')


@pytest.mark.parametrize("codec", BOTH, ids=["openai", "anthropic"])
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"model": 3}, "model"),
        ({"model": ""}, "model"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"messages": [USER, {"role": "user", "content": 7}]}, "messages.1.content"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
        ),
    ],
)
def test_error_names_invalid_field(
    codec: ProtocolCodec, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        codec.parse(json.dumps({**GOOD, **changes}).encode())
    assert exc_info.value.field == field
    assert exc_info.value.message.startswith(field)


@pytest.mark.parametrize("codec", BOTH, ids=["openai", "anthropic"])
def test_error_names_missing_member(codec: ProtocolCodec) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        codec.parse(b'{"model": "m", "max_tokens": 5}')
    assert exc_info.value.field == "messages"


@pytest.mark.parametrize("codec", BOTH, ids=["openai", "anthropic"])
def test_unknown_members_are_kept(codec: ProtocolCodec) -> None:
    parsed_request = codec.parse(json.dumps({**GOOD, "future": {"a": 1}}).encode())
    assert json.loads(parsed_request.to_upstream("other", {}))["future"] == {"a": 1}


@pytest.mark.parametrize("value", [2**63, 10**30, -1, 1.5, "7", None, [1]])
def test_implausible_token_count_is_zero(value: Any) -> None:
    """A token count that the ledger's columns cannot store is read as 0.

    Otherwise it would keep later entries from being stored.
    """
    assert parse_token_count(value) == 0
    assert parse_token_count(10_000_000) == 10_000_000


def test_error_about_several_fields_names_them() -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        validate(FeedbackBody, {"request_id": "r"})
    assert exc_info.value.message == "exactly one of 'score' and 'better_request_id' is required"
