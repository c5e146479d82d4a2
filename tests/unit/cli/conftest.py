from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moyin.client.gateway import GatewayClient
from moyin.stack.layout import Layout
from moyin.stack.state import PartState, PartStatus, Phase, StackState, SupervisorLock, write_state
from tests.unit.cli.scripted_gateway import ScriptedGateway

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def _isolate_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("MOYIN_URL", "MOYIN_API_KEY", "MOYIN_PROFILE", "MOYIN_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    yield
    shutil.rmtree(Layout(tmp_path / "data").sockets, ignore_errors=True)


@pytest.fixture
async def stub_gateway() -> AsyncIterator[tuple[GatewayClient, dict[str, Handler]]]:
    """Yield a client of a test server, and a dict by path to which the test adds handlers."""
    handlers: dict[str, Handler] = {}

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.headers["authorization"] == "Bearer key"
        return await handlers[request.path](request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    server = TestServer(app)
    await server.start_server()
    url = str(server.make_url(""))
    async with server, GatewayClient(url, api_key="key", reconnect_seconds=0) as gateway:
        yield gateway, handlers


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGateway]:
    """Run a scripted gateway, and set the environment variables that connect the CLI to it."""
    with ScriptedGateway() as scripted_gateway:
        monkeypatch.setenv("MOYIN_URL", scripted_gateway.url)
        monkeypatch.setenv("MOYIN_API_KEY", "key")
        yield scripted_gateway


@pytest.fixture
def running_stack(tmp_path: Path) -> StackState:
    """Return the state of a stack that appears to run, because this process holds its lock."""
    layout = Layout(tmp_path / "data")
    layout.prepare()
    lock = SupervisorLock(layout.lock)
    lock.acquire()
    state = StackState(
        pid=os.getpid(),
        phase=Phase.READY,
        ready_after=12.3,
        parts={"ray": PartState(status=PartStatus.UP, pid=99)},
        addresses={"gateway": "http://127.0.0.1:8000"},
    )
    write_state(layout.state, state)
    return state
