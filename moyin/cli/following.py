"""Following a job to its end: a progress bar for a person, nothing for a program."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moyin.cli.gateway_client import Door, Refused
from moyin.cli.screen import out
from moyin.domain.job import EventType
from moyin.errors import StackError

__all__ = ["follow", "make_folder", "save_artifacts"]

_RECONNECT_SECONDS = 1.0
_MOST_RECONNECTS = 60
_FINAL = frozenset(kind.value for kind in EventType if kind.is_final)
_UNSAFE = re.compile(r"[^\w.() -]")


async def follow(door: Door, job_id: str) -> dict[str, Any]:
    """The finished job, whatever happens to the connection meanwhile."""
    progress = Progress(
        TextColumn("  {task.description:<10}"),
        BarColumn(bar_width=40),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=out,
        disable=not out.is_terminal,
    )
    with progress:
        task = progress.add_task("queued", total=1.0)
        after: str | None = None
        for _ in range(_MOST_RECONNECTS):
            try:
                async for event in door.events("GET", f"/jobs/{job_id}/events", after=after):
                    after = event.id or after
                    shown = _shown(event.type, event.data)
                    progress.update(task, **shown)
                    if event.type in _FINAL:
                        job = await _detail(door, job_id)
                        # It may be the end of an attempt that was followed by another.
                        if job["status"] in _FINAL:
                            return job
            except StackError:
                # The job goes on without us; the door is back in a moment.
                await asyncio.sleep(_RECONNECT_SECONDS)
            except Refused as error:
                if error.status < 500:
                    raise
                await asyncio.sleep(_RECONNECT_SECONDS)
            else:
                job = await _detail(door, job_id)
                if job["status"] in _FINAL:
                    return job
                await asyncio.sleep(_RECONNECT_SECONDS)
    raise StackError(f"the connection broke too often: see `moyin jobs show {job_id}`")


async def save_artifacts(door: Door, job: dict[str, Any], folder: Path) -> list[Path]:
    """Download what the job made; existing files are kept and new ones numbered."""
    await asyncio.to_thread(make_folder, folder)
    saved = []
    for artifact in job["artifacts"]:
        target = _free_name(folder, _UNSAFE.sub("_", artifact["name"]).lstrip(".") or "artifact")
        await door.save(artifact["url"], target)
        saved.append(target)
    return saved


def make_folder(folder: Path) -> None:
    """
    Raises:
        StackError: it is not there and can't be made, or can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"{folder} can't be the folder of the pictures: {error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StackError(f"{folder} can't be the folder of the pictures: it can't be written")


def _shown(kind: str, data: Any) -> dict[str, Any]:
    """What an event changes on the bar."""
    if kind == EventType.PROGRESS and isinstance(data, dict):
        share = data.get("value", 0) / (data.get("max") or 1)
        return {"description": "running", "completed": min(1.0, share)}
    if kind == EventType.SUCCEEDED:
        return {"description": "done", "completed": 1.0}
    return {"description": kind}


async def _detail(door: Door, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = await door.call("GET", f"/jobs/{job_id}")
    return job


def _free_name(folder: Path, name: str) -> Path:
    path = folder / name
    number = 1
    while path.exists():
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
        number += 1
    return path
