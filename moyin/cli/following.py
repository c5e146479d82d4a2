"""Following a job to its end: a progress bar for a person, nothing for a program."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moyin.cli.screen import out
from moyin.client.errors import GatewayUnreachable, RequestRefused
from moyin.client.gateway import GatewayClient
from moyin.domain.job import EventType
from moyin.errors import StackError

__all__ = ["follow", "make_folder", "save_artifacts"]

_MOST_RECONNECTS = 60
_UNSAFE = re.compile(r"[^\w.() -]")


async def follow(gateway: GatewayClient, job_id: str) -> dict[str, Any]:
    """Show the job's progress until it has ended, and return it.

    Raises:
        StackError: the connection broke too often; the job goes on.
    """
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
        try:
            async for event in gateway.follow_job(job_id, max_reconnects=_MOST_RECONNECTS):
                data = event.data
                progress.update(task, **_shown(event.type, data))
        except (GatewayUnreachable, RequestRefused) as error:
            raise StackError(
                f"the connection broke too often: see `moyin jobs show {job_id}`"
            ) from error
    # The last event has the whole job.
    return dict(data)


async def save_artifacts(gateway: GatewayClient, job: dict[str, Any], folder: Path) -> list[Path]:
    """Download what the job made; existing files are kept and new ones numbered."""
    await asyncio.to_thread(make_folder, folder)
    saved = []
    for artifact in job["artifacts"]:
        target = _free_name(folder, _UNSAFE.sub("_", artifact["name"]).lstrip(".") or "artifact")
        await gateway.download(artifact["url"], target)
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


def _free_name(folder: Path, name: str) -> Path:
    path = folder / name
    number = 1
    while path.exists():
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
        number += 1
    return path
