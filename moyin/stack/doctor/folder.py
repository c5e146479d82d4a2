"""Checks the permissions of the data folder and the free space of its disk."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.filesize import decimal

from moyin.errors import StackError
from moyin.stack.doctor.result import (
    CheckResult,
    OnStep,
    build_failure,
    build_ok,
    build_warning,
    check_call,
)
from moyin.stack.layout import Layout
from moyin.stack.options import Options

_GIB = 1024**3
_MIN_FREE_BYTES = 5 * _GIB
# The number of nested levels (data folder, valkey, appendonlydir, file). Each needs a pass of its
# own, because a folder that this user may not list hides its content.
_LEVELS = 4
_SHOWN_PATHS = 3
_FOLDER_ACCESS = os.R_OK | os.W_OK | os.X_OK


@dataclass(kw_only=True, slots=True)
class _LockedPaths:
    """The files and folders of the stack that this user can't use.

    Attributes:
        own: those that belong to this user, who can change their mode.
        foreign: those of other users.
    """

    own: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)


def check_folder(options: Options) -> CheckResult:
    """Create the data folder, and check that it can be written to and that its disk is not full."""
    locked_paths = _find_locked_paths(options.layout)
    if locked_paths.foreign:
        return build_failure(
            "data folder",
            f"{_format_paths(locked_paths.foreign)} cannot be written by this user",
            f'another user ran Moyin here: `sudo chown -R "$USER" {options.layout.data}`',
        )
    if locked_paths.own:
        return build_failure(
            "data folder",
            f"{_format_paths(locked_paths.own)}: the mode denies its owner to read or write",
            f"run `chmod -R u+rwX {options.layout.data}`",
            fix="add the owner's permissions (u+rwX) to those",
        )
    return check_call(
        "data folder", options.layout.prepare, finding=f"{options.layout.data} is writable"
    )


def has_closed_folders(options: Options) -> bool:
    """Return True if this user cannot use a folder of the stack or the lock file.

    Then the checks that would read these folders are left out.
    """
    paths = _find_locked_paths(options.layout)
    lock_path = options.layout.lock
    return any(path.is_dir() or path == lock_path for path in (*paths.own, *paths.foreign))


def unlock_folder(options: Options) -> None:
    """Let the owner read and write the files and folders of the stack."""
    for _ in range(_LEVELS):
        for path in _find_locked_paths(options.layout).own:
            path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))


def check_disk(options: Options) -> CheckResult:
    folder = options.layout.data
    while not os.access(folder, os.F_OK):
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    finding = f"{free_bytes / _GIB:.1f} GiB free"
    if free_bytes >= _MIN_FREE_BYTES:
        return build_ok("disk", finding)
    log_bytes = sum(_measure_bytes(path) for path in _list_old_logs(options.layout))
    return build_warning(
        "disk",
        finding,
        "free some space (`moyin prune --days 30` deletes old jobs and their files): ComfyUI takes "
        "2 GiB, pictures and models more",
        fix=f"delete logs of earlier runs ({decimal(log_bytes)}), and files whose time has passed",
    )


def free_space(options: Options, on_step: OnStep) -> None:
    """Delete old logs, and data that running workers would delete within a day.

    Such data are expired files of text models, files of jobs that their owners deleted, and jobs
    that are older than the setting ``keep_jobs_days``.
    """
    freed_bytes = 0
    for path in _list_old_logs(options.layout):
        freed_bytes += _measure_bytes(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    on_step(f"disk: deleted {decimal(freed_bytes)} of logs")
    asyncio.run(_prune_data(options, on_step))


async def _prune_data(options: Options, on_step: OnStep) -> None:
    # Imported here, because the SQL libraries take as long to import as most commands to run.
    from sqlalchemy.exc import SQLAlchemyError

    from moyin.store.blobs import BlobStore
    from moyin.store.pruning import Pruner
    from moyin.store.sql import Database, get_newest_revision, read_revision

    settings = options.settings
    try:
        if await read_revision(settings.sql_url) != get_newest_revision():
            return  # There is no database yet, or it is reported by the next check.
        database = Database(settings.sql_url)
        try:
            pruner = Pruner(database, BlobStore(settings.blobs_url))
            result = await pruner.prune_once(settings.keep_jobs_days, with_files=True)
        finally:
            await database.close()
    except SQLAlchemyError as error:
        raise StackError(
            "expired files were not deleted, because the database cannot be read "
            f"({type(error).__name__})"
        ) from error
    if result:
        on_step(
            f"disk: deleted {result.jobs} jobs and {result.files} files, {decimal(result.size)}"
        )


def _list_old_logs(layout: Layout) -> list[Path]:
    """Return the rotated logs and the logs of Ray's last run; a running stack uses neither."""
    paths = sorted(layout.logs.glob("*.log.1"))
    ray_logs = layout.logs / "ray"
    if ray_logs.is_dir() and not ray_logs.is_symlink():
        paths.append(ray_logs)
    return paths


def _measure_bytes(path: Path) -> int:
    """Return the bytes that a file, or a folder with all in it, takes on the disk."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files)


def _find_locked_paths(layout: Layout) -> _LockedPaths:
    locked_paths = _LockedPaths()
    for path, needed_access in _list_paths(layout):
        if os.access(path, needed_access):
            continue
        file_status = path.lstat()
        if file_status.st_uid != os.geteuid():
            locked_paths.foreign.append(path)
        # The bits of `os.access` are those of a mode. If the mode is right, the file system is
        # read-only, which `Layout.prepare` reports.
        elif file_status.st_mode >> 6 & needed_access != needed_access:
            locked_paths.own.append(path)
    return locked_paths


def _list_paths(layout: Layout) -> Iterator[tuple[Path, int]]:
    """Yield the existing files and folders of the stack, each with the access that this user needs.

    The artifacts and ComfyUI's environment have too many files to look at all of them.
    """
    written_folders = (
        layout.data, layout.run, layout.logs, layout.valkey, layout.valkey / "appendonlydir",
        layout.temporal_db.parent,
    )  # fmt: skip
    for folder in (*written_folders, layout.data / "artifacts", layout.data / "comfyui"):
        # `os.access` is also False if this user may not look into the parent folder.
        if not os.access(folder, os.F_OK) or not folder.is_dir():
            continue
        yield folder, _FOLDER_ACCESS
        if folder in written_folders and os.access(folder, _FOLDER_ACCESS):
            for path in sorted(folder.iterdir()):
                if path.is_file() and not path.is_symlink():
                    # Secrets and profiles are replaced, not written to.
                    is_written = folder != layout.data or path.name.startswith("moyin.db")
                    yield path, os.R_OK | os.W_OK if is_written else os.R_OK


def _format_paths(paths: list[Path]) -> str:
    hidden_note = f" and {len(paths) - _SHOWN_PATHS} more" if len(paths) > _SHOWN_PATHS else ""
    return ", ".join(str(path) for path in paths[:_SHOWN_PATHS]) + hidden_note
