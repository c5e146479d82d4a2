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
from moyin.stack.supervisor import Supervisor, _list_notes
from tests.stack import free_port_base


async def _return_at_once() -> None:
    return None


@pytest.fixture
def deployments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make supervisors run one small process, and record deployments instead; return the record."""
    recorded_deployments: list[str] = []

    def record_deployment(name: str) -> Callable[..., object]:
        async def deploy(options: Options, on_progress: Callable[[str], None]) -> None:
            recorded_deployments.append(name)

        return deploy

    def create_services(_: Supervisor) -> Iterator[Service]:
        yield Service(
            name="ray", command=("sleep", "60"), environ=os.environ, wait_ready=_return_at_once
        )

    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(Supervisor, "_create_services", create_services)
    monkeypatch.setattr(Supervisor, "_prepare_data", lambda _: _return_at_once())
    monkeypatch.setattr(ray, "prepare_files", lambda _: None)
    monkeypatch.setattr(apps, "deploy_apps", record_deployment("deploy"))
    monkeypatch.setattr(apps, "redeploy_apps", record_deployment("redeploy"))
    monkeypatch.setattr(apps, "delete_apps", lambda _: _return_at_once())
    return recorded_deployments


async def test_full_disk_stops_no_service_and_ended_ones_restart(
    deployments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_is_full = False
    states: list[StackState] = []

    def record_state(path: Path, state: StackState) -> None:
        states.append(state)
        if disk_is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(supervisor, "write_state", record_state)
    supervisor_task = asyncio.create_task(
        Supervisor(Options.read(port_base=free_port_base())).run()
    )
    pid = await _wait_for_deployments(supervisor_task, states, deployments, times=1)
    disk_is_full = True
    os.kill(pid, signal.SIGKILL)
    new_pid = await _wait_for_deployments(supervisor_task, states, deployments, times=2)
    assert new_pid != pid
    assert deployments == ["deploy", "redeploy"]
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(supervisor_task, 20)


async def _wait_for_deployments(
    supervisor_task: asyncio.Task[None],
    states: list[StackState],
    deployments: list[str],
    *,
    times: int,
) -> int:
    """Wait until there were ``times`` deployments and Ray runs; return Ray's process id.

    Args:
        supervisor_task: the task of the supervisor, which must not end.
        states: the states that the supervisor has reported.
    """
    async with asyncio.timeout(20):
        while len(deployments) < times or states[-1].parts["ray"].status is not PartStatus.UP:
            assert not supervisor_task.done(), supervisor_task.exception()
            await asyncio.sleep(0.02)
    pid = states[-1].parts["ray"].pid
    assert pid is not None
    return pid


def test_missing_comfyui_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MOYIN_COMFYUI_HOME", raising=False)
    note = "renders will not start: ComfyUI is not installed; run `moyin comfyui install`"
    assert note in _list_notes(Options.read({}, port_base=20_000))
