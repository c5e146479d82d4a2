from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.bridge import GrpcBridge, RefusingBridge
from moyin.jobs.grpc.faults import Fault


async def send_error_in_pieces(request: web.Request) -> web.StreamResponse:
    """Respond with an error in two pieces, whose detail is as long as the job id in the path says."""
    size = int(request.match_info["id"])
    body = json.dumps({"detail": "x" * size, "code": "job_not_found"}).encode()
    response = web.StreamResponse(status=404, headers={"content-length": str(len(body))})
    await response.prepare(request)
    await response.write(body[:1_000])
    await asyncio.sleep(0.05)
    await response.write(body[1_000:])
    return response


async def end_stream_early(request: web.Request) -> web.StreamResponse:
    """Respond with a stream that ends because the caller has lost access to it."""
    error = {"code": "invalid_api_key", "message": "the key or the session has ended"}
    if request.path.endswith("/events"):
        return web.Response(text=f"event: error\ndata: {json.dumps(error)}\n\n")
    return web.Response(text=f"data: {json.dumps({'error': error})}\n\n")


async def list_jobs(request: web.Request) -> web.StreamResponse:
    """Return an empty page whose cursor is the query that was received, as JSON.

    If the filter `metadata.sizes` lists sizes in bytes, return a page of jobs of these sizes instead;
    the cursor is then the number of the next job.
    """
    if "metadata.sizes" in request.query:
        sizes = json.loads(request.query["metadata.sizes"])
        first_index = int(request.query.get("cursor", "0"))
        end_index = first_index + int(request.query.get("limit", "50"))
        jobs = [{"id": str(first_index + i), "metadata": {"x": "x" * size}}
                for i, size in enumerate(sizes[first_index:end_index])]  # fmt: skip
        return web.json_response(
            {"jobs": jobs, "next_cursor": str(end_index) if end_index < len(sizes) else None}
        )
    query = [[name, value] for name, value in request.query.items()]
    return web.json_response({"jobs": [], "next_cursor": json.dumps(query)})


@pytest.fixture
async def bridge() -> AsyncIterator[GrpcBridge]:
    app = web.Application()
    app.router.add_get("/jobs", list_jobs)
    app.router.add_get("/readyz", list_jobs)
    app.router.add_get("/jobs/{id}", send_error_in_pieces)
    app.router.add_get("/jobs/{id}/events", end_stream_early)
    app.router.add_post("/v1/chat/completions", end_stream_early)
    async with TestServer(app) as server:
        bridge = GrpcBridge(str(server.make_url("")))
        yield bridge
        await bridge.close()


@pytest.mark.parametrize(
    ("size", "code"), [("3000", "job_not_found"), ("100000", "internal_error")]
)
async def test_an_error_response_is_read_whole_unless_it_is_too_large(
    bridge: GrpcBridge, size: str, code: str
) -> None:
    with pytest.raises(Fault) as exc_info:
        await bridge.get_job(pb.GetJobRequest(id=size), ())
    assert (exc_info.value.status, exc_info.value.code) == (grpc.StatusCode.NOT_FOUND, code)


async def submit_with_key(bridge: GrpcBridge, key: str) -> object:
    return await bridge.submit_job(pb.SubmitJobRequest(job_json="{}", idempotency_key=key), ())


async def list_events_after(bridge: GrpcBridge, event_id: str) -> object:
    return [
        event async for event in bridge.watch_job(pb.WatchJobRequest(id="1", after=event_id), ())
    ]


@pytest.mark.parametrize("field_value", ["a\nb", "a\r\nx-moyin-owner: admin", "\0", "a\x7f"])
@pytest.mark.parametrize(
    ("call", "field"), [(submit_with_key, "idempotency_key"), (list_events_after, "after")]
)
async def test_a_field_with_control_characters_is_refused(
    bridge: GrpcBridge,
    call: Callable[[GrpcBridge, str], Awaitable[object]],
    field: str,
    field_value: str,
) -> None:
    with pytest.raises(Fault) as exc_info:
        await call(bridge, field_value)
    fault = (exc_info.value.status, exc_info.value.code, exc_info.value.field)
    assert fault == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", field)


