"""Implements the gRPC API moyin.v1 by requests to the gateway's HTTP API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from itertools import accumulate
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import grpc
from google.protobuf.empty_pb2 import Empty

from moyin.client.errors import GatewayUnreachable, RequestRefused
from moyin.client.gateway import GatewayClient, read_events, read_frames
from moyin.errors import StreamInterrupted
from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.faults import (
    Fault,
    Metadata,
    answer_call,
    new_field_fault,
    stream_call,
    to_fault,
    to_stream_fault,
)
from moyin.jobs.grpc.health import HealthCalls
from moyin.jobs.grpc.translate import (
    to_chat_body,
    to_chat_event,
    to_job_event,
    to_job_message,
    to_jobs_query,
)

# The only metadata of a call that becomes headers of the HTTP request.
_PASSED = frozenset({"authorization", "x-api-key", "x-request-id"})
# A limit longer than those of the gateway, for streams without a limit of their own.
_SILENCE_SECONDS = 900.0
_COST = b": x-moyin-cost-usd="
# HAProxy would refuse a request with headers of more than 16 KiB, without one of Moyin's error
# codes.
_MAX_QUERY = 12_000
# By default, clients of gRPC refuse messages of more than 4 MiB.
_MAX_PAGE_BYTES = 3_500_000
# A check of readiness takes long, because the gateway checks each service for up to two seconds.
_READY_SECONDS = 5.0
_NOT_READY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class GrpcBridge:
    """Turns gRPC calls into HTTP requests to the gateway, and its error responses into `Fault`."""

    def __init__(self, url: str) -> None:
        self._gateway = GatewayClient(url, silence_seconds=_SILENCE_SECONDS)

    async def close(self) -> None:
        await self._gateway.close()

    async def chat(
        self, request: pb.ChatRequest, metadata: Metadata
    ) -> AsyncGenerator[pb.ChatEvent, None]:
        """Send a chat request and yield the events of the model's answer."""
        body = to_chat_body(request)
        async with self._open("POST", "/v1/chat/completions", metadata, body) as response:
            yield pb.ChatEvent(
                model=response.headers.get("x-moyin-model", ""),
                backend=response.headers.get("x-moyin-backend", ""),
            )
            async for frame in read_frames(response):
                if frame.raw.startswith(_COST):
                    yield pb.ChatEvent(cost_usd=float(frame.raw[len(_COST) :]))
                elif frame.data is not None and frame.data != b"[DONE]":
                    chunk = json.loads(frame.data)
                    if "error" in chunk:
                        raise to_stream_fault(502, response.headers, frame.data)
                    event = to_chat_event(chunk)
                    if event.ByteSize():
                        yield event

    async def submit_job(self, request: pb.SubmitJobRequest, metadata: Metadata) -> pb.Job:
        headers = {"content-type": "application/json"}
        if request.idempotency_key:
            headers["idempotency-key"] = _to_header_value(
                request.idempotency_key, "idempotency_key"
            )
        return await self._request_job(
            "POST", "/jobs", metadata, request.job_json.encode(), headers
        )

    async def get_job(self, request: pb.GetJobRequest, metadata: Metadata) -> pb.Job:
        return await self._request_job("GET", f"/jobs/{_encode_id(request.id)}", metadata)

    async def cancel_job(self, request: pb.CancelJobRequest, metadata: Metadata) -> pb.Job:
        """Request the cancellation of a job and return the job, which may still be running."""
        return await self._request_job("POST", f"/jobs/{_encode_id(request.id)}/cancel", metadata)

    async def retry_job(self, request: pb.RetryJobRequest, metadata: Metadata) -> pb.Job:
        """Continue a failed or cancelled job after its last finished step, and return the job."""
        return await self._request_job("POST", f"/jobs/{_encode_id(request.id)}/retry", metadata)

    async def delete_job(self, request: pb.DeleteJobRequest, metadata: Metadata) -> Empty:
        """Delete an ended job with its events and files."""
        async with self._open("DELETE", f"/jobs/{_encode_id(request.id)}", metadata):
            return Empty()

    async def list_jobs(
        self, request: pb.ListJobsRequest, metadata: Metadata
    ) -> pb.ListJobsResponse:
        """Return a page of the caller's jobs, newest first.

        The page has fewer jobs than the limit if a message with all of them would be too large for
        clients.
        """
        page = await self._list_page(request, metadata)
        while (fitting_count := _count_fitting_jobs(page)) < len(page.jobs):
            smaller_request = pb.ListJobsRequest()
            smaller_request.CopyFrom(request)
            smaller_request.limit = fitting_count
            page = await self._list_page(smaller_request, metadata)
        return page

    async def _list_page(
        self, request: pb.ListJobsRequest, metadata: Metadata
    ) -> pb.ListJobsResponse:
        query = urlencode(to_jobs_query(request))
        if len(query) > _MAX_QUERY:
            raise new_field_fault(
                "request", f"must have filters of at most {_MAX_QUERY} bytes in total"
            )
        async with self._open("GET", f"/jobs?{query}", metadata) as response:
            page = await response.json()
        return pb.ListJobsResponse(
            jobs=map(to_job_message, page["jobs"]), next_cursor=page["next_cursor"]
        )

    async def is_ready(self) -> bool:
        """Return True if the gateway and the services that jobs need respond."""
        try:
            async with asyncio.timeout(_READY_SECONDS), self._open("GET", "/readyz", ()):
                return True
        except TimeoutError:
            return False
        except Fault as fault:
            if fault.status in _NOT_READY:
                return False
            raise

    async def watch_job(
        self, request: pb.WatchJobRequest, metadata: Metadata
    ) -> AsyncGenerator[pb.JobEvent, None]:
        headers = (
            {"last-event-id": _to_header_value(request.after, "after")} if request.after else {}
        )
        path = f"/jobs/{_encode_id(request.id)}/events"
        async with self._open("GET", path, metadata, headers=headers) as response:
            async for event in read_events(response):
                if event.text is None:
                    continue
                if event.type == "error":
                    raise to_stream_fault(503, response.headers, event.text.encode())
                yield to_job_event(event.id or "", event.type, event.text)

    async def _request_job(
        self,
        method: str,
        path: str,
        metadata: Metadata,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> pb.Job:
        async with self._open(method, path, metadata, body, headers) as response:
            return to_job_message(await response.json())

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        metadata: Metadata,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request with the credentials in ``metadata`` and yield the response.

        Raises:
            Fault: the gateway refused the request, or did not respond.
        """
        all_headers = dict(headers or {})
        all_headers.update((k, v) for k, v in metadata if k in _PASSED and isinstance(v, str))
        try:
            async with self._gateway.open(
                method, path, body, headers=all_headers, is_encoded=True
            ) as response:
                yield response
        except RequestRefused as error:
            raise to_fault(error) from None
        except (GatewayUnreachable, StreamInterrupted) as error:
            has_timed_out = isinstance(error.__cause__, TimeoutError)
            raise Fault(
                grpc.StatusCode.DEADLINE_EXCEEDED if has_timed_out else grpc.StatusCode.UNAVAILABLE,
                "backend_timeout" if has_timed_out else "service_unavailable",
                f"the gateway did not respond to {method} {path.partition('?')[0]}; try again later",
                retry_after=1,
            ) from error


class RefusingBridge(GrpcBridge):
    """Refuses all gRPC calls, in apps without a gRPC API; Ray Serve may send calls to any app."""

    def __init__(self) -> None:
        super().__init__("")

    @asynccontextmanager
    async def _open(self, *_: Any, **__: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        message = "only the gateway app has this call: send the metadata application: gateway"
        raise Fault(grpc.StatusCode.UNIMPLEMENTED, "route_not_found", message)
        yield


class MoyinCalls(HealthCalls):
    """Serves moyin.v1 and health checks; gRPC and Ray Serve prescribe the names of the methods."""

    grpc_bridge: GrpcBridge

    async def Chat(
        self, request: pb.ChatRequest, grpc_context: Any
    ) -> AsyncGenerator[pb.ChatEvent, None]:
        async with aclosing(stream_call(self.grpc_bridge.chat, request, grpc_context)) as events:
            async for event in events:
                yield event

    async def SubmitJob(self, request: pb.SubmitJobRequest, grpc_context: Any) -> pb.Job:
        return await answer_call(self.grpc_bridge.submit_job, request, grpc_context, pb.Job())

    async def GetJob(self, request: pb.GetJobRequest, grpc_context: Any) -> pb.Job:
        return await answer_call(self.grpc_bridge.get_job, request, grpc_context, pb.Job())

    async def CancelJob(self, request: pb.CancelJobRequest, grpc_context: Any) -> pb.Job:
        return await answer_call(self.grpc_bridge.cancel_job, request, grpc_context, pb.Job())

    async def RetryJob(self, request: pb.RetryJobRequest, grpc_context: Any) -> pb.Job:
        return await answer_call(self.grpc_bridge.retry_job, request, grpc_context, pb.Job())

    async def DeleteJob(self, request: pb.DeleteJobRequest, grpc_context: Any) -> Empty:
        return await answer_call(self.grpc_bridge.delete_job, request, grpc_context, Empty())

    async def ListJobs(self, request: pb.ListJobsRequest, grpc_context: Any) -> pb.ListJobsResponse:
        empty_response = pb.ListJobsResponse()
        return await answer_call(self.grpc_bridge.list_jobs, request, grpc_context, empty_response)

    async def WatchJob(
        self, request: pb.WatchJobRequest, grpc_context: Any
    ) -> AsyncGenerator[pb.JobEvent, None]:
        async with aclosing(
            stream_call(self.grpc_bridge.watch_job, request, grpc_context)
        ) as events:
            async for event in events:
                yield event


def _count_fitting_jobs(page: pb.ListJobsResponse) -> int:
    """Return how many jobs from the start of a page fit into one message, but at least 1."""
    end_offsets = accumulate(job.ByteSize() for job in page.jobs)
    return max(
        sum(end_offset <= _MAX_PAGE_BYTES for end_offset in end_offsets), min(len(page.jobs), 1)
    )


def _to_header_value(value: str, field: str) -> str:
    """Return ``value`` for use in an HTTP header; raise `Fault` if it has control characters.

    Args:
        field: the name of the field with the value, for the error.
    """
    if any(character < " " or character == "\x7f" for character in value):
        raise new_field_fault(field, "must not contain control characters")
    return value


def _encode_id(job_id: str) -> str:
    """Return a job's id percent-encoded for a URL path; raise `Fault` for ids such as ``..``."""
    # Routes would read an encoded slash as another path.
    if job_id in ("", ".", "..") or "/" in job_id:
        raise new_field_fault("id", "must be the id of a job that SubmitJob has returned")
    return quote(job_id, safe="")
