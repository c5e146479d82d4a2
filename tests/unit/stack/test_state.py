from __future__ import annotations

import os
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.stack.state import (
    PartState,
    PartStatus,
    Phase,
    StackState,
    SupervisorLock,
    find_lock_holder,
    read_state,
    write_state,
)


def test_state_round_trips(tmp_path: Path) -> None:
    state = StackState(
        pid=7,
        phase=Phase.DEGRADED,
        parts={"ray": PartState(status=PartStatus.BACKING_OFF, restarts=2, detail="was ended")},
        addresses={"gateway": "http://127.0.0.1:8000"},
    )
    write_state(tmp_path / "state.json", state)
    assert read_state(tmp_path / "state.json") == state
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_missing_file_reads_as_none(tmp_path: Path) -> None:
    assert read_state(tmp_path / "state.json") is None


def test_one_supervisor_holds_the_lock_and_its_pid_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert find_lock_holder(path) is None
    first_lock = SupervisorLock(path)
    first_lock.acquire()
    assert find_lock_holder(path) == os.getpid()
    with pytest.raises(StackError, match="already runs in this data folder"):
        SupervisorLock(path).acquire()
    first_lock.release()
    assert find_lock_holder(path) is None


def test_unlocked_file_means_no_supervisor_runs(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(str(os.getpid()))
    assert find_lock_holder(path) is None
