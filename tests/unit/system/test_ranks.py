from __future__ import annotations

from pathlib import Path

import pytest

from moyin.stack.ray import RAY_ENVIRON
from moyin.system.ranks import Rank, list_expendable_groups, take_rank


def _add_process(proc: Path, pid: int, score: int, kib: int = 8, parent: int = 1) -> Path:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (a) b) S {parent} 0 0\n")
    (folder / "oom_score_adj").write_text(f"{score}\n")
    (folder / "status").write_text(f"Name:\tx\nVmRSS:\t{kib} kB\n")
    return folder


def test_a_rank_only_raises_the_score(tmp_path: Path) -> None:
    low, high = _add_process(tmp_path, 1, 0), _add_process(tmp_path, 2, 1000)
    take_rank(Rank.REPLICA, low)
    take_rank(Rank.REPLICA, high)
    assert (low / "oom_score_adj").read_text() == "267"
    assert (high / "oom_score_adj").read_text() == "1000\n"


def test_groups_are_what_actors_can_end(tmp_path: Path) -> None:
    _add_process(tmp_path, 1, 0)
    _add_process(tmp_path, 2, Rank.RENDER_ACTOR)
    sandbox = _add_process(tmp_path, 3, Rank.RENDER_ACTOR, 1, parent=2)
    _add_process(tmp_path, 4, Rank.COMFYUI, 100, parent=3)
    _add_process(tmp_path, 5, Rank.LLAMA, 300)
    _add_process(tmp_path, 6, Rank.RENDER_ACTOR)  # its ComfyUI has not started
    _add_process(tmp_path, 7, Rank.REPLICA)
    _add_process(tmp_path, 8, 900)
    (tmp_path / "self").mkdir()
    assert sorted(list_expendable_groups(tmp_path)) == [
        (Rank.LLAMA, 300 * 1024, 5),
        (Rank.COMFYUI, 101 * 1024, 2),
    ]
    (sandbox / "stat").unlink()  # has just ended, so its children are being ended, too
    assert (Rank.COMFYUI, 101 * 1024, 2) not in list_expendable_groups(tmp_path)


@pytest.mark.parametrize("score", [0, int(Rank.RENDER_ACTOR), int(Rank.LLAMA), 1000])
def test_a_node_package_can_neither_hide_nor_split_its_processes(
    tmp_path: Path, score: int
) -> None:
    _add_process(tmp_path, 1, 0)
    for actor in (10, 20):
        _add_process(tmp_path, actor, Rank.RENDER_ACTOR)
        _add_process(tmp_path, actor + 1, Rank.COMFYUI, 100, parent=actor)
    for child in range(22, 29):
        _add_process(tmp_path, child, score, 50, parent=21)
    assert sorted(list_expendable_groups(tmp_path)) == [
        (Rank.COMFYUI, 100 * 1024, 10),
        (Rank.COMFYUI, 450 * 1024, 20),
    ]


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
