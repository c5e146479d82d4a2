"""Parses the requests and renders the responses of Anthropic's ``/v1/messages/batches``.

Source: Anthropic's API reference as typed in ``anthropic.types.messages``.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain.identity import Identity
from moyin.domain.text_batch import (
    COMPLETION_WINDOW,
    BatchDialect,
    BatchLine,
    BatchStatus,
    TextBatch,
    new_batch_id,
)
from moyin.errors import BodyTooLarge, InvalidJson, InvalidRequest, UnsupportedFeature
from moyin.text.protocol.openai.batches import remove_line_breaks

MESSAGES_ENDPOINT = "/v1/messages"
MAX_REQUESTS = 100_000
_RESULTS_KEPT = timedelta(days=29)
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# Parsing this many requests takes a thread some seconds.
_MAX_TOKENS = 20_000_000
_MAX_DEPTH = 200
# Maximum number of bytes of a body outside of its requests.
_MAX_SKELETON = 16 * 1024 * 1024
_REQUESTS = b'"requests"'
# Matches strings, and the brackets outside of them. An unterminated string extends to the end of
# the body, so that no byte is read twice; searching its end from every quote would take hours.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
# Members of the body that do not change the answers.
_HARMLESS = frozenset({"user_profile_id", "workspace_id", "betas"})


def new_batch(
    caller: Identity, input_file_id: str, *, request_count: int, created_at: datetime
) -> TextBatch:
    """Create a batch for the caller from a file with ``request_count`` requests, one per line."""
    return TextBatch(
        id=new_batch_id(BatchDialect.ANTHROPIC),
        owner=caller.owner,
        dialect=BatchDialect.ANTHROPIC,
        endpoint=MESSAGES_ENDPOINT,
        input_file_id=input_file_id,
        created_at=created_at,
        expires_at=created_at + COMPLETION_WINDOW,
        key_id=caller.key_id,
        user=caller.user,
        scopes=caller.scopes,
        total=request_count,
        output_expires_after=int(_RESULTS_KEPT.total_seconds()),
    )


def read_batch_requests(body: bytes | mmap.mmap, max_request_bytes: int) -> Iterator[bytes]:
    """Yield the JSON of each of the ``requests`` of a new batch, without line breaks.

    Only one request at a time is parsed, so that a body of any size needs little memory.

    Raises:
        BodyTooLarge: a request has more than ``max_request_bytes``, or the rest of the body is too
            long.
        InvalidJson: the body is not JSON.
        InvalidRequest: a member is invalid; the error names it. The requests before it may have
            been yielded already.
        UnsupportedFeature: the body has a member that Moyin does not support.
    """
    skeleton = bytearray()
    custom_ids: set[str] = set()
    previous_end = 0
    for start, stop in _find_requests(body):
        number = len(custom_ids)
        if number >= MAX_REQUESTS:
            raise InvalidRequest(
                f"requests: a batch may have at most {MAX_REQUESTS} requests", field="requests"
            )
        _check_request_size(stop - start, max_request_bytes, number)
        custom_id, line = _parse_request(body[start:stop], number)
        # Some numbers become longer when they are encoded again.
        _check_request_size(len(line), max_request_bytes, number)
        if custom_id in custom_ids:
            raise InvalidRequest(
                f"requests.{number}.custom_id: {custom_id!r} is the id of an earlier request; ids "
                "must be unique",
                field=f"requests.{number}.custom_id",
            )
        custom_ids.add(custom_id)
        yield line
        _check_skeleton_size(len(skeleton) + start - previous_end)
        skeleton += body[previous_end:start] + b"0"
        previous_end = stop
    _check_skeleton_size(len(skeleton) + len(body) - previous_end)
    skeleton += body[previous_end : len(body)]
    _check_skeleton(bytes(skeleton), len(custom_ids))


def render_batch(batch: TextBatch, results_url: str) -> dict[str, Any]:
    """Return the batch object that clients receive.

    Args:
        results_url: the URL of the results, which is shown once the batch has ended.
    """
    is_ended = batch.status.is_final
    archived_at = None if batch.ended_at is None else batch.ended_at + _RESULTS_KEPT
    if archived_at is not None and archived_at > datetime.now(UTC):
        archived_at = None
    status = "ended" if is_ended else "in_progress"
    if not is_ended and batch.cancelling_at is not None:
        status = "canceling"
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": _count_requests(batch),
        "created_at": _format_time(batch.created_at),
        "expires_at": _format_time(batch.expires_at),
        "ended_at": _format_time(batch.ended_at),
        "cancel_initiated_at": _format_time(batch.cancelling_at),
        "archived_at": _format_time(archived_at),
        "results_url": results_url if is_ended and archived_at is None else None,
    }


def render_deleted_batch(batch_id: str) -> dict[str, Any]:
    """Return the body of the response to the deletion of a batch."""
    return {"id": batch_id, "type": "message_batch_deleted"}


def render_page(batches: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return one page of a list of batch objects, as clients receive it.

    Args:
        batches: the batch objects of the page.
        has_more: True if another page follows.
    """
    return {
        "data": batches,
        "has_more": has_more,
        "first_id": batches[0]["id"] if batches else None,
        "last_id": batches[-1]["id"] if batches else None,
    }


