"""Ranks the processes of a node: which of them end first when the memory is used up.

The kernel ends the process with the highest score, which is its size plus its ``oom_score_adj``, in
thousandths of the machine's memory. Everything below the ranks here has the score adjustment that
`moyin up` or ``ray start`` had: Ray's own processes, Temporal and Valkey.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path

_log = logging.getLogger(__name__)


class Rank(IntEnum):
    """The ``oom_score_adj`` of each kind of process; those with the highest end first.

    The numbers are unusual, so that `list_expendable_groups` finds no other program's processes.
    """

    # Ray gives this to all of its workers, by RAY_worker_oom_score_adjustment: Serve's controller
    # and proxies keep it, and so does HAProxy.
    WORKER = 67
    REPLICA = 267
    RENDER_ACTOR = 467
    HELPER = 667
    LLAMA = 867
    # Given by the actor, since ComfyUI has its own /proc.
    COMFYUI = 967


def take_rank(rank: Rank, process: Path = Path("/proc/self")) -> None:
    """Give this process, and its later children, a rank, unless its score is higher already.

    Raising a score needs no right but that to signal the process. A failure is only logged, because
    a process without a rank works as well.
    """
    path = process / "oom_score_adj"
    try:
        if int(path.read_text()) < rank:
            path.write_text(str(int(rank)))
    except (FileNotFoundError, ProcessLookupError):
        _log.debug("%s has ended before it got a rank", process)
    except (OSError, ValueError) as error:
        _log.warning("cannot rank the process of %s: %s", path, error)


def list_expendable_groups(proc: Path = Path("/proc")) -> list[tuple[Rank, int, int]]:
    """Return the rank, resident bytes and owner of each group of expendable processes on this machine.

    A group is all that one actor can end at once: what a renderer's actor has started, or a llama.cpp
    server. Its owner is the id of the actor's process. What a node package does to the scores of its own
    processes, or how many it starts, changes no group.
    """
    scores = {
        pid: score for pid in _list_ids(proc) if (score := _read_score(pid, proc)) is not None
    }
    parents = {pid: _read_parent(pid, proc) for pid in scores}
    sizes: dict[int, int] = {}
    for pid in scores:
        owner = _find_owner(pid, scores, parents)
        # The actor of a renderer is not expendable itself.
        if owner is not None and not (owner == pid and scores[pid] == Rank.RENDER_ACTOR):
            sizes[owner] = sizes.get(owner, 0) + read_resident_bytes(pid, proc)
    return [
        (Rank.LLAMA if scores[owner] == Rank.LLAMA else Rank.COMFYUI, size, owner)
        for owner, size in sizes.items()
        if size
    ]


def _find_owner(pid: int, scores: Mapping[int, int], parents: Mapping[int, int]) -> int | None:
    """Return the outermost actor with expendable processes around a process, or None."""
    owner, seen = None, set()
    # A process may have ended, and its id may belong to another, since the others were read.
    while pid in scores and pid not in seen:
        seen.add(pid)
        if scores[pid] in (Rank.RENDER_ACTOR, Rank.LLAMA):
            owner = pid
        pid = parents[pid]
    return owner


def _list_ids(proc: Path) -> Iterator[int]:
    return (int(folder.name) for folder in proc.iterdir() if folder.name.isdigit())


def _read_score(pid: int, proc: Path) -> int | None:
    try:
        return int((proc / str(pid) / "oom_score_adj").read_text())
    except (OSError, ValueError):
        return None  # The process has ended.


def _read_parent(pid: int, proc: Path) -> int:
    """Return the id of a process's parent, or 0 if the process has ended."""
    try:
        # The name before the last parenthesis may contain anything.
        return int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def read_resident_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Return the bytes that a process has in memory, with what it shares; 0 if it has ended."""
    try:
        for line in (proc / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0