@pytest.mark.parametrize("job_id", ["", ".", "..", "//", "a/b", "/"])
async def test_an_id_that_would_be_another_path_is_refused(bridge: GrpcBridge, job_id: str) -> None:
    with pytest.raises(Fault, match="id must be") as exc_info:
        await bridge.delete_job(pb.DeleteJobRequest(id=job_id), ())
    assert exc_info.value.status is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("call", [submit_with_key, list_events_after])
async def test_an_app_without_the_calls_names_the_app_that_has_them(
    call: Callable[[GrpcBridge, str], Awaitable[object]],
) -> None:
    with pytest.raises(Fault, match="application: gateway") as exc_info:
        await call(RefusingBridge(), "1")
    assert exc_info.value.status is grpc.StatusCode.UNIMPLEMENTED


async def test_a_stream_whose_key_was_revoked_ends_unauthenticated(bridge: GrpcBridge) -> None:
    request = pb.ChatRequest(model="auto", messages=[pb.ChatMessage(role="user", content="x")])
    for stream in (bridge.watch_job(pb.WatchJobRequest(id="1"), ()), bridge.chat(request, ())):
        with pytest.raises(Fault) as exc_info:
            async for _ in stream:
                continue
        fault = (exc_info.value.status, exc_info.value.code)
        assert fault == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key")


async def test_filters_reach_the_gateway_unchanged(bridge: GrpcBridge) -> None:
    metadata = {"a+b c%2F": "x&status=queued;日本\n", "": ""}
    page = await bridge.list_jobs(pb.ListJobsRequest(metadata=metadata, cursor="a+/="), ())
    assert json.loads(page.next_cursor) == [
        ["metadata.", ""], ["metadata.a+b c%2F", "x&status=queued;日本\n"], ["cursor", "a+/="],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "page_lengths"),
    [
        ([40_000] * 200, [87, 87, 26]),
        ([1_000_000] * 7, [3, 3, 1]),
        ([5_000_000, 10, 5_000_000, 10, 10], [1, 1, 1, 2]),
        ([10] * 200, [200]),
    ],
)
async def test_a_page_of_large_jobs_fits_into_a_message(
    bridge: GrpcBridge, sizes: list[int], page_lengths: list[int]
) -> None:
    request = pb.ListJobsRequest(metadata={"sizes": json.dumps(sizes)}, limit=200)
    listed_pages = [await bridge.list_jobs(request, ())]
    while listed_pages[-1].next_cursor:
        request.cursor = listed_pages[-1].next_cursor
        listed_pages.append(await bridge.list_jobs(request, ()))
    assert [len(page.jobs) for page in listed_pages] == page_lengths
    assert [job.id for page in listed_pages for job in page.jobs] == [
        str(i) for i in range(len(sizes))
    ]
    assert all(page.ByteSize() <= 4_194_304 for page in listed_pages if len(page.jobs) > 1)


async def test_a_gateway_that_does_not_respond_is_not_ready(bridge: GrpcBridge) -> None:
    assert await bridge.is_ready()
    unreachable_bridge = GrpcBridge("http://127.0.0.1:9")
    assert not await unreachable_bridge.is_ready()
    await unreachable_bridge.close()
    with pytest.raises(Fault):
        await RefusingBridge().is_ready()


async def test_filters_that_do_not_fit_into_a_request_are_refused(bridge: GrpcBridge) -> None:
    with pytest.raises(Fault) as exc_info:
        await bridge.list_jobs(pb.ListJobsRequest(metadata={"a": "x" * 12_000}), ())
    fault = (exc_info.value.status, exc_info.value.code, exc_info.value.field)
    assert fault == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", "request")
