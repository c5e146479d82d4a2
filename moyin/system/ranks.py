"""Ranks the processes of a node: which of them end first when the memory is used up.

The kernel ends the process with the highest score, which is its size plus its ``oom_score_adj``, in
thousandths of the machine's memory. Everything below the ranks here has the score adjustment that
`moyin up` or ``ray start`` had: Ray's own processes, Temporal and Valkey.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

_log = logging.getLogger(__name__)


class Rank(IntEnum):
    """The ``oom_score_adj`` of each kind of process; those with the highest end first.

    The numbers are unusual, so that `list_ranked_processes` finds no other program's processes.
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


def list_ranked_processes(lowest: Rank, proc: Path = Path("/proc")) -> list[tuple[int, int, int]]:
    """Return the rank, resident bytes and id of each expendable process on this machine.

    Processes with a higher score than all ranks are expendable, too: a node package can raise the score
    of its ComfyUI, which would otherwise leave the list, so that other tenants' would end first.

    Args:
        lowest: the lowest rank of the processes to list.
    """
    ranks = {int(rank) for rank in Rank if rank >= lowest}
    processes = []
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        # A process may end meanwhile.
        with suppress(OSError, ValueError):
            rank = int((folder / "oom_score_adj").read_text())
            is_expendable = rank in ranks or rank > Rank.COMFYUI
            if is_expendable and (size := read_resident_bytes(int(folder.name), proc)):
                processes.append((rank, size, int(folder.name)))
    return processes


def read_resident_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Return the bytes that a process has in memory, with what it shares; 0 if it has ended."""
    try:
        for line in (proc / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0
