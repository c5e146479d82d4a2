"""Implements the client of OpenAI's batch API, ``/batches`` and ``/files``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote

import anyio
from pydantic_core import to_json

from moyin.domain.chat import ChatRequest, ChatResponse
from moyin.errors import (
    BackendKeyRejected,
    BackendRejected,
    ModelNotFound,
    MoyinError,
)
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
from moyin.text.protocol.openai.request_to_upstream import chat_request_to_upstream
from moyin.text.protocol.openai.response import chat_response_to_domain

_CHUNK = 256 * 1024
_PAGE = 100
_PATHS = frozenset({"/chat/completions", "/completions", "/embeddings"})
# Member of a batch's metadata that holds its key, to find a batch whose id was lost.
_KEY_MEMBER = "moyin_key"
_CLOCK_MARGIN_SECONDS = 300
_STATES = {
    "completed": RemoteState.ENDED,
    "expired": RemoteState.ENDED,
    "cancelled": RemoteState.ENDED,
    "failed": RemoteState.REJECTED,
}
# Error codes of lines that the back end did not run.
_UNANSWERED_CODES = frozenset({"batch_expired", "batch_cancelled"})


class OpenAIBatches:
    """Implements `BatchApi` for OpenAI's API.

    Args:
        renames_max_tokens: True to send ``max_tokens`` as ``max_completion_tokens``. This is for
            OpenAI itself, whose newer models reject the old name.
    """

    chat_path = "/chat/completions"
    identifies_by_key = True
    max_requests = 50_000
    # OpenAI accepts 200 MB.
    max_bytes = 190 * 1000 * 1000

    def __init__(self, http: HttpClient, *, renames_max_tokens: bool = False) -> None:
        self._http = http
        self._renames_max_tokens = renames_max_tokens

    def supports(self, path: str) -> bool:
        return path in _PATHS

    def encode_request(self, custom_id: str, path: str, body: Mapping[str, Any]) -> bytes:
        line = {"custom_id": custom_id, "method": "POST", "url": f"/v1{path}", "body": body}
        return to_json(line) + b"\n"

    def encode_chat(self, request: ChatRequest) -> dict[str, Any]:
        body = chat_request_to_upstream(request, stream=False)
        if self._renames_max_tokens and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
        return body

    def read_chat(self, body: Mapping[str, Any]) -> ChatResponse:
        return chat_response_to_domain(body)

    async def submit(self, payload: Payload, deadline: float) -> RemoteBatch:
        input_file = parse_object(await self._upload(payload, deadline))
        body = {
            "input_file_id": input_file.get("id"),
            "endpoint": f"/v1{payload.path}",
            "completion_window": "24h",
            "metadata": {_KEY_MEMBER: payload.key},
        }
        try:
            response_body = await self._http.post("/batches", to_json(body), deadline)
        except (BackendRejected, BackendKeyRejected, ModelNotFound):
            # The batch was not started, so the file is no longer needed.
            with suppress(MoyinError):
                await self._http.delete(f"/files/{quote(str(input_file.get('id')))}", deadline)
            raise
        return _parse_batch(parse_object(response_body))

    async def find_submitted(
        self, key: str, count: int, since: datetime, deadline: float
    ) -> AsyncGenerator[RemoteBatch, None]:
        oldest_time = since.timestamp() - _CLOCK_MARGIN_SECONDS
        page_parameter = ""
        while True:
            page = await self._get(f"/batches?limit={_PAGE}{page_parameter}", deadline)
            batches = page.get("data")
            if not isinstance(batches, list):
                raise new_malformed_response_error()
            for data in batches:
                if data.get("created_at", 0) < oldest_time:
                    return
                if (data.get("metadata") or {}).get(_KEY_MEMBER) == key:
                    yield _parse_batch(data)
            if not page.get("has_more") or not batches:
                return
            page_parameter = f"&after={quote(batches[-1]['id'])}"

    async def poll(self, batch_id: str, deadline: float) -> RemoteBatch:
        return _parse_batch(await self._get(f"/batches/{quote(batch_id)}", deadline))

    async def cancel(self, batch_id: str, deadline: float) -> None:
        await self._http.post(f"/batches/{quote(batch_id)}/cancel", b"", deadline)

    async def read_results(
        self, batch: RemoteBatch, deadline: float
    ) -> AsyncGenerator[RemoteResult, None]:
        for file in batch.files:
            path = f"/files/{quote(file)}/content"
            async with aclosing(self._http.download(path, deadline)) as pieces:
                async for line in read_json_lines(pieces):
                    yield _parse_result(line)

    async def discard(self, batch: RemoteBatch, deadline: float) -> None:
        input_files = () if batch.input_file is None else (batch.input_file,)
        for file in (*batch.files, *input_files):
            with suppress(ModelNotFound):
                await self._http.delete(f"/files/{quote(file)}", deadline)

    async def _get(self, path: str, deadline: float) -> dict[str, Any]:
        pieces = self._http.download(path, deadline)
        async with aclosing(pieces):
            return parse_object(b"".join([piece async for piece in pieces]))

    async def _upload(self, payload: Payload, deadline: float) -> bytes:
        boundary = f"moyin-{payload.key}"
        prefix = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
            f'filename="{payload.key}.jsonl"\r\nContent-Type: application/jsonl\r\n\r\n'
        ).encode()
        suffix = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(prefix) + payload.size + len(suffix)),
        }
        # Opened here and not in a generator, because a generator would stay open if the back end
        # responded before reading all of it.
        async with await anyio.open_file(payload.file, "rb") as file:
            body = _wrap_file(file, prefix, suffix)
            return await self._http.upload("/files", body, deadline, headers)


async def _wrap_file(
    file: anyio.AsyncFile[bytes], prefix: bytes, suffix: bytes
) -> AsyncIterator[bytes]:
    yield prefix
    while chunk := await file.read(_CHUNK):
        yield chunk
    yield suffix


def _parse_batch(data: Mapping[str, Any]) -> RemoteBatch:
    batch_id, counts = data.get("id"), data.get("request_counts")
    if not isinstance(batch_id, str):
        raise new_malformed_response_error()
    files = (data.get(name) for name in ("output_file_id", "error_file_id"))
    input_file = data.get("input_file_id")
    return RemoteBatch(
        id=batch_id,
        state=_STATES.get(data.get("status", ""), RemoteState.RUNNING),
        # `total` is zero until the back end has validated the file.
        count=(counts.get("total") if isinstance(counts, dict) else None) or None,
        reason=_find_rejection_reason(data),
        files=tuple(file for file in files if isinstance(file, str)),
        input_file=input_file if isinstance(input_file, str) else None,
    )


def _find_rejection_reason(data: Mapping[str, Any]) -> str:
    try:
        return str(data["errors"]["data"][0]["message"])
    except (KeyError, IndexError, TypeError):
        return ""


def _parse_result(line: Mapping[str, Any]) -> RemoteResult:
    custom_id, response, error = (line.get(name) for name in ("custom_id", "response", "error"))
    if not isinstance(custom_id, str):
        raise new_malformed_response_error()
    if isinstance(response, dict):
        status, body = response.get("status_code"), response.get("body")
        if not isinstance(status, int) or not isinstance(body, dict):
            raise new_malformed_response_error()
        is_answer = status == 200
        outcome = RemoteOutcome.ANSWERED if is_answer else RemoteOutcome.FAILED
        return RemoteResult(custom_id=custom_id, outcome=outcome, body=body, status=status)
    if not isinstance(error, dict):
        raise new_malformed_response_error()
    is_unanswered = error.get("code") in _UNANSWERED_CODES
    return RemoteResult(
        custom_id=custom_id,
        outcome=RemoteOutcome.UNANSWERED if is_unanswered else RemoteOutcome.FAILED,
        body={"error": error},
        status=500,
    )
