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
async def departures() -> AsyncIterator[tuple[int, asyncio.Semaphore]]:
    """Run a service that never responds.

    Yields its port, and a semaphore that is released at each disconnect that the service notices.
    """
    departure_count = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(BODY)
        with suppress(ConnectionError):
            await reader.read()
        departure_count.release()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], departure_count


async def test_disconnect_of_a_client_reaches_the_service(
    departures: tuple[int, asyncio.Semaphore], tmp_path: Path
) -> None:
    """HAProxy must tell the service when a client disconnects before the response.

    The head and the body of the request are sent separately, as most clients do.
    """
    service, departure_count = departures
    async with _run_haproxy(tmp_path, service) as port:
        for _ in range(CLIENTS):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            for part in (HEAD, BODY):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
            writer.close()
            await writer.wait_closed()
            async with asyncio.timeout(10):
                await departure_count.acquire()


@asynccontextmanager
async def _run_haproxy(folder: Path, service: int) -> AsyncIterator[int]:
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(_CONFIG.format(port=port, service=service))
    launcher = Path(ray.__file__).with_name("haproxy.sh")
    process = await asyncio.create_subprocess_exec(
        "sh", launcher, "-db", "-f", config, env={**os.environ, **ray.build_ray_environ()}
    )
    try:
        await eventually(lambda: listens(port))
        yield port
    finally:
        process.kill()
        await process.wait()
