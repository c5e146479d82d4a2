from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moyin.stack import apps, ray, supervisor
from moyin.stack.options import Options
from moyin.stack.service import Service
from moyin.stack.state import PartStatus, StackState
from moyin.stack.supervisor import Supervisor, _notes
from tests.door import free_port_base


async def _at_once() -> None:
    return None


@pytest.fixture
def handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whether the apps were deployed or deployed again, by a supervisor of one small process."""
    done: list[str] = []

    def note(name: str) -> Callable[..., object]:
        async def hand_over(options: Options, told: Callable[[str], None]) -> None:
            done.append(name)

        return hand_over

    def services(_: Supervisor) -> Iterator[Service]:
        yield Service(name="ray", command=("sleep", "60"), environ=os.environ, ready=_at_once)

    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(Supervisor, "_services", services)
    monkeypatch.setattr(Supervisor, "_prepare_data", lambda _: _at_once())
    monkeypatch.setattr(ray, "prepare", lambda _: None)
    monkeypatch.setattr(apps, "deploy", note("deploy"))
    monkeypatch.setattr(apps, "redeploy", note("redeploy"))
    monkeypatch.setattr(apps, "withdraw", lambda _: _at_once())
    return done


async def test_a_full_disk_stops_nothing_and_what_dies_comes_back(
    handed_over: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = False
    told: list[StackState] = []

    def write(path: Path, state: StackState) -> None:
        told.append(state)
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(supervisor, "write", write)
    running = asyncio.create_task(Supervisor(Options.read(port_base=free_port_base())).run())
    part = await _up(running, told, handed_over, times=1)
    full = True
    os.kill(part, signal.SIGKILL)
    again = await _up(running, told, handed_over, times=2)
    assert again != part
    assert handed_over == ["deploy", "redeploy"]
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 20)


async def _up(
    running: asyncio.Task[None], told: list[StackState], handed_over: list[str], *, times: int
) -> int:
    """The process id, once the apps were handed over so often."""
    async with asyncio.timeout(20):
        while len(handed_over) < times or told[-1].parts["ray"].status is not PartStatus.UP:
            assert not running.done(), running.exception()
            await asyncio.sleep(0.02)
    pid = told[-1].parts["ray"].pid
    assert pid is not None
    return pid


def test_renders_that_would_wait_for_comfyui_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MOYIN_COMFYUI_HOME", raising=False)
    told = "renders wait: ComfyUI is not installed; run `moyin comfyui install`"
    assert told in _notes(Options.read({}, port_base=20_000))
