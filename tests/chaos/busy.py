"""Measures from ComfyUI's own logs, without Moyin's data, how long each ComfyUI was busy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Lines of ComfyUI itself, and the lines that the node ``Busy`` logs.
_LINE = re.compile(r"^(?:got prompt|busy (\d+\.\d+)|Prompt executed in (\d+\.\d+) seconds)", re.M)


@dataclass(frozen=True)
class Execution:
    """One execution of a graph with the node ``Busy``.

    Attributes:
        seconds: the duration; if the process was killed, the seconds until then.
        ended: False if the process was killed during the execution.
    """

    seconds: float
    ended: bool


def list_executions(data: Path) -> list[Execution]:
    """Return all executions by the ComfyUIs of the stack whose data folder is ``data``."""
    folders = sorted((data / "comfyui" / "run").iterdir())
    return [execution for folder in folders for execution in _read_executions(folder)]


def _read_executions(folder: Path) -> Iterator[Execution]:
    # ``comfyui.log.1`` is older than ``comfyui.log``, so it comes first.
    files = sorted(folder.glob("comfyui.log*"), reverse=True)
    log = "".join(file.read_text(errors="replace") for file in files)
    tick_times: list[float] = []
    for match in _LINE.finditer(log):
        tick, seconds = match.groups()
        if tick is not None:
            tick_times.append(float(tick))
        elif tick_times:
            if seconds is None:
                yield Execution(tick_times[-1] - tick_times[0], ended=False)
            else:
                yield Execution(float(seconds), ended=True)
            tick_times = []
    if tick_times:
        yield Execution(tick_times[-1] - tick_times[0], ended=False)
