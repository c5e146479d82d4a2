from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from moyin.system.memory import MemoryReading
from moyin.system.memory_guard import MemoryGuard
from moyin.system.memory_kills import MemoryKillLog, describe_kill, list_recent_kills
from moyin.system.ranks import Rank

MIB = 1024**2
VICTIM = 4_000_001


class Node:
    """A node with a guard whose process has the id `VICTIM`."""

    def __init__(self, folder: Path) -> None:
        self.available = 100 * MIB
        self.now = 0.0
        self.victim: int | None = VICTIM
        self.groups = [(Rank.COMFYUI, 5, os.getpid())]
        self.ended: list[int] = []
        self.kernel_kills = 3
        self.lock_path = folder / "lock"
        self.folder = folder / "kills"
        self.guard = MemoryGuard(
            "comfyui-default-0",
            rank=Rank.COMFYUI,
            find_victim=lambda: self.victim,
            end_victim=self.ended.append,
            reserve_bytes=512 * MIB,
            needed_bytes=1024 * MIB,
            kill_log=MemoryKillLog(self.folder, "comfyui-default-0"),
            read_memory=lambda: MemoryReading(available=self.available, total=8192 * MIB),
            list_groups=lambda: self.groups,
            count_kernel_kills=lambda: self.kernel_kills,
            lock_path=self.lock_path,
            clock=lambda: self.now,
        )
        self.guard.stop()  # no thread runs, and checks do not wait after a kill


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_process_ends_and_is_recorded_while_memory_is_short(node: Node) -> None:
    assert node.guard.check()
    assert node.ended == [VICTIM]
    [kill] = list_recent_kills(node.folder)
    assert (kill.subject, kill.by, kill.available_bytes) == (
        "comfyui-default-0",
        "moyin",
        100 * MIB,
    )
    assert "Moyin ended comfyui-default-0" in describe_kill(kill)
    assert "100 MiB of 8.0 GiB" in describe_kill(kill)


def test_nothing_ends_while_enough_is_available(node: Node) -> None:
    node.available = 512 * MIB
    assert not node.guard.check() and node.ended == []


def test_a_larger_group_goes_first_unless_it_stays(node: Node) -> None:
    node.groups.append((Rank.COMFYUI, 6, 7))
    assert not node.guard.check()
    node.now = 2.0
    assert not node.guard.check()
    node.now = 4.0
    assert node.guard.check() and node.ended == [VICTIM]


def test_a_smaller_or_lower_group_does_not_go_first(node: Node) -> None:
    node.groups += [(Rank.COMFYUI, 4, 7), (Rank.LLAMA, 900, 8)]
    assert node.guard.check()


@pytest.mark.parametrize("kernel_kills", [3, 4])
def test_a_process_that_the_kernel_ended_is_recorded_once(node: Node, kernel_kills: int) -> None:
    node.available = 512 * MIB
    with subprocess.Popen(["sleep", "60"]) as process:
        node.victim = process.pid
        assert not node.guard.check()
        process.kill()
    node.victim, node.kernel_kills = None, kernel_kills
    assert not node.guard.check() and not node.guard.check()
    kills = list_recent_kills(node.folder)
    assert [(kill.by, kill.process_bytes > 0) for kill in kills] == [("kernel", True)] * (
        kernel_kills - 3
    )


def test_a_process_that_the_guard_ended_is_not_recorded_as_the_kernels(node: Node) -> None:
    assert node.guard.check()
    node.victim, node.kernel_kills = None, 4
    assert not node.guard.check()
    assert [kill.by for kill in list_recent_kills(node.folder)] == ["moyin"]


def test_only_one_guard_ends_a_process_at_a_time(node: Node) -> None:
    with node.lock_path.open("wb") as other_guard:
        fcntl.flock(other_guard, fcntl.LOCK_EX)
        assert not node.guard.check()
    assert node.guard.check()


def test_a_link_in_place_of_the_lock_is_not_followed(node: Node, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    node.lock_path.symlink_to(tmp_path / "precious")
    assert node.guard.check()
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_process_is_not_started_before_it_has_enough(node: Node) -> None:
    node.available = 1000 * MIB
    assert node.guard.find_shortage() == (
        "waiting for memory: 1000 MiB of the node are available, 1536 MiB are needed"
    )
    node.available = 1536 * MIB
    assert node.guard.find_shortage() is None
