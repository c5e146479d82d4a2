"""`GrpcBridge`: the five calls of moyin.v1, made over the door's HTTP with the caller's own key."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import grpc

from moyin.errors import StreamInterrupted
from moyin.http.client import BodyTooLong, read_up_to
from moyin.http.sse import FrameSplitter
from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.faults import Fault, fault_of, stream_fault
from moyin.jobs.grpc.translate import chat_body, chat_event, job_event, job_message

__all__ = ["GrpcBridge", "NoBridge"]

Metadata = Iterable[tuple[str, Any]]
# What of a call's metadata is meant for the door.
_PASSED = frozenset({"authorization", "x-api-key", "x-request-id"})
_CONNECT_SECONDS = 5.0
# The door's own deadlines come first; this bounds a silence that they do not.
_SILENCE_SECONDS = 900.0
_COST = b": x-moyin-cost-usd="
_MAX_ERROR_BYTES = 64 * 1024


class GrpcBridge:
    """Every method may raise `Fault`.

    Args:
        door: HTTP address of the door.
    """

    def __init__(self, door: str) -> None:
        self._door = door.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def chat(
        self, request: pb.ChatRequest, metadata: Metadata
    ) -> AsyncGenerator[pb.ChatEvent, None]:
        """The answer as it is written."""
        body = chat_body(request)
        async with self._call("POST", "/v1/chat/completions", metadata, json_body=body) as answer:
            first = pb.ChatEvent(
                model=answer.headers.get("x-moyin-model", ""),
                backend=answer.headers.get("x-moyin-backend", ""),
            )
            yield first
            async for frame in _frames(answer):
                if frame.raw.startswith(_COST):
                    yield pb.ChatEvent(cost_usd=float(frame.raw[len(_COST) :]))
                elif frame.data is not None and frame.data != b"[DONE]":
                    chunk = json.loads(frame.data)
                    if "error" in chunk:
                        # It had begun; the status of an error before would be another.
                        raise stream_fault(502, answer.headers, frame.data)
                    event = chat_event(chunk)
                    if event.ByteSize():
                        yield event

    async def submit_job(self, request: pb.SubmitJobRequest, metadata: Metadata) -> pb.Job:
        """The accepted job."""
        headers = {"content-type": "application/json"}
        if request.idempotency_key:
            headers["idempotency-key"] = _header(request.idempotency_key, "idempotency_key")
        body = request.job_json.encode()
        return await self._job("POST", "/jobs", metadata, body=body, headers=headers)

    async def get_job(self, request: pb.GetJobRequest, metadata: Metadata) -> pb.Job:
        """The job with its outputs."""
        return await self._job("GET", f"/jobs/{_segment(request.id)}", metadata)

    async def cancel_job(self, request: pb.CancelJobRequest, metadata: Metadata) -> pb.Job:
        """The job, which ends soon."""
        return await self._job("POST", f"/jobs/{_segment(request.id)}/cancel", metadata)

    async def watch_job(
        self, request: pb.WatchJobRequest, metadata: Metadata
    ) -> AsyncGenerator[pb.JobEvent, None]:
        """The job's events to its end."""
        headers = {"last-event-id": _header(request.after, "after")} if request.after else {}
        path = f"/jobs/{_segment(request.id)}/events"
        async with self._call("GET", path, metadata, headers=headers) as answer:
            async for frame in _frames(answer):
                event = job_event(frame.raw)
                if event is not None and event.type == "error":
                    raise stream_fault(503, answer.headers, event.data_json.encode())
                if event is not None:
                    yield event

    async def _job(
        self,
        method: str,
        path: str,
        metadata: Metadata,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> pb.Job:
        async with self._call(method, path, metadata, body=body, headers=headers) as answer:
            return job_message(await answer.json())

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        metadata: Metadata,
        *,
        body: bytes | None = None,
        json_body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = dict(headers or {})
        sent.update((k, v) for k, v in metadata if k in _PASSED and isinstance(v, str))
        try:
            async with self._open().request(
                method, self._door + path, data=body, json=json_body, headers=sent,
                allow_redirects=False,
            ) as answer:  # fmt: skip
                if answer.status >= 400:
                    raise fault_of(answer.status, answer.headers, await _told(answer))
                yield answer
        except TimeoutError as error:
            raise _gone(grpc.StatusCode.DEADLINE_EXCEEDED, "backend_timeout") from error
        except (aiohttp.ClientError, OSError, StreamInterrupted) as error:
            raise _gone(grpc.StatusCode.UNAVAILABLE, "service_unavailable") from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
                ),
            )
        return self._session


class NoBridge(GrpcBridge):
    """Of an app to which Serve brings the calls where a client names it, and which has none of them."""

    def __init__(self) -> None:
        super().__init__("")

    @asynccontextmanager
    async def _call(self, *_: Any, **__: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        told = "these calls are the gateway's: send the metadata application: gateway"
        raise Fault(grpc.StatusCode.UNIMPLEMENTED, "route_not_found", told)
        yield


async def _frames(answer: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    splitter = FrameSplitter()
    async for piece in answer.content.iter_any():
        for frame in splitter.feed(piece):
            yield frame


async def _told(answer: aiohttp.ClientResponse) -> bytes:
    try:
        return await read_up_to(answer, _MAX_ERROR_BYTES)
    except BodyTooLong:
        # No JSON without its end; the status still tells something.
        return b""


def _header(value: str, field: str) -> str:
    """A field of a message as a header's value."""
    if any(character < " " or character == "\x7f" for character in value):
        raise Fault(
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_request",
            f"{field} must not contain control characters",
            field=field,
        )
    return value


def _segment(job_id: str) -> str:
    """The id as one segment of a path, whatever it is."""
    if job_id in ("", ".", ".."):
        raise Fault(
            grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", "id must be a job's", field="id"
        )
    return quote(job_id, safe="")


def _gone(status: grpc.StatusCode, code: str) -> Fault:
    return Fault(status, code, "the service behind the door did not answer", retry_after=1)
