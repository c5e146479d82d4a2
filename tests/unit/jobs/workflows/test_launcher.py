"""Tests `JobLauncher` with a fake Temporal whose runs change between two calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from moyin.jobs.workflows.launcher import JobLauncher

CLOSED, RUNNING = WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.RUNNING


class FakeRun(SimpleNamespace):
    run_id: str
    attempt: int
    status: WorkflowExecutionStatus
    cancelled: bool

    async def memo_value(self, key: str, default: Any) -> Any:
        return self.attempt


def make_run(attempt: int, status: WorkflowExecutionStatus) -> FakeRun:
    return FakeRun(run_id=f"run-{attempt}", attempt=attempt, status=status, cancelled=False)


class FakeTemporal:
    """A fake Temporal with the runs of one workflow id, newest last.

    Attributes:
        next_run: a run that starts after the next call, or None.
    """

    def __init__(self, *runs: FakeRun, next_run: FakeRun | None = None) -> None:
        self.runs = list(runs)
        self.next_run = next_run

    async def get_client(self) -> FakeTemporal:
        return self

    def get_workflow_handle(self, workflow_id: str, *, run_id: str | None = None) -> Any:
        async def cancel(**_: Any) -> None:
            if (current := self._find_newest_run(run_id)).status is RUNNING:
                current.cancelled = True

        async def describe(**_: Any) -> FakeRun:
            return self._find_newest_run(run_id)

        return SimpleNamespace(cancel=cancel, describe=describe)

    def _find_newest_run(self, run_id: str | None) -> FakeRun:
        known_runs = [run for run in self.runs if run_id in (None, run.run_id)]
        if self.next_run is not None:
            self.runs.append(self.next_run)
            self.next_run = None
        if not known_runs:
            raise RPCError("no such run", RPCStatusCode.NOT_FOUND, b"")
        return known_runs[-1]


async def cancel_attempt(temporal: FakeTemporal, attempt: int) -> bool:
    dependencies: Any = {"jobs": None, "temporal": temporal}
    return await JobLauncher(**dependencies).cancel("j", attempt)


async def test_a_running_attempt_is_cancelled() -> None:
    running_attempt = make_run(2, RUNNING)
    assert await cancel_attempt(FakeTemporal(make_run(1, CLOSED), running_attempt), 2)
    assert running_attempt.cancelled


async def test_an_attempt_that_does_not_run_is_not_cancelled() -> None:
    assert not await cancel_attempt(FakeTemporal(), 1)
    assert not await cancel_attempt(FakeTemporal(make_run(1, CLOSED)), 1)
    assert not await cancel_attempt(FakeTemporal(make_run(1, RUNNING)), 2)


async def test_an_attempt_that_starts_meanwhile_is_not_reported_as_cancelled() -> None:
    started_run = make_run(2, RUNNING)
    was_cancelled = await cancel_attempt(FakeTemporal(make_run(1, CLOSED), next_run=started_run), 2)
    assert was_cancelled is started_run.cancelled
