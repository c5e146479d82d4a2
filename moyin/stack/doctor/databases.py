"""Checks the SQL database's schema, and the file in which Valkey stores its data."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from moyin.errors import StackError
from moyin.stack import valkey
from moyin.stack.doctor.result import CheckResult, OnStep, build_failure, build_ok
from moyin.stack.layout import find_aside_path
from moyin.stack.options import Options
from moyin.stack.state import find_lock_holder

_DATABASE_SECONDS = 10
_VALKEY_SECONDS = 120
# What valkey-check-aof prints of an incomplete last command, which the server leaves out by itself.
_INCOMPLETE_END = re.compile(r"Expected to read \d+ bytes, got|Reached EOF before reading EXEC")
T = TypeVar("T")


def check_database(options: Options) -> CheckResult:
    """Check that the database can be read, and that its schema fits this version of Moyin."""
    # Imported here, because the SQL libraries take as long to import as most commands to run.
    from sqlalchemy.exc import SQLAlchemyError

    from moyin.store.sql import get_newest_revision, has_tables, read_revision

    url = options.settings.sql_url
    try:
        revision = asyncio.run(read_in_time(read_revision(url)))
        is_empty = revision is None and not asyncio.run(read_in_time(has_tables(url)))
    except (OSError, SQLAlchemyError, StackError) as error:
        return build_failure(
            "database",
            f"cannot be read ({type(error).__name__})",
            "start the server that MOYIN_DATABASE_URL names, or correct its address and password"
            if options.settings.database_url
            else "restore a backup of moyin.db in the data folder, or move it away to begin anew",
        )
    newest_revision = get_newest_revision()
    if revision is not None and revision > newest_revision:
        return build_failure(
            "database",
            f"revision {revision} is newer than this Moyin ({newest_revision})",
            "update Moyin, or restore a backup of the database",
        )
    if revision != newest_revision and options.settings.database_url:
        # Tables without a revision may be those of another program.
        is_ours = revision is not None or is_empty
        finding = f"at revision {revision}" if revision is not None else "has no tables yet"
        return build_failure(
            "database",
            f"{finding}; this Moyin needs revision {newest_revision}"
            if is_ours
            else f"has tables, but none of Moyin's; this Moyin needs revision {newest_revision}",
            "stop older Moyins that use it, then run `moyin migrate`"
            if is_ours
            else "name a database of its own in MOYIN_DATABASE_URL, or run `moyin migrate`",
            fix=f"migrate it to revision {newest_revision}; older Moyins cannot use it then"
            if is_ours
            else "",
        )
    return build_ok(
        "database",
        f"revision {newest_revision}" if revision == newest_revision else "`moyin up` migrates it",
    )


def migrate_database(options: Options) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from moyin.store.sql import migrate

    try:
        migrate(options.settings.sql_url)
    except SQLAlchemyError as error:
        # The error's own text has the statement with its values.
        cause = getattr(error, "orig", None) or type(error).__name__
        raise StackError(f"the migration of the database failed: {cause}") from error


def check_valkey_data(options: Options) -> CheckResult:
    """Check that Valkey can load its append-only file, which a power failure may have damaged."""
    if find_lock_holder(options.layout.lock) is not None:
        return build_ok("valkey data", "in use")
    path = _find_newest_log(options)
    if path is None:
        return build_ok("valkey data", "none yet")
    try:
        status, output = _run_valkey_check(path)
    except (StackError, OSError, subprocess.TimeoutExpired) as error:
        # If the program is missing or damaged, another check reports it.
        return build_ok(
            "valkey data", f"not checked: valkey-check-aof failed ({type(error).__name__})"
        )
    if status == 0 or _INCOMPLETE_END.search(output):
        return build_ok("valkey data", "can be loaded")
    return build_failure(
        "valkey data",
        f"{path} is damaged, so that Valkey does not start",
        f"move {path.parent} away; it has limits, caches and the events of jobs, but no jobs or "
        "pictures",
        fix="copy the folder, then cut the file where the damage begins",
    )


def cut_valkey_data(options: Options, on_step: OnStep) -> None:
    path = _find_newest_log(options)
    if path is None:
        return
    copied_folder = find_aside_path(path.parent)
    shutil.copytree(path.parent, copied_folder)
    size_before = path.stat().st_size
    status, output = _run_valkey_check(path, "--fix")
    if status != 0:
        last_line = (output.strip().splitlines() or ["without output"])[-1]
        raise StackError(
            f"valkey-check-aof could not repair {path}: {last_line}: move {path.parent} away"
        )
    on_step(
        f"valkey data: cut {size_before - path.stat().st_size} of {size_before} bytes; {copied_folder} has all of them"
    )


async def read_in_time(query: Awaitable[T]) -> T:
    """Return the result of a query, or raise `TimeoutError` (an `OSError`) after ten seconds."""
    async with asyncio.timeout(_DATABASE_SECONDS):
        return await query


def _find_newest_log(options: Options) -> Path | None:
    """Return the newest part of Valkey's append-only file, or None if there is none."""
    folder = options.layout.valkey / "appendonlydir"
    try:
        lines = (folder / "appendonly.aof.manifest").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    # Such as: file appendonly.aof.1.incr.aof seq 1 type i
    file_names = [words[1] for line in lines if (words := line.split())[-2:] == ["type", "i"]]
    path = folder / file_names[-1] if file_names else None
    return path if path is not None and path.is_file() else None


def _run_valkey_check(path: Path, *arguments: str) -> tuple[int, str]:
    """Run valkey-check-aof, and return its exit status and output.

    It is the same program as the Valkey server, started under another name.
    """
    # The manifest is not checked, because the program reports the format of Valkey 9 in its first
    # file as damage.
    process = subprocess.run(
        ["valkey-check-aof", *arguments, str(path)],
        executable=valkey.find_server(),
        input="y\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=_VALKEY_SECONDS,
        check=False,
    )
    return process.returncode, process.stdout
