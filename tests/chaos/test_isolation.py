"""Tests that a service that hangs or is killed does not affect the other services."""

from __future__ import annotations

import asyncio
import itertools
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import yaml

from tests.chaos import victims
from tests.chaos.graphs import picture
from tests.stack import Measured, RunningStack
from tests.waiting import eventually

ROUNDS, QUIET, HANGING = 5, 0.8, 0.8
LEAK_LIMIT_MIB = 700
KEYS = "/accounts/.well-known/jwks.json"
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
    victim: str, gateway: RunningStack, measured: Measured
) -> None:
    async with _client(gateway) as client:
        uses = {
            "models": lambda: _ask(client),
            "accounts": lambda: _get(client, KEYS),
            "jobs": lambda: _get(client, "/jobs?limit=1"),
            "render": lambda: _render(client),
        }
        await asyncio.gather(*(_until_well(use) for use in uses.values()))
        others = {name: use for name, use in uses.items() if name != victim}
        windows = Windows()
        load = Load(others)
        used = await load.run(
            _hang_and_kill(gateway, REPLICAS[victim], uses[victim], windows, load)
        )
    for name in others:
        result = windows.sort(used[name])
        assert all(result[window] for window in ("quiet", "hanging", "dead")), "the others went on"
        measured(f"{victim} hung, then killed: {name} {_compare_times(result)}; no failure")


async def test_a_memory_leak_in_accounts_restarts_only_accounts(
    gateway: RunningStack, tmp_path: Path, measured: Measured
) -> None:
    leaky = tmp_path / "leaky.yaml"
    config = yaml.safe_load(Path(gateway.env["MOYIN_SERVE_CONFIG"]).read_text())
    [accounts] = [app for app in config["applications"] if app["name"] == "accounts"]
    accounts["import_path"] = "tests.chaos.leaky:build"
    [deployment] = accounts["deployments"]
    limit = {"MOYIN_REPLICA_MEMORY_MIB": str(LEAK_LIMIT_MIB)}
    deployment["ray_actor_options"]["runtime_env"] = {"env_vars": limit}
    leaky.write_text(yaml.safe_dump(config))
    async with _client(gateway) as client:
        others = {
            "models": lambda: _ask(client),
            "jobs": lambda: _get(client, "/jobs?limit=1"),
            "render": lambda: _render(client),
        }
        await asyncio.gather(*(_until_well(use) for use in others.values()))
        bystanders = set(REPLICAS.values()) - {"Accounts"}
        before, sound = _pids(gateway, bystanders), _pids(gateway, {"Accounts"})
        await asyncio.to_thread(gateway.run, "deploy", "--config", str(leaky))
        try:
            await eventually(lambda: not sound & _pids(gateway, {"Accounts"}), 180)
            used = await Load(others).run(_leak(client, gateway))
        finally:
            await asyncio.to_thread(gateway.run, "deploy")
        await asyncio.wait_for(_until_well(lambda: _get(client, KEYS)), 180)
        assert _pids(gateway, bystanders) == before
    uses = {name: len(results) for name, results in used.items()}
    assert all(uses.values())
    measured(
        f"a leak in accounts: its replica ended at {LEAK_LIMIT_MIB} MiB and was replaced; "
        f"meanwhile {uses}, no failure"
    )


async def _leak(client: aiohttp.ClientSession, gateway: RunningStack) -> None:
    """Call the leaky accounts app until its replica is stopped because of its memory."""
    await _until_well(lambda: _get(client, KEYS))
    [process] = victims.processes(gateway.data, victims.replica("Accounts"))
    largest = 0
    with suppress(psutil.NoSuchProcess):
        async with asyncio.timeout(90):
            while process.status() != psutil.STATUS_ZOMBIE:
                largest = max(largest, process.memory_info().rss)
                with suppress(AssertionError, aiohttp.ClientError):
                    await _get(client, KEYS)
    assert largest > 0.8 * LEAK_LIMIT_MIB * 2**20
    await asyncio.wait_for(_until_well(lambda: _get(client, KEYS)), 90)
    assert process.pid not in _pids(gateway, {"Accounts"})


def _pids(gateway: RunningStack, deployments: Iterable[str]) -> set[int]:
    return {
        process.pid
        for name in deployments
        for process in victims.processes(gateway.data, victims.replica(name))
    }


