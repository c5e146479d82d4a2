from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from moyin.errors import ServiceUnavailable
from moyin.jobs.workflows.worker import JobRunner, Sweeper


class FakeJobStore:
    def __init__(self, *due_ids: str) -> None:
        self.due_ids = list(due_ids)
        self.failures = 0

    async def list_undispatched(self, min_age: timedelta) -> list[tuple[str, int, bool]]:
        if self.failures:
            self.failures -= 1
            raise OSError("the database is away")
        return [(job_id, 2, job_id.startswith("ended")) for job_id in self.due_ids]


class FakeLauncher:
    def __init__(self, *stuck_ids: str) -> None:
        self.stuck = stuck_ids
        self.started_ids: list[str] = []
        self.notified_attempts: list[tuple[str, int]] = []
        self.was_swept = asyncio.Event()

    async def start(self, job_id: str) -> None:
        if job_id in self.stuck:
            raise ServiceUnavailable("an earlier attempt is still closing")
        self.started_ids.append(job_id)
        self.was_swept.set()

    async def start_webhook(self, job_id: str, attempt: int) -> None:
        self.notified_attempts.append((job_id, attempt))


def make_sweeper(jobs: Any, launcher: Any) -> Sweeper:
    return Sweeper(jobs=jobs, launcher=launcher, interval=timedelta(milliseconds=10))


async def test_a_job_that_cannot_start_does_not_delay_the_others() -> None:
    launcher = FakeLauncher("a")
    assert await make_sweeper(FakeJobStore("a", "b", "c"), launcher).sweep() == 2
    assert launcher.started_ids == ["b", "c"]


async def test_an_ended_job_gets_its_webhook_and_is_not_started_again() -> None:
    launcher = FakeLauncher()
    assert await make_sweeper(FakeJobStore("ended", "a"), launcher).sweep() == 2
    assert (launcher.started_ids, launcher.notified_attempts) == (["a"], [("ended", 2)])


async def test_an_outage_of_the_database_only_delays_the_sweeper() -> None:
    jobs, launcher = FakeJobStore("a"), FakeLauncher()
    jobs.failures = 3
    sweeper_task = asyncio.create_task(make_sweeper(jobs, launcher).run())
    await asyncio.wait_for(launcher.was_swept.wait(), 5)
    sweeper_task.cancel()
    await asyncio.gather(sweeper_task, return_exceptions=True)


async def test_a_runner_waits_for_temporal_and_can_be_stopped() -> None:
    is_connecting = asyncio.Event()

    class UnavailableTemporal:
        async def get_client(self) -> None:
            is_connecting.set()
            raise ServiceUnavailable("unavailable")

    dependencies: Any = {"temporal": UnavailableTemporal(), "activities": None}
    runner = JobRunner(
        **dependencies, sweeper=make_sweeper(FakeJobStore(), FakeLauncher()), concurrency=1
    )
    runner_task = asyncio.create_task(runner.run())
    await is_connecting.wait()
    await runner.stop()
    await asyncio.wait_for(runner_task, 5)
    assert runner.error is None
