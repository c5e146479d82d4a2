from __future__ import annotations

import os
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.stack.lock import SupervisorLock, lock_holder


def test_one_supervisor_holds_the_lock_and_its_pid_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lock_holder(path) is None
    first = SupervisorLock(path)
    first.acquire()
    assert lock_holder(path) == os.getpid()
    with pytest.raises(StackError, match="already runs in this data folder"):
        SupervisorLock(path).acquire()
    first.release()
    assert lock_holder(path) is None


def test_unlocked_file_means_no_supervisor_runs(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(str(os.getpid()))
    assert lock_holder(path) is None
