from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
import uvicorn
import uvloop
from ray.serve._private.http_util import start_asgi_http_server
from ray.serve.config import HTTPOptions

from deployments.server import ReplicaServer

CLIENTS = 64
LEAK = """
import sys, time
from deployments.server import limit_memory
limit_memory(int(sys.argv[1]))
held = [bytearray(2**20)]
while len(held) < int(sys.argv[2]):
    held.append(bytearray(2**20))
    time.sleep(0.005)
print("survived", flush=True)
"""


async def _accept_connections(server_class: type[uvicorn.Server]) -> int:
    """Return how many iterations of the event loop a server needs to accept `CLIENTS` clients."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    config = uvicorn.Config(lambda: None, factory=True, lifespan="off", log_config=None)
    config.load()
    server = server_class(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    iteration_count = 0
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(socket.create_connection(address))
        while len(server.server_state.connections) < CLIENTS:
            iteration_count += 1
            assert iteration_count < 10 * CLIENTS
            await asyncio.sleep(0)
    await server.shutdown([listener])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return iteration_count


def _count_iterations(server_class: type[uvicorn.Server]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_accept_connections(server_class))


def test_several_connections_are_accepted_per_iteration() -> None:
    assert _count_iterations(ReplicaServer) <= CLIENTS // 8
    # `uvicorn.Server` itself may have been replaced by ours in this process.
    [base_class] = ReplicaServer.__bases__
    assert _count_iterations(base_class) >= CLIENTS, (
        "uvicorn's server is fast enough now: remove ours"
    )


async def test_serve_creates_the_server_class_for_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray must use the server class that `deployments.middleware` puts in place of uvicorn's."""
    monkeypatch.setattr(uvicorn, "Server", ReplicaServer)

    async def app(*_: object) -> None:
        raise AssertionError("no request is sent")

    loop = asyncio.get_running_loop()
    options = HTTPOptions(host="127.0.0.1", port=0)
    serving_task, server = await start_asgi_http_server(app, options, event_loop=loop)
    server.should_exit = True
    await serving_task
    assert isinstance(server, ReplicaServer)
    assert server.config.ws_max_size == 2**20


def _run_leaking_process(limit_mib: int, leak_mib: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LEAK, str(limit_mib), str(leak_mib)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_leak_above_the_limit_ends_the_process() -> None:
    leaking_process = _run_leaking_process(200, 2_000)
    assert (leaking_process.returncode, leaking_process.stdout) == (70, "")
    assert "this replica uses" in leaking_process.stderr


def test_process_survives_without_a_limit_and_below_it() -> None:
    assert _run_leaking_process(0, 50).stdout == "survived\n"
    assert _run_leaking_process(1_000, 50).stdout == "survived\n"
