from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.stack.service import Service
from moyin.stack.service_supervisor import ServiceSupervisor
from moyin.stack.state import Part, PartStatus
from moyin.system.backoff import Backoff
from moyin.system.logfile import LogFile


async def _at_once() -> None:
    return None


async def _never() -> None:
    await asyncio.Event().wait()


class Kept:
    """A keeper of a small process, and every state that it went through."""

    def __init__(
        self,
        folder: Path,
        command: tuple[str, ...],
        *,
        ready: Callable[[], Awaitable[None]] = _at_once,
        after_ready: Callable[[], Awaitable[None]] | None = None,
        ready_seconds: float = 10,
        broken: Callable[[int], str | None] | None = None,
    ) -> None:
        self.part = Part()
        self.seen: list[PartStatus] = []
        self.keeper = ServiceSupervisor(
            Service(
                name="small",
                command=command,
                environ=os.environ,
                ready=ready,
                ready_seconds=ready_seconds,
                stop_seconds=2,
                broken=broken,
            ),
            stack_id=str(folder),
            log=LogFile(folder / "log"),
            part=self.part,
            changed=lambda: self.seen.append(self.part.status),
            after_ready=after_ready,
            backoff=Backoff(first=0.01, longest=0.02),
            check_seconds=0.01,
        )


@pytest.mark.parametrize("after_ready", [None, _never])
async def test_a_process_that_runs_broken_is_started_again(
    tmp_path: Path, after_ready: Callable[[], Awaitable[None]] | None
) -> None:
    """Also while the apps are deployed, which would wait for it."""
    broken: set[int] = set()

    def reason(pid: int) -> str | None:
        return "runs without its half" if pid in broken else None

    kept = Kept(tmp_path, ("sleep", "60"), broken=reason, after_ready=after_ready)
    running = asyncio.create_task(kept.keeper.run())
    async with asyncio.timeout(20):
        await kept.keeper.ready.wait()
        first = kept.part.pid
        assert first is not None
        broken.add(first)
        await _until(lambda: kept.part.pid not in (None, first) and kept.keeper.ready.is_set())
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert (kept.part.status, kept.part.restarts) == (PartStatus.UP, 1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, ("sleep", "60"))
    running = asyncio.create_task(kept.keeper.run())
    async with asyncio.timeout(10):
        await kept.keeper.ready.wait()
        first = kept.part.pid
        assert first is not None
        os.kill(first, 9)
        await _until(lambda: kept.part.restarts == 1 and kept.keeper.ready.is_set())
    assert kept.part.pid not in (None, first)
    assert kept.part.status == PartStatus.UP
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert kept.part.pid is None
    assert kept.seen[:6] == [
        PartStatus.STARTING,
        PartStatus.UP,
        PartStatus.STOPPED,
        PartStatus.BACKING_OFF,
        PartStatus.STARTING,
        PartStatus.UP,
    ]


async def test_what_follows_a_start_follows_every_restart(tmp_path: Path) -> None:
    deployed: list[int | None] = []

    async def deploy() -> None:
        deployed.append(kept.part.pid)

    kept = Kept(tmp_path, ("sleep", "60"), after_ready=deploy)
    running = asyncio.create_task(kept.keeper.run())
    await _until(lambda: len(deployed) == 1)
    assert kept.part.pid is not None
    os.kill(kept.part.pid, 9)
    await _until(lambda: len(deployed) == 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert deployed[0] != deployed[1]


async def test_a_first_start_that_fails_every_time_is_given_up(tmp_path: Path) -> None:
    kept = Kept(tmp_path, ("sh", "-c", "exit 3"), ready=_never)
    async with asyncio.timeout(20):
        with pytest.raises(StackError, match="small does not start: ended with status 3"):
            await kept.keeper.run()
    assert kept.part.status == PartStatus.FAILED
    assert kept.seen.count(PartStatus.STARTING) == 3


async def test_a_refused_deployment_is_not_tried_again(tmp_path: Path) -> None:
    async def refuse() -> None:
        raise StackError("app x cannot start: no such module")

    kept = Kept(tmp_path, ("sleep", "60"), after_ready=refuse)
    async with asyncio.timeout(10):
        with pytest.raises(StackError, match=r"^app x cannot start: no such module$"):
            await kept.keeper.run()
    assert kept.seen.count(PartStatus.STARTING) == 1


async def test_a_process_that_never_serves_is_told_so(tmp_path: Path) -> None:
    kept = Kept(tmp_path, ("sleep", "60"), ready=_never, ready_seconds=0.05)
    async with asyncio.timeout(20):
        with pytest.raises(StackError, match="was not ready within 0 s"):
            await kept.keeper.run()


async def test_a_missing_program_is_told_so(tmp_path: Path) -> None:
    kept = Kept(tmp_path, ("/nowhere/program",))
    async with asyncio.timeout(20):
        with pytest.raises(StackError, match="cannot be run: No such file or directory"):
            await kept.keeper.run()


async def _until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if check():
                return
            await asyncio.sleep(0.01)
