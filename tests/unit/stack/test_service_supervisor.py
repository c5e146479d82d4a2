from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.stack.service import Service
from moyin.stack.service_supervisor import ServiceSupervisor
from moyin.stack.state import PartState, PartStatus
from moyin.system.logfile import LogFile
from moyin.system.processes import Backoff
from tests.waiting import eventually


async def _return_at_once() -> None:
    return None


async def _wait_forever() -> None:
    await asyncio.Event().wait()


class SupervisorRecorder:
    """Supervises a small process and records each of the supervisor's states."""

    def __init__(
        self,
        folder: Path,
        command: tuple[str, ...],
        *,
        wait_ready: Callable[[], Awaitable[None]] = _return_at_once,
        after_ready: Callable[[], Awaitable[None]] | None = None,
        ready_seconds: float = 10,
        find_fault: Callable[[int], str | None] | None = None,
    ) -> None:
        self.part = PartState()
        self.statuses: list[PartStatus] = []
        self.supervisor = ServiceSupervisor(
            Service(
                name="small",
                command=command,
                environ=os.environ,
                wait_ready=wait_ready,
                ready_seconds=ready_seconds,
                stop_seconds=2,
                find_fault=find_fault,
            ),
            stack_id=str(folder),
            log=LogFile(folder / "log"),
            part=self.part,
            on_change=lambda: self.statuses.append(self.part.status),
            after_ready=after_ready,
            backoff=Backoff(first=0.01, longest=0.02),
            check_seconds=0.01,
        )


@pytest.mark.parametrize("after_ready", [None, _wait_forever])
async def test_faulty_process_is_restarted(
    tmp_path: Path, after_ready: Callable[[], Awaitable[None]] | None
) -> None:
    """A process with a fault is restarted, even while the callback ``after_ready`` still runs."""
    faulty_pids: set[int] = set()

    def find_fault(pid: int) -> str | None:
        return "lacks a child process" if pid in faulty_pids else None

    recorder = SupervisorRecorder(
        tmp_path, ("sleep", "60"), find_fault=find_fault, after_ready=after_ready
    )
    supervisor_task = asyncio.create_task(recorder.supervisor.run())
    async with asyncio.timeout(20):
        await recorder.supervisor.ready.wait()
        first_pid = recorder.part.pid
        assert first_pid is not None
        faulty_pids.add(first_pid)
        await eventually(
            lambda: (
                recorder.part.pid not in (None, first_pid) and recorder.supervisor.ready.is_set()
            )
        )
    with pytest.raises(ProcessLookupError):
        os.kill(first_pid, 0)
    assert (recorder.part.status, recorder.part.restarts) == (PartStatus.UP, 1)
    supervisor_task.cancel()
    await asyncio.gather(supervisor_task, return_exceptions=True)


async def test_ended_process_is_restarted(tmp_path: Path) -> None:
    recorder = SupervisorRecorder(tmp_path, ("sleep", "60"))
    supervisor_task = asyncio.create_task(recorder.supervisor.run())
    async with asyncio.timeout(10):
        await recorder.supervisor.ready.wait()
        first_pid = recorder.part.pid
        assert first_pid is not None
        os.kill(first_pid, 9)
        await eventually(lambda: recorder.part.restarts == 1 and recorder.supervisor.ready.is_set())
    assert recorder.part.pid not in (None, first_pid)
    assert recorder.part.status == PartStatus.UP
    supervisor_task.cancel()
    await asyncio.gather(supervisor_task, return_exceptions=True)
    assert recorder.part.pid is None
    assert recorder.statuses[:6] == [
        PartStatus.STARTING,
        PartStatus.UP,
        PartStatus.STOPPED,
        PartStatus.BACKING_OFF,
        PartStatus.STARTING,
        PartStatus.UP,
    ]


async def test_after_ready_runs_after_every_restart(tmp_path: Path) -> None:
    deployed_pids: list[int | None] = []

    async def deploy() -> None:
        deployed_pids.append(recorder.part.pid)

    recorder = SupervisorRecorder(tmp_path, ("sleep", "60"), after_ready=deploy)
    supervisor_task = asyncio.create_task(recorder.supervisor.run())
    await eventually(lambda: len(deployed_pids) == 1)
    assert recorder.part.pid is not None
    os.kill(recorder.part.pid, 9)
    await eventually(lambda: len(deployed_pids) == 2)
    supervisor_task.cancel()
    await asyncio.gather(supervisor_task, return_exceptions=True)
    assert deployed_pids[0] != deployed_pids[1]


async def test_first_start_gives_up_after_several_failures(tmp_path: Path) -> None:
    recorder = SupervisorRecorder(tmp_path, ("sh", "-c", "exit 3"), wait_ready=_wait_forever)
    async with asyncio.timeout(20):
        with pytest.raises(
            StackError, match="small does not start: its process exited with status 3"
        ):
            await recorder.supervisor.run()
    assert recorder.part.status == PartStatus.FAILED
    assert recorder.statuses.count(PartStatus.STARTING) == 3


async def test_rejected_deployment_is_not_retried(tmp_path: Path) -> None:
    async def reject_deployment() -> None:
        raise StackError("app x cannot start: no such module")

    recorder = SupervisorRecorder(tmp_path, ("sleep", "60"), after_ready=reject_deployment)
    async with asyncio.timeout(10):
        with pytest.raises(StackError, match=r"^app x cannot start: no such module$"):
            await recorder.supervisor.run()
    assert recorder.statuses.count(PartStatus.STARTING) == 1


async def test_process_that_is_never_ready_is_reported(tmp_path: Path) -> None:
    recorder = SupervisorRecorder(
        tmp_path, ("sleep", "60"), wait_ready=_wait_forever, ready_seconds=0.05
    )
    async with asyncio.timeout(20):
        with pytest.raises(StackError, match="was not ready within 0 s"):
            await recorder.supervisor.run()


async def test_missing_program_is_reported(tmp_path: Path) -> None:
    recorder = SupervisorRecorder(tmp_path, ("/nowhere/program",))
    async with asyncio.timeout(20):
        with pytest.raises(StackError, match="cannot be run: No such file or directory"):
            await recorder.supervisor.run()
