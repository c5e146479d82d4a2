"""Translates OpenAI's batches: the batch object, the lines of input files, and results."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator
from pydantic_core import to_json

from moyin.domain.identity import Identity
from moyin.domain.text_batch import (
    CANCELLED_LINE,
    COMPLETION_WINDOW,
    EXPIRED_LINE,
    MAX_CUSTOM_ID,
    MAX_LINES,
    BatchDialect,
    BatchLine,
    BatchStatus,
    TextBatch,
    get_line_request_id,
    new_batch_id,
)
from moyin.errors import InvalidRequest, MoyinError
from moyin.http.validation import WireModel, parse_object

ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions")
# Members that request a streamed or a background answer instead of a whole one.
_STREAMING = ("stream", "background")
_MAX_METADATA = 16
_UNRUN_MESSAGES = {
    EXPIRED_LINE: "the batch expired before this request was run",
    CANCELLED_LINE: "the batch was cancelled before this request was run",
}


class OutputExpiry(WireModel):
    """Time after the creation of a batch's result files at which the files are deleted."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class CreateBatch(WireModel):
    """The body of ``POST /v1/batches``."""

    input_file_id: str = Field(max_length=64)
    endpoint: str
    completion_window: str
    metadata: (
        dict[
            Annotated[str, StringConstraints(max_length=64)],
            Annotated[str, StringConstraints(max_length=512)],
        ]
        | None
    ) = None
    output_expires_after: OutputExpiry | None = None

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        if endpoint not in ENDPOINTS:
            raise ValueError(f"must be one of {', '.join(ENDPOINTS)}")
        return endpoint

    @field_validator("completion_window")
    @classmethod
    def _check_window(cls, window: str) -> str:
        if window != "24h":
            raise ValueError("must be 24h")
        return window

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        if metadata is not None and len(metadata) > _MAX_METADATA:
            raise ValueError(f"must have at most {_MAX_METADATA} members")
        return metadata

    def to_domain(self, caller: Identity) -> TextBatch:
        """Return a new batch that belongs to the caller."""
        created_at = datetime.now(UTC)
        return TextBatch(
            id=new_batch_id(BatchDialect.OPENAI),
            owner=caller.owner,
            dialect=BatchDialect.OPENAI,
            endpoint=self.endpoint,
            input_file_id=self.input_file_id,
            created_at=created_at,
            expires_at=created_at + COMPLETION_WINDOW,
            key_id=caller.key_id,
            user=caller.user,
            scopes=caller.scopes,
            metadata=self.metadata or {},
            output_expires_after=(
                None if self.output_expires_after is None else self.output_expires_after.seconds
            ),
        )


class InvalidLine(MoyinError):
    """Raised for an invalid line of an input file; ``field`` names the invalid member."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.line_code = code


class OpenAIBatchFormat:
    """Implements `moyin.text.batches.formats.BatchFormat` for OpenAI's batches."""

    has_error_file = True
    max_lines = MAX_LINES

    def check_line(self, line: bytes, endpoint: str) -> str:
        data = _parse_line(line)
        custom_id = _get_text(data, "custom_id")
        if not 0 < len(custom_id) <= MAX_CUSTOM_ID or "\0" in custom_id:
            raise InvalidLine(
                "invalid_custom_id",
                f"custom_id must have 1 to {MAX_CUSTOM_ID} characters, without NUL",
                "custom_id",
            )
        if _get_text(data, "method") != "POST":
            raise InvalidLine("invalid_method", "method must be POST", "method")
        if _get_text(data, "url") != endpoint:
            raise InvalidLine(
                "mismatched_url", f"url must be the batch's endpoint, {endpoint}", "url"
            )
        body = data.get("body")
        if not isinstance(body, dict):
            raise InvalidLine(
                "missing_required_parameter", "body must be a JSON object: the request", "body"
            )
        if not isinstance(body.get("model"), str):
            raise InvalidLine(
                "missing_required_parameter", "body.model must name a model", "body.model"
            )
        for name in _STREAMING:
            if body.get(name):
                raise InvalidLine(
                    "unsupported_parameter",
                    f"body.{name} must be false: a batch's answers are files",
                    f"body.{name}",
                )
        return custom_id

    def read_body(self, line: bytes) -> bytes:
        return to_json(_parse_line(line)["body"])

    def render_result(self, batch: TextBatch, line: BatchLine) -> bytes:
        request_id = get_line_request_id(batch.id, line.number)
        first_members: dict[str, Any] = {
            "id": f"batch_req_{request_id}",
            "custom_id": line.custom_id,
        }
        if line.result is None:
            is_cancelled = batch.cancelling_at is not None
            code = CANCELLED_LINE if is_cancelled else EXPIRED_LINE
            error = {"code": code, "message": _UNRUN_MESSAGES[code]}
            return to_json({**first_members, "response": None, "error": error})
        response = {"status_code": line.result.http_status, "request_id": request_id}
        return b'%b,"response":%b,"body":%b},"error":null}' % (
            to_json(first_members)[:-1],
            to_json(response)[:-1],
            remove_line_breaks(line.result.body),
        )


def remove_line_breaks(body: bytes) -> bytes:
    """Replace line breaks in JSON by spaces, which mean the same between tokens."""
    return body.replace(b"\n", b" ").replace(b"\r", b" ") if b"\n" in body else body


def render_batch(batch: TextBatch) -> dict[str, Any]:
    """Render a batch as OpenAI's batch object."""
    status, ended_at = batch.status, _to_seconds(batch.ended_at)
    expired_at = ended_at if status is BatchStatus.EXPIRED else None
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": None if not batch.errors else _render_errors(batch),
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": status.value,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": _to_seconds(batch.created_at),
        "in_progress_at": _to_seconds(batch.in_progress_at),
        "expires_at": _to_seconds(batch.expires_at),
        "finalizing_at": _to_seconds(batch.finalizing_at),
        "completed_at": ended_at if status is BatchStatus.COMPLETED else None,
        "failed_at": ended_at if status is BatchStatus.FAILED else None,
        "expired_at": expired_at,
        "cancelling_at": _to_seconds(batch.cancelling_at),
        "cancelled_at": ended_at if status is BatchStatus.CANCELLED else None,
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "metadata": dict(batch.metadata) or None,
    }


def render_batch_page(page: list[TextBatch], has_more: bool) -> dict[str, Any]:
    """Render a page of batches as OpenAI's list object.

    Args:
        has_more: True if another page follows.
    """
    return {
        "object": "list",
        "data": [render_batch(batch) for batch in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": has_more,
    }


def compute_output_expiry(batch: TextBatch, created_at: datetime) -> datetime | None:
    """Return the time at which result files that were created at ``created_at`` are deleted.

    None means never.
    """
    if batch.output_expires_after is None:
        return None
    return created_at + timedelta(seconds=batch.output_expires_after)


def _render_errors(batch: TextBatch) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [
            {"code": e.code, "message": e.message, "line": e.line, "param": e.param}
            for e in batch.errors
        ],
    }


def _to_seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _parse_line(line: bytes) -> Mapping[str, Any]:
    try:
        return parse_object(line)
    except InvalidRequest:
        raise InvalidLine("invalid_json_line", "the line must be a JSON object") from None
    except MoyinError:
        raise InvalidLine("invalid_json_line", "the line must be valid JSON") from None


def _get_text(data: Mapping[str, Any], name: str) -> str:
    text = data.get(name)
    if not isinstance(text, str):
        raise InvalidLine("missing_required_parameter", f"{name} must be a string", name)
    return text
