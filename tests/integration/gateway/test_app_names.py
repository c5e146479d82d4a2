"""Tests that a caller without a key does not learn the names of the farm's apps."""

from __future__ import annotations

import aiohttp
import grpc
import pytest
from ray.serve.generated import serve_pb2, serve_pb2_grpc

from tests.stack import RunningStack

APPS = ("gateway", "models", "accounts", "render-default", "workers")


@pytest.mark.parametrize("path", ["/-/routes", "/-/Routes", "/-/routes?x=1", "/-/routes/"])
async def test_the_list_of_routes_requires_a_key(gateway: RunningStack, path: str) -> None:
    async with aiohttp.ClientSession(gateway.url) as session:
        async with session.get(path) as response:
            problem = await response.json()
            assert (response.status, problem["code"]) == (401, "missing_api_key")
            assert response.content_type == "application/problem+json"
        bearer_headers = {"authorization": f"Bearer {gateway.api_key}"}
        async with session.get(path, headers=bearer_headers) as response:
            problem = await response.json()
            assert (response.status, problem["code"]) == (404, "route_not_found")


async def test_health_checks_need_no_key_and_reveal_no_app_names(gateway: RunningStack) -> None:
    async with aiohttp.ClientSession(gateway.url) as session, session.get("/-/healthz") as response:
        assert response.status == 200
        text = await response.text()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.ports.grpc}") as channel:
        stub = serve_pb2_grpc.RayServeAPIServiceStub(channel)
        call = stub.Healthz(serve_pb2.HealthzRequest())
        assert await call.code() is grpc.StatusCode.OK
        text += await call.details()
    assert not [name for name in APPS if name in text]


@pytest.mark.parametrize("app", ["", "gateway"])
async def test_grpc_lists_no_applications(gateway: RunningStack, app: str) -> None:
    metadata = [("application", app)] if app else []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.ports.grpc}") as channel:
        stub = serve_pb2_grpc.RayServeAPIServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as exc_info:
            await stub.ListApplications(serve_pb2.ListApplicationsRequest(), metadata=metadata)
    assert exc_info.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not [name for name in APPS if name in (exc_info.value.details() or "")]