class AnthropicBatchFormat:
    """Implements `moyin.text.batches.formats.BatchFormat` for Anthropic's batches.

    A line of an input file is a request as `read_batch_requests` yields it.
    """

    has_error_file = False
    max_lines = MAX_REQUESTS

    def check_line(self, line: bytes, endpoint: str) -> str:
        custom_id: str = from_json(line)["custom_id"]
        return custom_id

    def read_body(self, line: bytes) -> bytes:
        return to_json(from_json(line)["params"])

    def render_result(self, batch: TextBatch, line: BatchLine) -> bytes:
        result = line.result
        if result is None:
            is_cancelled = batch.cancelling_at is not None
            content = b'{"type":"canceled"}' if is_cancelled else b'{"type":"expired"}'
        elif result.error_code is None:
            content = b'{"type":"succeeded","message":%b}' % remove_line_breaks(result.body)
        else:
            content = b'{"type":"errored","error":%b}' % remove_line_breaks(result.body)
        return b'{"custom_id":%b,"result":%b}' % (to_json(line.custom_id), content)


def _find_requests(body: bytes | mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield the start and the end offset of each request in the body of a new batch.

    The requests are the objects in the body's top-level list ``requests``.
    """
    depth = start = 0
    in_requests = is_key = False
    for number, token in enumerate(_TOKEN.finditer(body)):
        token_text = token[0]
        if number >= _MAX_TOKENS or depth > _MAX_DEPTH:
            raise BodyTooLarge(
                f"the JSON body may have at most {_MAX_TOKENS} strings and brackets, nested at most "
                f"{_MAX_DEPTH} levels deep: split the batch into smaller ones",
                details={"max_tokens": _MAX_TOKENS, "max_depth": _MAX_DEPTH},
            )
        if token_text in (b"{", b"["):
            depth += 1
            if depth == 2:
                in_requests = is_key and token_text == b"["
            elif depth == 3 and in_requests:
                start = token.start()
        elif token_text in (b"}", b"]"):
            if (
                depth == 3
                and in_requests
                and token_text == b"}"
                and body[start : start + 1] == b"{"
            ):
                yield start, token.end()
            depth -= 1
        elif depth == 1:
            is_key = token_text == _REQUESTS


def _parse_request(raw: bytes, number: int) -> tuple[str, bytes]:
    path = f"requests.{number}"
    try:
        request = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(f"{path} is not valid JSON: {error}") from None
    custom_id, params = request.get("custom_id"), request.get("params")
    if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
        raise InvalidRequest(
            f"{path}.custom_id must have 1 to 64 letters, digits, hyphens and underscores",
            field=f"{path}.custom_id",
        )
    if not isinstance(params, dict):
        raise InvalidRequest(
            f"{path}.params must be an object with the members of a message request",
            field=f"{path}.params",
        )
    if params.get("stream"):
        raise InvalidRequest(
            f"{path}.params.stream: requests of a batch cannot be streamed; omit it",
            field=f"{path}.params.stream",
        )
    if unknown_members := set(request) - {"custom_id", "params"}:
        name = min(unknown_members)
        raise InvalidRequest(
            f"{path}.{name}: a request may have only custom_id and params; omit {name}",
            field=f"{path}.{name}",
        )
    return custom_id, to_json(request)


def _check_request_size(size: int, max_bytes: int, number: int) -> None:
    if size > max_bytes:
        raise BodyTooLarge(
            f"requests.{number}: a request must have at most {max_bytes} bytes",
            field=f"requests.{number}",
            details={"max_request_bytes": max_bytes},
        )


def _check_skeleton_size(size: int) -> None:
    if size > _MAX_SKELETON:
        raise BodyTooLarge(
            f"the body must have at most {_MAX_SKELETON} bytes outside of the objects in requests"
        )


def _check_skeleton(skeleton: bytes, count: int) -> None:
    """Validate the body of a new batch, apart from its requests, which are validated one by one.

    Args:
        skeleton: the body, in which each request is replaced by the number 0.
        count: the number of requests that were replaced.
    """
    try:
        data = from_json(skeleton, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    requests = data.get("requests") if isinstance(data, dict) else None
    if not isinstance(requests, list) or not requests:
        raise InvalidRequest("requests must be a list with at least one request", field="requests")
    if len(requests) != count or any(item != 0 or item is False for item in requests):
        raise InvalidRequest(
            "requests: each request must be an object with custom_id and params", field="requests"
        )
    for name, value in data.items():
        if name != "requests" and value and name not in _HARMLESS:
            raise UnsupportedFeature(f"{name} is not supported for batches; omit it", field=name)


def _count_requests(batch: TextBatch) -> dict[str, int]:
    """Return the numbers of requests by status; until the batch ends, all count as processing."""
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    if not batch.status.is_final:
        return counts | {"processing": batch.total}
    unfinished_count = batch.total - batch.completed - batch.failed
    name = "expired" if batch.status is BatchStatus.EXPIRED else "canceled"
    return counts | {"succeeded": batch.completed, "errored": batch.failed, name: unfinished_count}


def _format_time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
