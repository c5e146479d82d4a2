from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from pydantic_core import from_json, to_json

from moyin.domain.identity import Identity
from moyin.domain.text_batch import BatchLine, BatchStatus, LineResult, TextBatch
from moyin.errors import BodyTooLarge, InvalidJson, MoyinError
from moyin.text.protocol.anthropic import batches
from moyin.text.protocol.anthropic.batches import (
    AnthropicBatchFormat,
    new_batch,
    read_batch_requests,
    render_batch,
)

NOW = datetime.now(UTC)
BATCH = new_batch(Identity(owner="ada", key_id="k"), "file-1", request_count=4, created_at=NOW)


def parse_batch(batch: TextBatch) -> MessageBatch:
    """Return the batch object, validated by Anthropic's package in strict mode."""
    return MessageBatch.model_validate_json(to_json(render_batch(batch, "http://r")), strict=True)


def make_request(custom_id: str, **params: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "params": params}


def read_requests(body: bytes, max_request_bytes: int = 1024 * 1024) -> Iterator[bytes]:
    return read_batch_requests(body, max_request_bytes)


def test_requests_are_read_one_by_one_whatever_is_in_their_strings() -> None:
    text_with_brackets = 'a "quote\\" } ] , {"requests": [ \n'
    requests = [
        make_request("a", text=text_with_brackets, deep={"x": [{"y": []}]}),
        make_request("b-_9", n=[[1], {}]),
    ]
    body_with_extras = {"user_profile_id": None, "betas": ["x"], "requests": requests}
    for body in (to_json(body_with_extras), to_json(body_with_extras, indent=2)):
        lines = list(read_requests(body))
        assert [from_json(line) for line in lines] == requests
        assert not any(b"\n" in line for line in lines)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", None),
        (b"[]", "requests"),
        (b"7", "requests"),
        (b'{"requests": []}', "requests"),
        (b'{"requests": {"a": {}}}', "requests"),
        (b'{"requests": [1]}', "requests"),
        (b'{"requests": [[{}]]}', "requests"),
        (b'{"more": {"requests": [{}]}}', "requests"),
        (b'{"requests": [{"custom_id": "a"}]}', "requests.0.params"),
        (b'{"requests": [{"custom_id": "a b", "params": {}}]}', "requests.0.custom_id"),
        (b'{"requests": [{"custom_id": 7, "params": {}}]}', "requests.0.custom_id"),
        (
            b'{"requests": [{"custom_id":"a","params":{}}, {"custom_id":"a","params":{}}]}',
            "requests.1.custom_id",
        ),
        (
            b'{"requests": [{"custom_id": "a", "params": {"stream": true}}]}',
            "requests.0.params.stream",
        ),
        (b'{"requests": [{"custom_id": "a", "params": {}, "x": 1}]}', "requests.0.x"),
        (b'{"requests": [{"custom_id": "a", "params": {}}], "more": 1}', "more"),
        (b'{"requests": [{"custom_id": "a", "params": {}}', None),
        (b'{"requests": [{"custom_id": "a", "params": {"x": NaN}}]}', None),
        (b'{"requests": [{"custom_id": "a", "params": {}}], "requests": [{}]}', None),
    ],
)
def test_invalid_batch_body_is_refused_by_its_field(body: bytes, field: str | None) -> None:
    with pytest.raises(MoyinError) as exc_info:
        list(read_requests(body))
    if field is not None:
        assert exc_info.value.field == field
    elif b'"requests": [{}]' not in body:
        assert isinstance(exc_info.value, InvalidJson)


def test_the_number_of_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_REQUESTS", 2)
    with pytest.raises(MoyinError, match="at most 2 requests"):
        list(read_requests(to_json({"requests": [make_request(n) for n in "abc"]})))


def test_the_work_of_reading_a_body_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BodyTooLarge, match="nested at most 200"):
        list(read_requests(b'{"requests":[' + b"[" * 1_000_000))
    monkeypatch.setattr(batches, "_MAX_TOKENS", 10)
    with pytest.raises(BodyTooLarge, match="at most 10 strings"):
        list(read_requests(to_json({"requests": [make_request(n) for n in "abc"]})))


