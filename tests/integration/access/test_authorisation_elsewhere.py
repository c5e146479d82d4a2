"""Tests which roles may use the endpoints that OpenAPI omits, such as gRPC and WebSockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
import grpc

from moyin.comfy_api.protocol.paths import is_comfyui_path
from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.moyin_pb2_grpc import MoyinStub
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.chaos.client import StackClient
from tests.chaos.graphs import sleepy
from tests.integration.access.test_authorisation import (
    GATEWAY,
    GATEWAY_ROLES,
    create_bearers,
    create_gateway_bearers,
    create_render_job,
    find_matrix_differences,
    websocket_to_matrix_character,
)
from tests.integration.gateway.fixtures import Farm
from tests.stack import RunningStack

# As in test_authorisation, by role: nobody, player, text, reader, writer, everything, other tenant.
UNLISTED = {
    "GET /": "+++++++",
    "GET /docs": "+++++++",
    "GET /docs/swagger-ui.css": "+++++++",
    "GET /openapi.json": "+++++++",
    "GET /comfy": "+++++++",
    "GET /console": "+++++++",
    "GET /console/none.js": "hhhhhhh",
    "GET /comfy/": "-------",  # of a browser's cookie alone: it asks for a key, without a code
    "HEAD /artifacts/{artifact_id}": "-xx+x+h",
    "HEAD /api/v2/assets/by-hash/{digest}": "-xx+x+h",
    "GET /no/such/route": "-xxhxhh",
}
CALLS = {
    "Chat": "-xhxxhh",  # there is no such model
    "SubmitJob": "-xxx+++",
    "GetJob": "-xx+x+h",
    "WatchJob": "-xx+x+h",
    "CancelJob": "-xxx++h",
    "RetryJob": "-xxx++h",  # it has succeeded
    "DeleteJob": "-xxx++h",  # it has not ended
    "ListJobs": "-xx+x++",
}
SOCKETS = ("/ws", "/api/ws", "/comfy/ws")


async def test_undescribed_gateway_routes_match_the_matrix(farm: Farm) -> None:
    bearers, job_id = await create_gateway_bearers(farm), await create_render_job(farm)
    async with aiohttp.ClientSession(farm.url) as session:
        bearer_routes = {
            route: outcomes for route, outcomes in UNLISTED.items() if route != "GET /comfy/"
        }
        assert await find_matrix_differences(farm, session, bearers, job_id, bearer_routes) == {}
        for bearer in bearers.values():
            headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
            async with session.get("/comfy/", headers=headers) as response:
                assert response.status == 401


async def test_other_addresses_of_comfyuis_api_match_the_matrix(farm: Farm) -> None:
    bearers = await create_gateway_bearers(farm)
    comfyui_routes = {
        route: expected
        for route, expected in GATEWAY.items()
        if is_comfyui_path(path := route.split(" ")[1]) and not path.startswith(("/api/", "/v2/"))
    }
    assert len(comfyui_routes) > 40
    async with aiohttp.ClientSession(farm.url) as session:
        for base_path in ("/api", "/comfy/api"):
            job_id = await create_render_job(farm)
            assert (
                await find_matrix_differences(
                    farm, session, bearers, job_id, comfyui_routes, base_path
                )
                == {}
            ), base_path
        for path in SOCKETS:
            outcomes = [
                await websocket_to_matrix_character(session, path, bearer)
                for bearer in bearers.values()
            ]
            assert "".join(outcomes) == GATEWAY["GET /queue"], path


async def test_other_tenants_cannot_see_a_batch(farm: Farm) -> None:
    graph = {"1": {"class_type": "KSampler", "inputs": {"seed": 1}}}
    body = {"kind": "render", "workflow": graph, "batch": {"seeds": 2}}
    batch_id = (await farm.submit_job(body))["id"]
    assert len((await farm.fetch_job(batch_id))["children"]) == 2
    for method, path in (
        ("GET", f"/jobs/{batch_id}"),
        ("GET", f"/jobs/{batch_id}/events"),
        ("POST", f"/jobs/{batch_id}/cancel"),
        ("POST", f"/jobs/{batch_id}/retry"),
    ):
        async with farm.other.request(method, path) as response:
            assert (response.status, (await response.json())["code"]) == (404, "job_not_found")
    async with farm.other.get("/jobs") as response:
        assert (await response.json())["jobs"] == []


async def test_grpc_calls_match_the_matrix(gateway: RunningStack) -> None:
    database = Database(gateway.settings.sql_url)
    bearers = await create_bearers(KeyStore(database), "grpc")
    await database.close()
    client = StackClient(gateway.url, str(bearers["everything"]))
    job_id = client.submit({"kind": "http", "request": {"method": "GET", "path": "/v1/models"}})
    client.wait(job_id, {"succeeded"}, 120)
    unfinished_job_id = client.submit({"kind": "render", "workflow": sleepy(600, 0x6363)})
    requests = {
        "Chat": pb.ChatRequest(
            model="no-such", messages=[pb.ChatMessage(role="user", content="x")]
        ),
        "SubmitJob": pb.SubmitJobRequest(job_json="{}"),
        "GetJob": pb.GetJobRequest(id=job_id),
        "WatchJob": pb.WatchJobRequest(id=job_id),
        "CancelJob": pb.CancelJobRequest(id=job_id),
        "RetryJob": pb.RetryJobRequest(id=job_id),
        "DeleteJob": pb.DeleteJobRequest(id=unfinished_job_id),
        "ListJobs": pb.ListJobsRequest(),
    }
    assert CALLS.keys() == requests.keys() == {m.name for m in SERVICE.methods}
    outcomes: dict[str, str] = dict.fromkeys(CALLS, "")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.ports.grpc}") as channel:
        stub = MoyinStub(channel)
        for role in GATEWAY_ROLES:
            for name, request in requests.items():
                outcomes[name] += await _grpc_call_to_matrix_character(
                    getattr(stub, name), request, bearers[role]
                )
        metadata = [("authorization", f"Bearer {bearers['everything']}")]
        await stub.CancelJob(pb.CancelJobRequest(id=unfinished_job_id), metadata=metadata)
    assert outcomes == CALLS


SERVICE = pb.DESCRIPTOR.services_by_name["Moyin"]
_JUDGEMENTS: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAUTHENTICATED: "-",
    grpc.StatusCode.PERMISSION_DENIED: "x",
    grpc.StatusCode.NOT_FOUND: "h",
    grpc.StatusCode.INVALID_ARGUMENT: "+",
    grpc.StatusCode.FAILED_PRECONDITION: "+",
}


async def _grpc_call_to_matrix_character(call: Any, request: Any, bearer: str | None) -> str:
    metadata = [("application", "gateway")]
    if bearer is not None:
        metadata.append(("authorization", f"Bearer {bearer}"))
    try:
        response = call(request, metadata=metadata)
        if hasattr(response, "__aiter__"):
            async for _ in response:
                continue
        else:
            await response
    except grpc.aio.AioRpcError as error:
        return _JUDGEMENTS[error.code()]
    return "+"
