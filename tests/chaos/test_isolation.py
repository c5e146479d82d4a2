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
from tests.stack import RecordMeasurement, RunningStack
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
async def test_hanging_service_does_not_affect_other_services(
    victim: str, gateway: RunningStack, record_measurement: RecordMeasurement
) -> None:
    async with _open_client(gateway) as client:
        uses = {
            "models": lambda: _ask_model(client),
            "accounts": lambda: _get(client, KEYS),
            "jobs": lambda: _get(client, "/jobs?limit=1"),
            "render": lambda: _render(client),
        }
        await asyncio.gather(*(_wait_until_well(use) for use in uses.values()))
        other_uses = {name: use for name, use in uses.items() if name != victim}
        windows = FaultWindows()
        load = ServiceLoad(other_uses)
        results_by_name = await load.run(
            _hang_and_kill(gateway, REPLICAS[victim], uses[victim], windows, load)
        )
    for name in other_uses:
        seconds_by_fault = windows.sort_calls(results_by_name[name])
        assert all(seconds_by_fault[window] for window in ("quiet", "hanging", "dead")), (
            f"{name} was not called in every window: {seconds_by_fault}"
        )
        record_measurement(
            f"{victim} hung, then killed: {name} {_compare_times(seconds_by_fault)}; no failure"
        )


async def test_a_memory_leak_in_accounts_restarts_only_accounts(
    gateway: RunningStack, tmp_path: Path, record_measurement: RecordMeasurement
) -> None:
    leaky_config = tmp_path / "leaky.yaml"
    config = yaml.safe_load(Path(gateway.env["MOYIN_SERVE_CONFIG"]).read_text())
    [accounts] = [app for app in config["applications"] if app["name"] == "accounts"]
    accounts["import_path"] = "tests.chaos.leaky:build"
    [deployment] = accounts["deployments"]
    env_vars = {"MOYIN_REPLICA_MEMORY_MIB": str(LEAK_LIMIT_MIB)}
    deployment["ray_actor_options"]["runtime_env"] = {"env_vars": env_vars}
    leaky_config.write_text(yaml.safe_dump(config))
    async with _open_client(gateway) as client:
        other_uses = {
            "models": lambda: _ask_model(client),
            "jobs": lambda: _get(client, "/jobs?limit=1"),
            "render": lambda: _render(client),
        }
        await asyncio.gather(*(_wait_until_well(use) for use in other_uses.values()))
        other_apps = set(REPLICAS.values()) - {"Accounts"}
        pids_before, accounts_pids = (
            _find_pids(gateway, other_apps),
            _find_pids(gateway, {"Accounts"}),
        )
        await asyncio.to_thread(gateway.run, "deploy", "--config", str(leaky_config))
        try:
            await eventually(lambda: not accounts_pids & _find_pids(gateway, {"Accounts"}), 180)
            results_by_name = await ServiceLoad(other_uses).run(_leak_memory(client, gateway))
        finally:
            await asyncio.to_thread(gateway.run, "deploy")
        await asyncio.wait_for(_wait_until_well(lambda: _get(client, KEYS)), 180)
        assert _find_pids(gateway, other_apps) == pids_before
    use_counts = {name: len(results) for name, results in results_by_name.items()}
    assert all(use_counts.values())
    record_measurement(
        f"a leak in accounts: its replica ended at {LEAK_LIMIT_MIB} MiB and was replaced; "
        f"meanwhile {use_counts}, no failure"
    )


async def _leak_memory(client: aiohttp.ClientSession, gateway: RunningStack) -> None:
    """Call the leaky accounts app until its replica is stopped because of its memory."""
    await _wait_until_well(lambda: _get(client, KEYS))
    [process] = victims.list_processes(gateway.data, victims.is_replica_of("Accounts"))
    largest_rss = 0
    with suppress(psutil.NoSuchProcess):
        async with asyncio.timeout(90):
            while process.status() != psutil.STATUS_ZOMBIE:
                largest_rss = max(largest_rss, process.memory_info().rss)
                with suppress(AssertionError, aiohttp.ClientError):
                    await _get(client, KEYS)
    assert largest_rss > 0.8 * LEAK_LIMIT_MIB * 2**20
    await asyncio.wait_for(_wait_until_well(lambda: _get(client, KEYS)), 90)
    assert process.pid not in _find_pids(gateway, {"Accounts"})


def _find_pids(gateway: RunningStack, deployments: Iterable[str]) -> set[int]:
    return {
        process.pid
        for name in deployments
        for process in victims.list_processes(gateway.data, victims.is_replica_of(name))
    }


