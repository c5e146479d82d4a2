"""Lists processes with their command lines; processes that end meanwhile are left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import psutil


def with_lines(processes: Iterable[psutil.Process]) -> Iterator[tuple[psutil.Process, str]]:
    """Yield each process with its command line, except those that have ended."""
    for process in processes:
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if line:
            yield process, line


def confines(line: str) -> bool:
    """Return True if ``line`` is the command line of bubblewrap.

    Such a line also contains the command line of the program that bubblewrap runs.
    """
    return line.partition(" ")[0].endswith("bwrap")
