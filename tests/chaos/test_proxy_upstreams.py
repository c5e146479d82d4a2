"""Tests that GET requests succeed although services behind the reverse proxy are killed."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import psutil

from tests.integration.proxy.fixtures import ProxyServer, proxy_serving
from tests.integration.servers import free_port
from tests.stack import ROOT, RecordMeasurement

CLIENTS = 16
SECONDS = 2.0
KILLS = 2


async def test_no_get_request_fails_when_upstreams_are_killed(
    record_measurement: RecordMeasurement,
) -> None:
    ports = [free_port() for _ in range(3)]
    route = {
        "name": "assets",
        "prefix": "/assets",
        "upstreams": [f"http://127.0.0.1:{port}" for port in ports],
        "retries": 2,
    }
    async with _run_services(ports) as processes, proxy_serving(route) as proxy_server:
        status_counts: Counter[tuple[str, int]] = Counter()
        load_is_over = asyncio.Event()
        load_tasks = [
            asyncio.create_task(_send_requests(proxy_server, method, status_counts, load_is_over))
            for method in ("GET", "POST")
            for _ in range(CLIENTS)
        ]
        broken_connection_count = 0
        for number in range(KILLS):
            await asyncio.sleep(SECONDS / KILLS)
            victim_index = number % len(processes)
            broken_connection_count += _count_connections(ports[victim_index])
            processes[victim_index].kill()
            await processes[victim_index].wait()
            processes[victim_index] = await _start_service(ports[victim_index])
        load_is_over.set()
        await asyncio.gather(*load_tasks)
    failed_requests = {
        method: sum(n for (m, s), n in status_counts.items() if m == method and s != 200)
        for method in ("GET", "POST")
    }
    record_measurement(
        f"{KILLS} kills under {sum(status_counts.values())} requests, "
        f"{broken_connection_count} connections died: "
        f"failed {failed_requests}"
    )
    assert status_counts["GET", 200] > 100 and status_counts["POST", 200] > 100
    assert failed_requests["GET"] == 0
    # At most one POST request fails for each broken connection, and one per client and kill.
    assert failed_requests["POST"] <= min(broken_connection_count, KILLS * CLIENTS)


async def _send_requests(
    proxy_server: ProxyServer,
    method: str,
    status_counts: Counter[tuple[str, int]],
    load_is_over: asyncio.Event,
) -> None:
    while not load_is_over.is_set():
        try:
            async with proxy_server.client.request(
                method, "/assets/x", data=b"x" if method == "POST" else None
            ) as response:
                await response.read()
                status_counts[method, response.status] += 1
        except aiohttp.ClientError:
            status_counts[method, 0] += 1


def _count_connections(port: int) -> int:
    """Return the number of connections from the proxy to an upstream."""
    return sum(
        1
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED
        and connection.raddr
        and connection.raddr.port == port
    )


@asynccontextmanager
async def _run_services(ports: list[int]) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    processes = list(await asyncio.gather(*(_start_service(port) for port in ports)))
    yield processes
    for process in processes:
        process.kill()
        await process.wait()


async def _start_service(port: int) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.proxy.upstream", str(port),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    return process