class FaultWindows:
    """Records the time spans (windows) in which each fault was active.

    Faults take turns, so that other work on the machine affects all of them equally.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[str, float, float]] = []

    async def record(self, kind: str, window_work: Awaitable[None]) -> None:
        started_at = time.monotonic()
        await window_work
        self._spans.append((kind, started_at, time.monotonic()))

    def sort_calls(self, calls: Iterable[tuple[float, float]]) -> dict[str, list[list[float]]]:
        """Return the durations of the calls of each window, by the window's kind.

        A call belongs to the window in which it began. Windows without calls are left out.

        Args:
            calls: the start and the duration of each call in seconds.
        """
        all_calls = list(calls)
        windows_by_kind: dict[str, list[list[float]]] = {kind: [] for kind, _, _ in self._spans}
        for kind, window_start, window_end in self._spans:
            window_seconds = [
                seconds
                for started_at, seconds in all_calls
                if window_start <= started_at < window_end
            ]
            if window_seconds:
                windows_by_kind[kind].append(window_seconds)
        return windows_by_kind


class ServiceLoad:
    """Calls services repeatedly; `run` fails if a call fails."""

    def __init__(self, uses: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        self._uses = uses
        self._used: dict[str, list[tuple[float, float]]] = {name: [] for name in uses}
        self._begun = {name: asyncio.Event() for name in uses}
        self._is_over = False

    async def run(self, concurrent_work: Awaitable[None]) -> dict[str, list[tuple[float, float]]]:
        """Return start and duration of each call by service, while ``concurrent_work`` runs."""
        async with asyncio.TaskGroup() as group:
            for name in self._uses:
                group.create_task(self._use(name))
            await concurrent_work
            self._is_over = True
        return self._used

    async def wait_for_each_service(self) -> None:
        """Wait until a new call of each service has begun."""
        for event in self._begun.values():
            event.clear()
        await asyncio.gather(*(event.wait() for event in self._begun.values()))

    async def _use(self, name: str) -> None:
        while not self._is_over:
            started_at = time.monotonic()
            self._begun[name].set()
            await self._uses[name]()
            self._used[name].append((started_at, time.monotonic() - started_at))


async def _hang_and_kill(
    gateway: RunningStack,
    deployment: str,
    use: Callable[[], Awaitable[None]],
    windows: FaultWindows,
    load: ServiceLoad,
) -> None:
    """Suspend a service several times, kill it, and wait until it works again.

    While the service hangs or is dead, and in the quiet times between, all other services are
    called.

    Args:
        deployment: name of the service's Ray Serve deployment.
        use: calls the service, and raises an error if that fails.
    """

    async def sleep_and_wait(seconds: float) -> None:
        await asyncio.gather(asyncio.sleep(seconds), load.wait_for_each_service())

    [process] = victims.list_processes(gateway.data, victims.is_replica_of(deployment))
    try:
        for _ in range(ROUNDS):
            await windows.record("quiet", sleep_and_wait(QUIET))
            process.send_signal(signal.SIGSTOP)
            await windows.record("hanging", sleep_and_wait(HANGING))
            process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGSTOP)
        await windows.record("hanging", sleep_and_wait(HANGING))
    finally:
        process.kill()
    await windows.record(
        "dead",
        _run_both(asyncio.wait_for(_wait_until_well(use), 180), load.wait_for_each_service()),
    )


async def _run_both(fault: Awaitable[None], calls: Awaitable[None]) -> None:
    await asyncio.gather(fault, calls)


async def _wait_until_well(use: Callable[[], Awaitable[None]]) -> None:
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


async def _ask_model(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/chat/completions", json=_CHAT) as response:
        assert response.status == 200, await response.text()


async def _render(client: aiohttp.ClientSession) -> None:
    job_body = {"kind": "render", "workflow": picture(next(_colors))}
    async with client.post("/jobs", json=job_body) as response:
        assert response.status == 202, await response.text()
        job: dict[str, Any] = await response.json()
    async with client.get(f"/jobs/{job['id']}/events") as response:
        # The stream ends with the job.
        events = await response.text()
    assert "event: succeeded" in events, events


@asynccontextmanager
async def _open_client(gateway: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as client:
        yield client
    # The event loop needs a moment to close connections that were cut.
    await asyncio.sleep(0.1)


def _compare_times(times_by_fault: dict[str, list[list[float]]]) -> str:
    """Return a sentence that compares how long calls took during faults and in quiet times.

    Compares the 99th percentile of each window in which the service hangs with that of the quiet
    window before it, and reports the median of these ratios. The single window after the kill is
    compared with the median of all quiet windows.

    Args:
        times_by_fault: the durations in seconds of the calls in each window, by the window's kind:
            ``quiet``, ``hanging`` or ``dead``.
    """
    quiet_p99s = [_percentile_99(window) for window in times_by_fault["quiet"]]
    quiet_p99 = statistics.median(quiet_p99s)
    hanging_ratio = statistics.median(
        _percentile_99(w) / q for w, q in zip(times_by_fault["hanging"], quiet_p99s, strict=False)
    )
    [dead_window] = times_by_fault["dead"]
    return (
        f"p99 {quiet_p99:.0f} ms, {hanging_ratio:.2f} of that while hanging "
        f"({sum(map(len, times_by_fault['hanging']))} uses), "
        f"{_percentile_99(dead_window) / quiet_p99:.2f} "
        f"of that while dead "
        f"({len(dead_window)} uses)"
    )


def _percentile_99(seconds: list[float]) -> float:
    """Return the 99th percentile in milliseconds; for fewer than 100 values, the maximum."""
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1e3
