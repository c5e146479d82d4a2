from __future__ import annotations

from pathlib import Path

import pytest

from moyin.stack.ray import RAY_ENVIRON
from moyin.system.ranks import Rank, list_ranked_processes, take_rank


def _add_process(proc: Path, pid: int, score: int, kib: int = 8) -> Path:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "oom_score_adj").write_text(f"{score}\n")
    (folder / "status").write_text(f"Name:\tx\nVmRSS:\t{kib} kB\n")
    return folder


def test_a_rank_only_raises_the_score(tmp_path: Path) -> None:
    low, high = _add_process(tmp_path, 1, 0), _add_process(tmp_path, 2, 1000)
    take_rank(Rank.REPLICA, low)
    take_rank(Rank.REPLICA, high)
    assert (low / "oom_score_adj").read_text() == "267"
    assert (high / "oom_score_adj").read_text() == "1000\n"


def test_only_expendable_processes_of_moyin_are_listed(tmp_path: Path) -> None:
    _add_process(tmp_path, 1, Rank.COMFYUI, 100)
    _add_process(tmp_path, 2, Rank.REPLICA)
    _add_process(tmp_path, 3, 900)
    (tmp_path / "self").mkdir()
    assert list_ranked_processes(Rank.LLAMA, tmp_path) == [(967, 102_400, 1)]


def test_a_process_that_raises_its_own_score_is_listed_first(tmp_path: Path) -> None:
    _add_process(tmp_path, 1, Rank.COMFYUI, 100)
    _add_process(tmp_path, 2, 1000, 8)
    assert max(list_ranked_processes(Rank.LLAMA, tmp_path)) == (1000, 8_192, 2)


def test_comfyui_has_the_highest_rank_and_serve_the_lowest() -> None:
    assert max(Rank) == Rank.COMFYUI
    assert RAY_ENVIRON["RAY_worker_oom_score_adjustment"] == str(min(Rank).value)


def test_a_rank_that_cannot_be_written_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1" / "oom_score_adj").mkdir(parents=True)
    take_rank(Rank.LLAMA, tmp_path / "1")
    take_rank(Rank.LLAMA, tmp_path / "2")  # has ended
    assert len(caplog.messages) == 1
    assert "cannot rank" in caplog.messages[0]


def test_rays_memory_monitor_is_off() -> None:
    assert RAY_ENVIRON["RAY_memory_monitor_refresh_ms"] == "0"
