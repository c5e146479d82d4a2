from __future__ import annotations

import os
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.stack.lock import SupervisorLock, holder


def test_only_one_holds_the_lock_and_its_pid_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None
    first = SupervisorLock(path)
    first.acquire()
    assert holder(path) == os.getpid()
    with pytest.raises(StackError, match="running already"):
        SupervisorLock(path).acquire()
    first.release()
    assert holder(path) is None


def test_a_lock_file_that_nobody_holds_means_nobody_runs(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(str(os.getpid()))
    assert holder(path) is None
