"""Implements the client of Anthropic's batch API, ``/v1/messages/batches``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import anyio
from pydantic_core import to_json

from moyin.domain.chat import ChatRequest, ChatResponse
from moyin.http.validation import new_malformed_response_error
from moyin.text.backends.batches import (
    Payload,
    RemoteBatch,
    RemoteOutcome,
    RemoteResult,
    RemoteState,
    parse_object,
    read_json_lines,
)
from moyin.text.backends.http import HttpClient
from moyin.text.protocol.anthropic.request_to_upstream import chat_request_to_upstream
from moyin.text.protocol.anthropic.response import chat_response_to_domain

_PATH = "/v1/messages/batches"
_HEADERS = {"anthropic-version": "2023-06-01"}
_CHUNK = 256 * 1024
_PAGE = 100
# The most that the clocks of two machines may differ.
_CLOCK_MARGIN = timedelta(minutes=5)
_OUTCOMES = {
    "succeeded": RemoteOutcome.ANSWERED,
    "errored": RemoteOutcome.FAILED,
    "canceled": RemoteOutcome.UNANSWERED,
    "expired": RemoteOutcome.UNANSWERED,
}
_ERROR_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_UNKNOWN_ERROR_STATUS = 500


class AnthropicBatches:
    """Implements `BatchApi` for Anthropic's API.

    Anthropic's batches do not store an id that Moyin chose. If Moyin loses the id that Anthropic
    assigned, it searches for a batch with the same number of requests and about the same creation
    time, and recognises it by the ids in its results.
    """

    chat_path = "/messages"
    identifies_by_key = False
    max_requests = 100_000
    # Anthropic accepts 256 MB.
    max_bytes = 200 * 1000 * 1000

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def supports(self, path: str) -> bool:
        return path == "/messages"

    def encode_request(self, custom_id: str, path: str, body: Mapping[str, Any]) -> bytes:
        return to_json({"custom_id": custom_id, "params": body}) + b"\n"

    def encode_chat(self, request: ChatRequest) -> dict[str, Any]:
        return chat_request_to_upstream(request)

    def read_chat(self, body: Mapping[str, Any]) -> ChatResponse:
        return chat_response_to_domain(body)

    async def submit(self, payload: Payload, deadline: float) -> RemoteBatch:
        prefix, suffix = b'{"requests":[', b"]}"
        # Commas replace the line breaks between the requests.
        size = len(prefix) + payload.size - 1 + len(suffix)
        headers = {**_HEADERS, "content-length": str(size)}
        # Opened here and not in a generator, because a generator would stay open if the back end
        # responded before reading all of it.
        async with await anyio.open_file(payload.file, "rb") as file:
            body = _join_requests(file, payload.size, prefix, suffix)
            response_body = await self._http.upload(_PATH, body, deadline, headers)
        return _parse_batch(parse_object(response_body))

    async def find_submitted(
        self, key: str, count: int, since: datetime, deadline: float
    ) -> AsyncGenerator[RemoteBatch, None]:
        page_parameter = ""
        while True:
            pieces = self._http.download(
                f"{_PATH}?limit={_PAGE}{page_parameter}", deadline, _HEADERS
            )
            async with aclosing(pieces):
                page = parse_object(b"".join([piece async for piece in pieces]))
            batches = page.get("data")
            if not isinstance(batches, list):
                raise new_malformed_response_error()
            for data in batches:
                if _parse_time(data.get("created_at")) < since - _CLOCK_MARGIN:
                    return
                batch = _parse_batch(data)
                if batch.count == count:
                    yield batch
            if not page.get("has_more") or not batches:
                return
            page_parameter = f"&after_id={quote(batches[-1]['id'])}"

    async def poll(self, batch_id: str, deadline: float) -> RemoteBatch:
        pieces = self._http.download(f"{_PATH}/{quote(batch_id)}", deadline, _HEADERS)
        async with aclosing(pieces):
            return _parse_batch(parse_object(b"".join([piece async for piece in pieces])))

    async def cancel(self, batch_id: str, deadline: float) -> None:
        await self._http.post(f"{_PATH}/{quote(batch_id)}/cancel", b"", deadline, _HEADERS)

    async def read_results(
        self, batch: RemoteBatch, deadline: float
    ) -> AsyncGenerator[RemoteResult, None]:
        path = f"{_PATH}/{quote(batch.id)}/results"
        async with aclosing(self._http.download(path, deadline, _HEADERS)) as pieces:
            async for line in read_json_lines(pieces):
                yield _parse_result(line)

    async def discard(self, batch: RemoteBatch, deadline: float) -> None:
        await self._http.delete(f"{_PATH}/{quote(batch.id)}", deadline, _HEADERS)


async def _join_requests(
    file: anyio.AsyncFile[bytes], size: int, prefix: bytes, suffix: bytes
) -> AsyncIterator[bytes]:
    yield prefix
    bytes_left = size
    while chunk := await file.read(_CHUNK):
        bytes_left -= len(chunk)
        # JSON has no line breaks within strings.
        yield (chunk if bytes_left else chunk[:-1]).replace(b"\n", b",")
    yield suffix


def _parse_batch(data: Mapping[str, Any]) -> RemoteBatch:
    batch_id, status, counts = (data.get(k) for k in ("id", "processing_status", "request_counts"))
    if not isinstance(batch_id, str) or not isinstance(counts, dict):
        raise new_malformed_response_error()
    return RemoteBatch(
        id=batch_id,
        state=RemoteState.ENDED if status == "ended" else RemoteState.RUNNING,
        count=sum(value for value in counts.values() if isinstance(value, int)),
    )


def _parse_result(line: Mapping[str, Any]) -> RemoteResult:
    custom_id, result = line.get("custom_id"), line.get("result")
    if not isinstance(custom_id, str) or not isinstance(result, dict):
        raise new_malformed_response_error()
    outcome = _OUTCOMES.get(result.get("type", ""))
    body = result.get("error" if outcome is RemoteOutcome.FAILED else "message") or {}
    has_body = outcome is RemoteOutcome.UNANSWERED or bool(body)
    if outcome is None or not isinstance(body, dict) or not has_body:
        raise new_malformed_response_error()
    return RemoteResult(
        custom_id=custom_id, outcome=outcome, body=body, status=_find_status(outcome, body)
    )


def _find_status(outcome: RemoteOutcome, body: Mapping[str, Any]) -> int:
    if outcome is not RemoteOutcome.FAILED:
        return 200
    error = body.get("error")
    error_type = error.get("type") if isinstance(error, dict) else None
    return _ERROR_STATUSES.get(error_type or "", _UNKNOWN_ERROR_STATUS)


def _parse_time(timestamp: Any) -> datetime:
    try:
        return datetime.fromisoformat(timestamp)
    except (TypeError, ValueError):
        raise new_malformed_response_error() from None
