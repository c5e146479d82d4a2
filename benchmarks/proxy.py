"""Measures a service behind the gateway's reverse proxy, behind nginx, and without a proxy.

wrk sends 16 concurrent requests to a fast service. Then a thousand WebSockets and a thousand event
streams are open at once. nginx has one worker and keeps its connections to the service. The
gateway's proxy is measured twice: as deployed, behind HAProxy and inside Ray Serve, and alone under
uvicorn. In both cases it checks a key and signs an identity. A minimal forwarder shows the lowest
cost that is possible with Python and aiohttp.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from benchmarks.farm import MOCK, SERVICE, Farm
from benchmarks.load import Measurement, measure_load
from benchmarks.processes import find_free_port, running_program, wait_for_port
from benchmarks.proxied import KEY
from benchmarks.text import BODY, PeerServers, combine_measurements, running_module

T = TypeVar("T")

OPEN = 1_000
_ROUNDS = 3
_SECONDS = 4
_MESSAGES = 5
# Connections that are opened concurrently; more could overflow a server's backlog.
_CONCURRENCY = 32
_TIMEOUT_SECONDS = 120.0
_NGINX = """
worker_processes 1; worker_rlimit_nofile 16384; daemon off; pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream mock {{ server {mock}; keepalive 64; }}
  upstream service {{ server {service}; keepalive 64; }}
  map $http_upgrade $upgrade {{ default upgrade; '' ''; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1; proxy_buffering off;
    proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgrade;
    location / {{ proxy_pass http://mock; }}
    location = /events {{ proxy_pass http://service; }}
    location = /socket {{ proxy_pass http://service; }}
  }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class MeasuredServer:
    """A server that the benchmark measures.

    Attributes:
        requests: the URL for requests.
        streams: the URL for WebSockets and event streams; None if the server supports neither.
    """

    name: str
    requests: str
    streams: str | None
    key: str


@dataclass(frozen=True, kw_only=True)
class OpenConnections:
    """The results of many simultaneous connections.

    Attributes:
        held: how many of the `OPEN` connections received every message.
        p50_ms, p99_ms: the delays of the messages.
    """

    held: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class ServerResult:
    """The results of one server; ``sockets`` and ``streams`` are None if it supports no streams."""

    name: str
    load: Measurement
    sockets: OpenConnections | None
    streams: OpenConnections | None


def measure_proxy(farm: Farm, peer_servers: PeerServers) -> list[ServerResult]:
    """Measure all servers in turns; the results for requests are medians of the rounds."""
    with _run_servers(farm, peer_servers) as servers:
        measurements_by_server: dict[str, list[Measurement]] = {
            server.name: [] for server in servers
        }
        for _ in range(_ROUNDS):
            for server in servers:
                measurements_by_server[server.name].append(
                    measure_load(server.requests, body=BODY, key=server.key, seconds=_SECONDS)
                )
        return [
            ServerResult(
                name=server.name,
                load=combine_measurements(measurements_by_server[server.name]),
                sockets=_measure_held(server, _SOCKETS),
                streams=_measure_held(server, _STREAMS),
            )
            for server in servers
        ]


@dataclass(frozen=True, kw_only=True)
class _ConnectionKind:
    """A kind of connection.

    Attributes:
        open: opens a connection to a URL.
        follow: reads the messages of an open connection, and returns their delays in ms.
    """

    open: Callable[[aiohttp.ClientSession, str], Awaitable[Any]]
    follow: Callable[[Any], Awaitable[list[float]]]


def _measure_held(server: MeasuredServer, kind: _ConnectionKind) -> OpenConnections | None:
    if server.streams is None:
        return None
    delays_by_connection = asyncio.run(_measure_delays(server.streams, server.key, kind))
    held_delays = [delays for delays in delays_by_connection if delays is not None]
    percentiles = statistics.quantiles(
        [ms for delays in held_delays for ms in delays] or [0.0, 0.0], n=100
    )
    return OpenConnections(held=len(held_delays), p50_ms=percentiles[49], p99_ms=percentiles[98])


async def _measure_delays(url: str, key: str, kind: _ConnectionKind) -> list[list[float] | None]:
    """Open `OPEN` connections of a kind, and return the delays in ms of the messages on each.

    The result of a connection that broke later is None; connections that failed to open are left
    out.
    """
    semaphore = asyncio.Semaphore(_CONCURRENCY)

    async def connect(session: aiohttp.ClientSession) -> Any:
        async with semaphore:
            return await kind.open(session, url)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        connections = await asyncio.gather(*(_await_or_none(connect(session)) for _ in range(OPEN)))
        return await asyncio.gather(
            *(_await_or_none(kind.follow(c)) for c in connections if c is not None)
        )


async def _await_or_none(awaitable: Awaitable[T]) -> T | None:
    """Return the result of ``awaitable``, or None if the connection broke or timed out."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return await awaitable
    except (aiohttp.ClientError, TimeoutError, OSError, EOFError, TypeError):
        return None


async def _open_socket(session: aiohttp.ClientSession, url: str) -> Any:
    return await session.ws_connect(f"{url}/socket")


async def _measure_socket(socket: aiohttp.ClientWebSocketResponse) -> list[float]:
    """Return the round-trip times in ms of messages on a WebSocket while all others send, too."""
    trip_ms = []
    for _ in range(_MESSAGES):
        started_at = time.monotonic()
        await socket.send_str("hello")
        await socket.receive_str()
        trip_ms.append((time.monotonic() - started_at) * 1e3)
        await asyncio.sleep(0.2)
    await socket.close()
    return trip_ms


async def _open_stream(session: aiohttp.ClientSession, url: str) -> Any:
    response = await session.get(f"{url}/events")
    response.raise_for_status()
    return response


async def _measure_stream(response: aiohttp.ClientResponse) -> list[float]:
    """Return for each event of a stream the milliseconds from sending to receipt."""
    delays: list[float] = []
    # Events of the first second are ignored: they were buffered while other streams connected.
    counted_from = time.monotonic() + 1
    while len(delays) < _MESSAGES:
        event = await response.content.readuntil(b"\n\n")
        if time.monotonic() > counted_from:
            delays.append((time.monotonic() - float(event[6:])) * 1e3)
    response.close()
    return delays


_SOCKETS = _ConnectionKind(open=_open_socket, follow=_measure_socket)
_STREAMS = _ConnectionKind(open=_open_stream, follow=_measure_stream)


@contextmanager
def _run_servers(farm: Farm, peer_servers: PeerServers) -> Iterator[list[MeasuredServer]]:
    with ExitStack() as stack:
        mock_port, stream_port = find_free_port(), find_free_port()
        for port, upstream in ((mock_port, peer_servers.mock), (stream_port, peer_servers.service)):
            stack.enter_context(
                running_module(["benchmarks.proxied", "gateway", str(port), upstream])
            )
            wait_for_port(port)
        bare_server = MeasuredServer(
            name="bare service", requests=peer_servers.mock, streams=peer_servers.service, key=KEY
        )
        servers = [
            bare_server,
            MeasuredServer(
                name="bare forwarder", requests=peer_servers.forwarder, streams=None, key=KEY
            ),
            MeasuredServer(
                name="Moyin's process alone",
                requests=f"http://127.0.0.1:{mock_port}",
                streams=f"http://127.0.0.1:{stream_port}",
                key=KEY,
            ),
            MeasuredServer(
                name="Moyin",
                requests=f"{farm.url}{MOCK}",
                streams=f"{farm.url}{SERVICE}",
                key=farm.key,
            ),
        ]
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if nginx is None:
            print("nginx is left out: run `sudo apt-get install nginx-light`")
        else:
            url = stack.enter_context(_run_nginx(nginx, peer_servers))
            servers.insert(1, MeasuredServer(name="nginx", requests=url, streams=url, key=KEY))
        yield servers


@contextmanager
def _run_nginx(program: str, peer_servers: PeerServers) -> Iterator[str]:
    port = find_free_port()
    with tempfile.TemporaryDirectory() as folder:
        config_path = Path(folder) / "nginx.conf"
        mock_host, service_host = (
            url.removeprefix("http://") for url in (peer_servers.mock, peer_servers.service)
        )
        config_path.write_text(
            _NGINX.format(folder=folder, mock=mock_host, service=service_host, port=port)
        )
        with running_program([program, "-c", str(config_path), "-e", os.devnull]):
            wait_for_port(port)
            yield f"http://127.0.0.1:{port}"