class Windows:
    """Records the time spans (windows) in which each fault was active.

    Faults take turns, so that other work on the machine affects all of them equally.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[str, float, float]] = []

    async def spend(self, name: str, on: Awaitable[None]) -> None:
        began = time.monotonic()
        await on
        self._spans.append((name, began, time.monotonic()))

    def sort(self, uses: Iterable[tuple[float, float]]) -> dict[str, list[list[float]]]:
        """Assign calls to the window in which they began; return their durations by kind of window.

        Windows without calls are left out.

        Args:
            uses: the start and the duration of each call.
        """
        all_uses = list(uses)
        results: dict[str, list[list[float]]] = {name: [] for name, _, _ in self._spans}
        for name, start, end in self._spans:
            took = [seconds for began, seconds in all_uses if start <= began < end]
            if took:
                results[name].append(took)
        return results


class Load:
    """Calls services repeatedly and fails if a call fails."""

    def __init__(self, uses: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        self._uses = uses
        self._used: dict[str, list[tuple[float, float]]] = {name: [] for name in uses}
        self._begun = {name: asyncio.Event() for name in uses}
        self._is_over = False

    async def run(self, meanwhile: Awaitable[None]) -> dict[str, list[tuple[float, float]]]:
        """Call the services while ``meanwhile`` runs.

        Returns the start and duration of each call in seconds, by service.
        """
        async with asyncio.TaskGroup() as group:
            for name in self._uses:
                group.create_task(self._use(name))
            await meanwhile
            self._is_over = True
        return self._used

    async def wait_for_each(self) -> None:
        """Wait until a new call of each service has begun."""
        for event in self._begun.values():
            event.clear()
        await asyncio.gather(*(event.wait() for event in self._begun.values()))

    async def _use(self, name: str) -> None:
        while not self._is_over:
            began = time.monotonic()
            self._begun[name].set()
            await self._uses[name]()
            self._used[name].append((began, time.monotonic() - began))


async def _hang_and_kill(
    gateway: RunningStack,
    deployment: str,
    use: Callable[[], Awaitable[None]],
    windows: Windows,
    load: Load,
) -> None:
    """Suspend a service several times, kill it, and wait until it works again.

    During each of these time spans, and the quiet ones between them, every other service is called.

    Args:
        deployment: name of the service's Ray Serve deployment.
        use: calls the service, and raises an error if that fails.
    """

    async def at_least(seconds: float) -> None:
        await asyncio.gather(asyncio.sleep(seconds), load.wait_for_each())

    [process] = victims.processes(gateway.data, victims.replica(deployment))
    try:
        for _ in range(ROUNDS):
            await windows.spend("quiet", at_least(QUIET))
            process.send_signal(signal.SIGSTOP)
            await windows.spend("hanging", at_least(HANGING))
            process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGSTOP)
        await windows.spend("hanging", at_least(HANGING))
    finally:
        process.kill()
    await windows.spend(
        "dead", _both(asyncio.wait_for(_until_well(use), 180), load.wait_for_each())
    )


async def _both(first: Awaitable[None], second: Awaitable[None]) -> None:
    await asyncio.gather(first, second)


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
async def _client(gateway: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as client:
        yield client
    # A connection that was cut needs a moment of the loop to be closed.
    await asyncio.sleep(0.1)


def _compare_times(found: dict[str, list[list[float]]]) -> str:
    """Return a sentence that compares how long calls took during faults and in quiet times.

    Compares the 99th percentile of each span in which the service hangs with that of the quiet span
    before it, and reports the median of these ratios. The single span after the kill is compared
    with the median of all quiet spans.

    Args:
        found: the durations in seconds of the calls in each span, by the span's kind: ``quiet``,
            ``hanging`` or ``dead``.
    """
    quiet = [_p99(took) for took in found["quiet"]]
    before = statistics.median(quiet)
    hanging = statistics.median(_p99(w) / q for w, q in zip(found["hanging"], quiet, strict=False))
    [dead] = found["dead"]
    return (
        f"p99 {before:.0f} ms, {hanging:.2f} of that while hanging "
        f"({sum(map(len, found['hanging']))} uses), {_p99(dead) / before:.2f} of that while dead "
        f"({len(dead)} uses)"
    )


def _p99(seconds: list[float]) -> float:
    """Return the 99th percentile in milliseconds; for fewer than 100 values, the maximum."""
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1e3
