"""Tests the real HAProxy, started by our launcher, with the options that Serve gives it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from moyin.stack import ray
from tests.integration.servers import free_port, listens
from tests.waiting import eventually

CLIENTS = 30
BODY = b'{"model": "auto", "messages": []}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)
_CONFIG = """\
global
    nbthread 2
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option httplog
    option abortonclose
    option splice-request
    option splice-response
    errorfile 503 /dev/null
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend service
backend service
    http-reuse always
    server one 127.0.0.1:{service}
"""


@pytest.fixture
async def silent_service() -> AsyncIterator[tuple[int, asyncio.Semaphore]]:
    """Run a service that never responds.

    Yields its port, and a semaphore that is released at each disconnect that the service notices.
    """
    disconnect_semaphore = asyncio.Semaphore(0)

    async def never_respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(BODY)
        with suppress(ConnectionError):
            await reader.read()
        disconnect_semaphore.release()
        writer.close()

    server = await asyncio.start_server(never_respond, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], disconnect_semaphore


async def test_disconnect_of_a_client_reaches_the_service(
    silent_service: tuple[int, asyncio.Semaphore], tmp_path: Path
) -> None:
    """HAProxy must tell the service when a client disconnects before the response.

    The head and the body of the request are sent separately, as most clients do.
    """
    service_port, disconnect_semaphore = silent_service
    async with _run_haproxy(tmp_path, service_port) as port:
        for _ in range(CLIENTS):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            for request_part in (HEAD, BODY):
                writer.write(request_part)
                await writer.drain()
                await asyncio.sleep(0.01)
            writer.close()
            await writer.wait_closed()
            async with asyncio.timeout(10):
                await disconnect_semaphore.acquire()


@asynccontextmanager
async def _run_haproxy(folder: Path, service_port: int) -> AsyncIterator[int]:
    port = free_port()
    config_path = folder / "haproxy.cfg"
    config_path.write_text(_CONFIG.format(port=port, service=service_port))
    launcher = Path(ray.__file__).with_name("haproxy.sh")
    process = await asyncio.create_subprocess_exec(
        "sh", launcher, "-db", "-f", config_path, env={**os.environ, **ray.build_ray_environ()}
    )
    try:
        await eventually(lambda: listens(port))
        yield port
    finally:
        process.kill()
        await process.wait()
