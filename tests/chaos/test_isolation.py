"""Every service fails alone: one hangs and is killed, the others notice nothing."""

from __future__ import annotations

import asyncio
import itertools
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.chaos import victims
from tests.chaos.graphs import picture
from tests.door import Measured, StackDoor

BEFORE, HANGING, DEAD = 1.5, 2.0, 1.5
_colors = itertools.count(0x500000)
_CHAT = {
    "model": "auto",
    "max_tokens": 1,
    "messages": [{"role": "user", "content": "Say yes."}],
}
# The replica of each service, and how a client uses it.
REPLICAS = {"models": "Models", "accounts": "Accounts", "render": "RenderPool"}


@pytest.mark.parametrize("victim", REPLICAS)
async def test_a_service_that_hangs_and_dies_takes_no_other_with_it(
    victim: str, door: StackDoor, measured: Measured
) -> None:
    async with _client(door) as client:
        uses = {
            "models": lambda: _ask(client),
            "accounts": lambda: _get(client, "/accounts/.well-known/jwks.json"),
            "jobs": lambda: _get(client, "/jobs?limit=1"),
            "render": lambda: _render(client),
        }
        await asyncio.gather(*(_until_well(use) for use in uses.values()))
        others = {name: use for name, use in uses.items() if name != victim}
        quiet = await _under_load(others, asyncio.sleep(BEFORE))
        hurt = await _under_load(others, _hang_and_kill(door, REPLICAS[victim]))
        await asyncio.wait_for(_until_well(uses[victim]), 60)
    for name in others:
        measured(
            f"{victim} hung, then killed: {name} {len(hurt[name])} uses, "
            f"p99 {_p99(quiet[name]):.0f} ms before, {_p99(hurt[name]):.0f} ms meanwhile"
        )
        assert len(hurt[name]) > 0


async def _under_load(
    uses: dict[str, Callable[[], Awaitable[None]]], meanwhile: Awaitable[None]
) -> dict[str, list[float]]:
    """Seconds of every use, which all must succeed, for as long as ``meanwhile`` takes."""
    over = asyncio.Event()
    took: dict[str, list[float]] = {name: [] for name in uses}

    async def use_again_and_again(name: str) -> None:
        while not over.is_set():
            began = time.monotonic()
            await uses[name]()
            took[name].append(time.monotonic() - began)

    async with asyncio.TaskGroup() as group:
        for name in uses:
            group.create_task(use_again_and_again(name))
        await meanwhile
        over.set()
    return took


async def _hang_and_kill(door: StackDoor, deployment: str) -> None:
    [process] = victims.processes(door.data, victims.replica(deployment))
    process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(HANGING)
    finally:
        process.kill()
    await asyncio.sleep(DEAD)


async def _until_well(use: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            async with asyncio.timeout(20):
                await use()
            return
        except (AssertionError, aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0.2)


async def _get(client: aiohttp.ClientSession, path: str) -> None:
    async with client.get(path) as response:
        assert response.status == 200, await response.text()


async def _ask(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/chat/completions", json=_CHAT) as response:
        assert response.status == 200, await response.text()


async def _render(client: aiohttp.ClientSession) -> None:
    graph = {"kind": "render", "workflow": picture(next(_colors))}
    async with client.post("/jobs", json=graph) as response:
        assert response.status == 202, await response.text()
        job: dict[str, Any] = await response.json()
    async with client.get(f"/jobs/{job['id']}/events") as response:
        # The stream ends with the job.
        events = await response.text()
    assert "event: succeeded" in events, events


@asynccontextmanager
async def _client(door: StackDoor) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {door.api_key}"}
    async with aiohttp.ClientSession(door.url, headers=headers) as client:
        yield client
    # A connection that was cut needs a moment of the loop to be closed.
    await asyncio.sleep(0.1)


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98] * 1e3 if len(seconds) > 1 else 0.0
