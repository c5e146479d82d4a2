"""Follows jobs to their end with a progress bar, and saves their artifacts."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moyin.cli.screen import out
from moyin.client.errors import GatewayUnreachable, RequestRefused
from moyin.client.gateway import GatewayClient, ServerSentEvent
from moyin.domain.job import EventType
from moyin.errors import StackError

_MAX_RECONNECTS = 60
_UNSAFE = re.compile(r"[^\w.() -]")


async def follow_job(
    gateway: GatewayClient,
    job_id: str,
    *,
    shows_bar: bool = True,
    on_event: Callable[[ServerSentEvent], None] | None = None,
) -> dict[str, Any]:
    """Wait until the job has ended, and return the job.

    Args:
        shows_bar: True to show a progress bar if standard output is a terminal.
        on_event: a function that is called with each event of the job.

    Raises:
        StackError: the connection to the gateway failed too often.
    """
    progress = Progress(
        TextColumn("  {task.description:<10}"),
        BarColumn(bar_width=40),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=out,
        disable=not (shows_bar and out.is_terminal),
    )
    with progress:
        bar_task = progress.add_task("queued", total=1.0)
        try:
            async for event in gateway.follow_job(job_id, max_reconnects=_MAX_RECONNECTS):
                data = event.data
                if on_event is not None:
                    on_event(event)
                progress.update(bar_task, **_get_bar_fields(event.type, data))
        except (GatewayUnreachable, RequestRefused) as error:
            raise StackError(
                "the connection to the gateway failed too often, but the job continues: "
                f"see `moyin jobs show {job_id}`"
            ) from error
    # The data of the last event is the whole job.
    return dict(data)


async def save_artifacts(gateway: GatewayClient, job: dict[str, Any], folder: Path) -> list[Path]:
    """Download the job's artifacts into a folder, without overwriting files, and return the paths."""
    await asyncio.to_thread(create_folder, folder)
    saved_paths = []
    for artifact in job["artifacts"]:
        target_path = choose_target_path(folder, artifact["name"])
        await gateway.download(artifact["url"], target_path)
        saved_paths.append(target_path)
    return saved_paths


def create_folder(folder: Path) -> None:
    """Create the output folder; raise StackError if it cannot be created or is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(
            f"the output folder {folder} cannot be created: {error}: choose another with --output"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StackError(
            f"the output folder {folder} is not writable: choose another with --output"
        )


def _get_bar_fields(kind: str, data: Any) -> dict[str, Any]:
    """Return the arguments that update the progress bar after an event of a job.

    Args:
        kind: the type of the event.
    """
    if kind == EventType.PROGRESS and isinstance(data, dict):
        fraction = data.get("value", 0) / (data.get("max") or 1)
        return {"description": "running", "completed": min(1.0, fraction)}
    if kind == EventType.SUCCEEDED:
        return {"description": "done", "completed": 1.0}
    return {"description": kind}


def choose_target_path(folder: Path, name: str) -> Path:
    """Return an unused path in the folder for a file name, which may be malicious."""
    name = _UNSAFE.sub("_", name).lstrip(".") or "artifact"
    path = folder / name
    number = 1
    while path.exists():
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
        number += 1
    return path
