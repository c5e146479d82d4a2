"""Tests that errors which HAProxy itself returns look like Moyin's own errors."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import anthropic
import grpc
import openai
import pytest
from ray.serve._private.constants import HEALTHY_MESSAGE
from ray.serve.generated.serve_pb2 import HealthzResponse
from yarl import URL

from deployments.errors import render_error
from moyin.access.gatekeeper import SECURITY_HEADERS
from moyin.comfy_api.protocol.paths import API_FIRST_SEGMENTS
from moyin.errors import MoyinError, ServiceUnavailable, WorkerLost
from moyin.jobs.grpc import moyin_pb2, moyin_pb2_grpc
from moyin.jobs.grpc.faults import Fault
from tests.integration.servers import free_port
from tests.integration.stack.serve_haproxy import HAProxyPorts, ServedApp, run_haproxy

STARTING = "the service is starting or restarting; try again"
PATHS = [
    "/", "/jobs", "/jobs/0199/events", "/artifacts/a", "/templates", "/nobody/knows/this",
    "/v1", "/v1x", "/v1/chat/completions", "/v1/embeddings", "/v1/images/generations",
    "/v1/models", "/v1/messages", "/v1/messages/count_tokens", "/v1/requests/7", "/v1/route", "/v1/feedback", "/v1/quality",
    "/v1/healthz", "/v1/ollama/api/chat", "/accounts", "/accounts/session", "/accountsx",
    *(f"/api/{name}" for name in ("chat", "generate", "tags", "show", "ps", "embed", "version")),
    "/api/chat/more", "/api/v2/jobs", "/api/v2/jobs/7", "/api/v2/assets", "/api/v2/userdata",
    *(f"/{name}" for name in sorted(API_FIRST_SEGMENTS)),
    *(f"/api/{name}" for name in sorted(API_FIRST_SEGMENTS)),
    *(f"/{name}/below/it" for name in ("prompt", "history", "jobs")),
    "/comfy", "/comfy/", "/comfy/ws", "/comfy/index.html", "/comfy/api/prompt", "/comfy/api/jobs",
    "/comfy/internal/logs", "/comfy/extensions/core/x.js", "/comfy/extensions/other/x.js",
    "/comfy/jobs", "//jobs", "/api//prompt", "/api", "/apiprompt",
    "/%70rompt", '/a"b\\c\td', "/日本", "/odd\x7f", "/pro%6dpt",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"]


@pytest.fixture
async def ports_without_apps(tmp_path: Path) -> AsyncIterator[HAProxyPorts]:
    """Run HAProxy without apps, as before the first deployment and after `serve shutdown`."""
    async with run_haproxy(tmp_path, {}) as ports:
        yield ports


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_error_has_the_format_of_the_paths_protocol(
    ports_without_apps: HAProxyPorts, http: aiohttp.ClientSession
) -> None:
    error = ServiceUnavailable(STARTING, retry_after=5)
    for path in PATHS:
        await _check_response(http, ports_without_apps, error, path)


async def test_every_method_gets_the_unavailable_error(
    ports_without_apps: HAProxyPorts, http: aiohttp.ClientSession
) -> None:
    url = f"http://127.0.0.1:{ports_without_apps.http}/jobs"
    for method in METHODS:
        async with http.request(method, url, data=b"{}") as response:
            assert response.status == 503, method
            assert (await response.json(content_type=None))["code"] == "service_unavailable"


async def test_a_head_request_gets_the_headers(
    ports_without_apps: HAProxyPorts, http: aiohttp.ClientSession
) -> None:
    async with http.head(f"http://127.0.0.1:{ports_without_apps.http}/v1/messages") as response:
        assert (response.status, response.headers["retry-after"]) == (503, "5")
        assert response.headers["request-id"] == response.headers["x-request-id"]
        assert await response.read() == b""


async def test_request_without_valid_id_gets_a_new_id(
    ports_without_apps: HAProxyPorts, http: aiohttp.ClientSession
) -> None:
    for request_id in (None, "a b", "x" * 129, "a;b", ""):
        headers = {} if request_id is None else {"x-request-id": request_id}
        async with http.get(
            f"http://127.0.0.1:{ports_without_apps.http}/jobs", headers=headers
        ) as response:
            new_request_id = response.headers["x-request-id"]
            assert (await response.json(content_type=None))["request_id"] == new_request_id
        assert re.fullmatch("[0-9a-f]{32}", new_request_id), request_id


async def test_long_path_is_truncated(
    ports_without_apps: HAProxyPorts, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"http://127.0.0.1:{ports_without_apps.http}/{'a' * 8000}") as response:
        assert response.status == 503
        assert len((await response.json(content_type=None))["instance"]) == 1024


async def test_an_app_without_replicas_is_unavailable(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    apps = {"gateway": _build_app("/"), "models": _build_app("/v1")}
    async with run_haproxy(tmp_path, apps) as ports:
        error = ServiceUnavailable(STARTING, retry_after=5)
        for path in ("/jobs", "/v1/chat/completions", "/prompt"):
            await _check_response(http, ports, error, path)


async def test_request_to_a_dying_replica_gets_an_error(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    async def close_without_answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/-/healthz" in request:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(close_without_answer, "127.0.0.1", 0)
    app = ServedApp(prefix="/", http=server.sockets[0].getsockname()[1], grpc=free_port())
    error = WorkerLost(
        "the replica ended before it answered; the request may have been carried out",
        retry_after=1,
    )
    async with server, run_haproxy(tmp_path, {"gateway": app}) as ports:
        for path in ("/jobs", "/prompt"):
            await _check_response(http, ports, error, path)


async def test_vendor_sdks_retry_unavailable_answers(ports_without_apps: HAProxyPorts) -> None:
    gateway_url = f"http://127.0.0.1:{ports_without_apps.http}"
    sent_paths: list[str] = []

    def record_path(request: Any) -> None:
        sent_paths.append(request.url.path)

    hooks = {"request": [record_path]}
    messages: Any = [{"role": "user", "content": "Hi"}]

    def call_with_openai() -> None:
        with openai.DefaultHttpxClient(event_hooks=hooks) as http:
            client = openai.OpenAI(
                base_url=f"{gateway_url}/v1", api_key="k", max_retries=1, http_client=http
            )
            client.chat.completions.create(model="auto", messages=messages)

    def call_with_anthropic() -> None:
        with anthropic.DefaultHttpxClient(event_hooks=hooks) as http:
            client = anthropic.Anthropic(
                base_url=gateway_url, api_key="k", max_retries=1, http_client=http
            )
            client.messages.create(model="auto", max_tokens=9, messages=messages)

    responses = await asyncio.gather(
        asyncio.to_thread(call_with_openai),
        asyncio.to_thread(call_with_anthropic),
        return_exceptions=True,
    )
    assert sorted(sent_paths) == ["/v1/chat/completions"] * 2 + ["/v1/messages"] * 2
    assert isinstance(responses[0], openai.InternalServerError)
    assert (responses[0].status_code, responses[0].code) == (503, "service_unavailable")
    assert isinstance(responses[1], anthropic.APIStatusError)
    assert responses[1].status_code == 503 and responses[1].request_id


@pytest.mark.parametrize("application", [None, "gateway"])
async def test_grpc_call_before_the_first_app_is_unavailable(
    application: str | None, ports_without_apps: HAProxyPorts
) -> None:
    failure = await _call_grpc(ports_without_apps, application)
    assert failure.code() == grpc.StatusCode.UNAVAILABLE
    assert failure.details() == STARTING
    trailers = dict(failure.trailing_metadata() or ())
    assert trailers["x-request-id"] == "mine"
    fault = Fault(failure.code(), "service_unavailable", STARTING, retry_after=5)
    assert trailers["grpc-status-details-bin"] == fault.to_status().SerializeToString()


@pytest.mark.parametrize(
    "apps", [["accounts"], ["accounts", "models"], ["gateway"], ["gateway", "accounts"]]
)
async def test_grpc_without_the_app_is_unavailable(apps: list[str], tmp_path: Path) -> None:
    """Calls to an app that is unknown or has no replica fail with UNAVAILABLE.

    A call without an app's name goes to the gateway.
    """
    known_apps = {name: _build_app(f"/{name}") for name in apps}
    async with run_haproxy(tmp_path, known_apps) as ports:
        for application in ("gateway", None):
            assert (await _call_grpc(ports, application)).code() == grpc.StatusCode.UNAVAILABLE


async def test_grpc_without_an_app_is_sent_to_the_gateway(tmp_path: Path) -> None:
    servers, apps = [], {}
    for name in ("accounts", "gateway"):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([_FakeReplica(name)])
        apps[name] = ServedApp(
            prefix=f"/{name}", http=free_port(), grpc=server.add_insecure_port("127.0.0.1:0")
        )
        await server.start()
        servers.append(server)
    try:
        async with run_haproxy(tmp_path, apps) as ports:
            app_names = [
                (await _call_grpc(ports, app)).details() for app in (None, "accounts", "gateway")
            ]
    finally:
        for server in servers:
            await server.stop(None)
    assert app_names == ["gateway", "accounts", "gateway"]


async def test_grpc_is_never_sent_to_serves_own_proxy(tmp_path: Path) -> None:
    """HAProxy never sends a gRPC call to Serve's own proxy.

    That proxy would answer NOT_FOUND in trailers, which HAProxy cannot change.
    """
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_FakeServeProxy()])
    fallback_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    apps = {
        "gateway": ServedApp(prefix="/", http=free_port(), grpc=free_port(), fallback=fallback_port)
    }
    try:
        async with run_haproxy(tmp_path, apps) as ports:
            # HAProxy checks twice, four times a second, before it would trust the proxy.
            failures = [await _call_grpc(ports, "gateway", pause_seconds=0.1) for _ in range(20)]
    finally:
        await server.stop(None)
    assert {failure.code() for failure in failures} == {grpc.StatusCode.UNAVAILABLE}


class _FakeReplica(grpc.GenericRpcHandler):
    """A healthy replica of an app; each call fails with a message that contains the app's name."""

    def __init__(self, app: str) -> None:
        self._app = app

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        is_health_check = call.method.endswith("/Healthz")
        return grpc.unary_unary_rpc_method_handler(
            _send_health if is_health_check else self._refuse
        )

    async def _refuse(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, self._app)
        raise AssertionError


