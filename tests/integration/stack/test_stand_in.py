"""Tests that something answers at the entrance while Serve's HAProxy is gone, with a real HAProxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import grpc
import pytest

from moyin.jobs.grpc import moyin_pb2, moyin_pb2_grpc
from moyin.stack import ray
from moyin.stack.options import Options
from moyin.stack.stand_in import StandIn, count_listening_sockets, is_port_free
from moyin.system.processes import find_processes
from tests.stack import free_port_base
from tests.waiting import eventually


@pytest.fixture
async def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Options]:
    """Run a stand-in for a stack that never starts, and yield the stack's options."""
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    options = Options.read(port_base=free_port_base())
    options.layout.prepare()
    ray.prepare_files(options)
    task = asyncio.create_task(StandIn(options).run())
    try:
        await eventually(lambda: count_listening_sockets(options.ports.grpc))
        yield options
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert list(find_processes(options.stack_id)) == []
        options.layout.remove_runtime_files()


async def test_requests_are_refused_in_the_format_of_their_protocol(options: Options) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{options.ports.door}") as http:
        async with http.get("/jobs") as response:
            assert (response.status, response.headers["retry-after"]) == (503, "5")
            assert (await response.json(content_type=None))["code"] == "service_unavailable"
            # So the next request reaches Serve's HAProxy as soon as there is one.
            assert response.headers["connection"] == "close"
        async with http.post("/v1/messages", json={}) as response:
            assert (await response.json())["error"]["type"] == "overloaded_error"


async def test_grpc_calls_are_unavailable(options: Options) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{options.ports.grpc}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await moyin_pb2_grpc.MoyinStub(channel).GetJob(moyin_pb2.GetJobRequest(id="1"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the service is starting or restarting; try again"


async def test_the_stand_in_ends_while_another_server_listens(options: Options) -> None:
    port = options.ports.door
    async with _listening_beside(port):
        await eventually(lambda: not list(find_processes(options.stack_id)))
        assert count_listening_sockets(port) == 1
        assert not is_port_free("127.0.0.1", port)
    await eventually(lambda: count_listening_sockets(port) == 1)
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{port}/healthz") as response,
    ):
        assert response.status == 503


@asynccontextmanager
async def _listening_beside(port: int) -> AsyncIterator[None]:
    """Listen as Serve's HAProxy does, although another process listens already."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield
