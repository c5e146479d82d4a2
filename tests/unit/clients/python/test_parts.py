"""Tests the parts of the client that do no I/O."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from moyin_client import MoyinError, RetryPolicy
from moyin_client.errors import build_error, parse_retry_after
from moyin_client.sse import SseParser

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
STREAM = (
    "\ufeffretry: 1500\r\n\r\n"
    ": comment\n\n"
    "id: 1-0\nevent: progress\ndata: {\"a\":\ndata: \"ü\"}\n\n"
    "data:no space\r\r"
    "event: empty\n\n"
    "retry: soon\nid: bad\0id\nunknown: x\ndata\n\n"
    "data: cut off"
).encode()  # fmt: skip


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 1_000])
def test_a_stream_is_parsed_alike_in_pieces_of_any_size(piece_bytes: int) -> None:
    parser = SseParser()
    pieces = [STREAM[start : start + piece_bytes] for start in range(0, len(STREAM), piece_bytes)]
    events = [event for piece in pieces for event in parser.feed(piece)]
    assert [(event.type, event.id, event.data) for event in events] == [
        ("progress", "1-0", '{"a":\n"ü"}'),
        ("message", "", "no space"),
        ("message", "", ""),
    ]
    assert parser.retry == 1.5


def test_the_text_of_an_event_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moyin_client.sse._MAX_EVENT", 1_000)
    parser = SseParser()
    for _ in range(50):
        assert len(list(parser.feed(b"data: " + bytes(90) + b"\n\n"))) == 1
    with pytest.raises(MoyinError, match="too large"):
        for _ in range(50):
            list(parser.feed(b"data: " + bytes(90) + b"\n"))


def new_error(status: int | None, code: str = "x", retry_after: float | None = None) -> MoyinError:
    return MoyinError("no", status=status, code=code, retry_after=retry_after)


def test_pauses_double_up_to_the_longest() -> None:
    policy = RetryPolicy(tries=5_000, first_pause=1.0, longest_pause=10.0)
    for failure_count, longest_pause in [
        (1, 1.0),
        (2, 2.0),
        (3, 4.0),
        (4, 8.0),
        (5, 10.0),
        (4_000, 10.0),
    ]:
        pause = policy.pause_after(new_error(503), failure_count)
        assert longest_pause / 2 <= pause <= longest_pause


def test_the_pause_is_never_shorter_than_the_gateway_requests() -> None:
    policy = RetryPolicy()
    assert policy.pause_after(new_error(429, retry_after=30), 1) == 30
    assert policy.pause_after(new_error(429, retry_after=0), 1) > 0
    with pytest.raises(MoyinError):
        policy.pause_after(new_error(429, retry_after=121), 1)


@pytest.mark.parametrize(
    ("error", "is_retried"),
    [
        (new_error(408), True),
        (new_error(500), False),
        (new_error(409), False),
        (new_error(None, "connection_failed"), True),
        (new_error(None, "service_unavailable"), True),
        (new_error(None, "malformed_response"), False),
        # The status counts before the code.
        (new_error(400, "service_unavailable"), False),
    ],
)
def test_only_temporary_errors_are_retried(error: MoyinError, is_retried: bool) -> None:
    policy = RetryPolicy(tries=3)
    if is_retried:
        assert policy.pause_after(error, 2) > 0
    else:
        with pytest.raises(MoyinError):
            policy.pause_after(error, 1)
    with pytest.raises(MoyinError) as exc_info:
        policy.pause_after(error, 3)
    assert exc_info.value is error


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Sat, 28 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 28 Nov 2026 11:00:00 GMT", 0.0),
        ("Sat, 28 Nov 2026 12:00:30 -0000", 30.0),
        ("soon", None),
        ("-3", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    assert parse_retry_after(header, NOON) == seconds


@pytest.mark.parametrize("body", [b"[]", b"3", b'{"code": 4, "detail": ""}', b"\xff"])
def test_an_error_with_an_undocumented_body_keeps_its_status(body: bytes) -> None:
    error = build_error(503, {"x-request-id": "req_8"}, body)
    assert (error.status, error.code, error.request_id) == (503, "http_error", "req_8")
    assert str(error) == "HTTP status 503"


def test_an_error_can_be_pickled() -> None:
    error = MoyinError("no", status=409, code="conflict", details={"a": 1})
    copied_error: Any = pickle.loads(pickle.dumps(error))
    assert (str(copied_error), vars(copied_error)) == ("no", vars(error))