async def _send_health(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return bytes(HealthzResponse(message=HEALTHY_MESSAGE).SerializeToString())


class _FakeServeProxy(grpc.GenericRpcHandler):
    """A fake of Serve's own proxy: it is healthy, and each call fails with NOT_FOUND."""

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        is_health_check = call.method.endswith("/Healthz")
        return grpc.unary_unary_rpc_method_handler(
            _send_health if is_health_check else self._refuse
        )

    async def _refuse(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return b""


def _build_app(prefix: str) -> ServedApp:
    return ServedApp(prefix=prefix, http=free_port(), grpc=free_port())


async def _check_response(
    http: aiohttp.ClientSession, ports: HAProxyPorts, error: MoyinError, path: str
) -> None:
    """Check that HAProxy responds to ``path`` exactly as the app behind it would for ``error``."""
    expected_response = render_error(error, "mine", path)
    url = URL(f"http://127.0.0.1:{ports.http}{quote(path)}", encoded=True)
    async with http.get(url, headers={"x-request-id": "mine"}) as response:
        body = await response.read()
    assert response.status == expected_response.status
    assert json.loads(body) == json.loads(expected_response.body)
    expected_headers = {
        **expected_response.headers,
        "x-request-id": "mine",
        **{name.decode(): value.decode() for name, value in SECURITY_HEADERS},
    }
    assert {name: response.headers.get(name) for name in expected_headers} == expected_headers


async def _call_grpc(
    ports: HAProxyPorts, application: str | None, pause_seconds: float = 0
) -> grpc.aio.AioRpcError:
    await asyncio.sleep(pause_seconds)
    metadata = [("x-request-id", "mine")]
    if application is not None:
        metadata.append(("application", application))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        stub = moyin_pb2_grpc.MoyinStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as exc_info:
            await stub.GetJob(moyin_pb2.GetJobRequest(id="7"), metadata=metadata, timeout=10)
    return exc_info.value
