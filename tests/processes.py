"""Lists processes with their command lines; processes that end meanwhile are left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import psutil


def with_lines(processes: Iterable[psutil.Process]) -> Iterator[tuple[psutil.Process, str]]:
    """Yield each process with its command line, except those that have ended."""
    for process in processes:
        try:
            command_line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if command_line:
            yield process, command_line


def is_bubblewrap(command_line: str) -> bool:
    """Return True if a process with this command line is bubblewrap or a sandbox's first process.

    The command line then also contains that of the program which runs in the sandbox.
    """
    return command_line.partition(" ")[0].endswith("bwrap") or "sandbox_init.py" in command_line
