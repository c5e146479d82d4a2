"""Records which processes ended because the memory was used up, in files that outlive them."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from moyin.domain.cluster import MemoryKill
from moyin.domain.serialization import encode, from_plain

_log = logging.getLogger(__name__)
_MAX_KILLS = 50
# How long a kill is shown.
_SHOWN_SECONDS = 3600.0


class MemoryKillLog:
    """The latest memory kills that one process has noticed, as a JSON file in a folder.

    Args:
        folder: the folder of all such files, in the data folder.
        name: the name of the writer, and of its file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._path = folder / f"{name}.json"

    def record(self, kill: MemoryKill) -> None:
        """Add a kill; a failure is only logged, since no disk may keep a process from ending."""
        kills = [*_read_file(self._path), kill][-_MAX_KILLS:]
        temporary_path = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary_path.write_bytes(encode(kills))
            temporary_path.replace(self._path)
        except OSError as error:
            _log.warning("cannot write %s: %s", self._path, error)

    def list_recent(self) -> tuple[MemoryKill, ...]:
        """Return the kills of the last hour, oldest first."""
        return _keep_recent(_read_file(self._path))


def list_recent_kills(folder: Path) -> tuple[MemoryKill, ...]:
    """Return the kills of the last hour that any writer has recorded in ``folder``, oldest first."""
    kills = [kill for path in folder.glob("*.json") for kill in _read_file(path)]
    return _keep_recent(sorted(kills, key=lambda kill: kill.at))


def get_kills_folder(data_folder: Path) -> Path:
    """Return the folder for `MemoryKillLog` in a data folder."""
    return data_folder / "memory"


def describe_kill(kill: MemoryKill) -> str:
    """Return a sentence about a kill: what ended, when, by whom and how little memory was left."""
    at = time.strftime("%H:%M:%S", time.gmtime(kill.at))
    size = f", which used {_format_bytes(kill.process_bytes)}," if kill.process_bytes else ""
    total = _format_bytes(kill.total_bytes)
    if kill.by == "kernel":
        # It was noticed afterwards, so what was available at that time is unknown.
        return f"The kernel ended {kill.subject}{size} at {at} UTC, because the {total} of memory were used up."
    return (
        f"Moyin ended {kill.subject}{size} at {at} UTC, because {_format_bytes(kill.available_bytes)} "
        f"of {total} of memory were available."
    )


def _format_bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count >> 20} MiB"


def _keep_recent(kills: list[MemoryKill]) -> tuple[MemoryKill, ...]:
    earliest = time.time() - _SHOWN_SECONDS
    return tuple(kill for kill in kills if kill.at >= earliest)


def _read_file(path: Path) -> list[MemoryKill]:
    try:
        return [from_plain(MemoryKill, item) for item in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, LookupError):
        return []