def test_request_beyond_the_maximum_length_of_a_line_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_request, large_request = make_request("a"), make_request("b", text="x" * 100)
    size = len(to_json(large_request))
    body = to_json({"requests": [small_request, large_request]})
    assert len(list(read_requests(body, size))) == 2
    with pytest.raises(BodyTooLarge, match="at most") as exc_info:
        list(read_requests(body, size - 1))
    assert exc_info.value.field == "requests.1"
    # The line of the first has more bytes than it has in the body.
    short_body = b'{"requests":[{"custom_id":"a","params":{"n":1e15}}]}'
    with pytest.raises(BodyTooLarge) as exc_info:
        list(read_requests(short_body, len(b'{"custom_id":"a","params":{"n":1e15}}')))
    assert exc_info.value.field == "requests.0"
    monkeypatch.setattr(batches, "_MAX_SKELETON", 100)
    assert len(list(read_requests(body, size))) == 2
    for long_body in (
        b'{"a":"%b","requests":[{"custom_id":"a","params":{}}]}',
        b'{"requests":[],"a":"%b"}',
    ):
        with pytest.raises(BodyTooLarge, match="outside"):
            list(read_requests(long_body % (b"x" * 100), size))


@pytest.mark.parametrize(
    "body",
    [
        b'{"requests":["' + b'\\"' * 3_000_000,
        b'{"requests":[{"a":"' + b'\\"{' * 3_000_000,
        b'{"requests":["' + b"\\" * 6_000_001,
        b'{"requests":[' + b'"\\"' * 1_000_000,
        b'{"requests":[' + b"]" * 1_000_000,
        b'{"requests":[' + b"{}" * 1_000_000,
    ],
)
def test_reading_a_hostile_body_takes_time_in_proportion_to_its_size(body: bytes) -> None:
    # In quadratic time, these take hours.
    with pytest.raises(MoyinError):
        list(read_requests(body))


def test_a_batch_shows_its_counts_when_it_has_ended() -> None:
    open_batch = parse_batch(BATCH)
    assert open_batch.processing_status == "in_progress"
    assert open_batch.request_counts.processing == 4 and open_batch.results_url is None
    canceling_batch = replace(BATCH, status=BatchStatus.CANCELLING, cancelling_at=NOW)
    assert parse_batch(canceling_batch).processing_status == "canceling"
    ended_batch = replace(canceling_batch, ended_at=NOW, completed=1, failed=2)
    canceled_batch = parse_batch(replace(ended_batch, status=BatchStatus.CANCELLED))
    counts = canceled_batch.request_counts
    assert (counts.succeeded, counts.errored, counts.canceled, counts.expired) == (1, 2, 1, 0)
    assert (canceled_batch.processing_status, canceled_batch.results_url) == ("ended", "http://r")
    expired_counts = parse_batch(replace(ended_batch, status=BatchStatus.EXPIRED)).request_counts
    assert (expired_counts.canceled, expired_counts.expired, expired_counts.processing) == (0, 1, 0)
    old_batch = parse_batch(
        replace(ended_batch, status=BatchStatus.COMPLETED, ended_at=NOW - timedelta(days=30))
    )
    assert old_batch.archived_at is not None and old_batch.results_url is None


def test_each_result_has_its_type() -> None:
    line = BatchLine(number=1, custom_id='a"b', start=0, size=1)
    error = {"type": "error", "error": {"type": "api_error", "message": "m"}, "request_id": "r"}
    message: dict[str, Any] = {
        "id": "m", "type": "message", "role": "assistant", "model": "c", "content": [],
        "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    answered_line = LineResult(number=1, http_status=200, body=to_json(message, indent=1))
    failed_line = LineResult(number=1, http_status=500, body=to_json(error), error_code="x")
    cancelled_batch = replace(BATCH, cancelling_at=NOW)
    cases = {
        "succeeded": (BATCH, answered_line),
        "errored": (BATCH, failed_line),
        "expired": (BATCH, None),
        "canceled": (cancelled_batch, None),
    }
    for result_type, (batch, result) in cases.items():
        rendered_line = AnthropicBatchFormat().render_result(batch, replace(line, result=result))
        assert b"\n" not in rendered_line
        response = MessageBatchIndividualResponse.model_validate_json(rendered_line, strict=True)
        assert (response.custom_id, response.result.type) == ('a"b', result_type)
