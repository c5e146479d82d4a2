"""Processes and their command lines, of which any may end while one looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import psutil

__all__ = ["with_lines"]


def with_lines(processes: Iterable[psutil.Process]) -> Iterator[tuple[psutil.Process, str]]:
    """Each with its command line, those that have ended left out."""
    for process in processes:
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if line:
            yield process, line
