"""Processes and their command lines, of which any may end while one looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import psutil


def with_lines(processes: Iterable[psutil.Process]) -> Iterator[tuple[psutil.Process, str]]:
    """Each with its command line, those that have ended left out."""
    for process in processes:
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if line:
            yield process, line


def confines(line: str) -> bool:
    """Whether it is the command line of bubblewrap, which names that of what it runs."""
    return line.partition(" ")[0].endswith("bwrap")
