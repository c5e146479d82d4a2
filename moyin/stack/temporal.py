"""Configures Temporal, the durable job queue, with SQLite as its database."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from moyin.errors import StackError
from moyin.stack.options import Options, find_executable
from moyin.stack.service import Service, run_command, wait_for_port

_log = logging.getLogger(__name__)

DYNAMIC_CONFIG = (
    # With several partitions, priorities would apply only within each partition.
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
    "matching.enableFairness=true",
    # The workflow list is up to a second late. Temporal writes a row when a workflow starts, at its
    # first worker response and at its end, but only once if all happens within the second.
    "history.visibilityProcessorMaxPollRPS=1",
    "history.visibilityTaskBatchSize=1000",
)
# Under load Go's runtime checks its threads every 20 µs, which takes a tenth of the server's CPU
# time. A check every millisecond is enough, because the server has no shorter timers.
_TIMER_SLACK_NS = 1_000_000
# The indexes of search attributes that Moyin never sets.
_UNUSED_INDEX = re.compile(
    r"by_((bool|datetime|double|int|keyword)_\d+|batcher_user|temporal_(?!namespace_division).*)"
)


def create_service(options: Options) -> Service:
    """Create the service of Temporal's development server, or raise `StackError`."""
    program = find_executable("temporal")
    ports = options.ports
    # Without a value, the program would read the user's configuration for other servers.
    environ = {**options.environ, "TEMPORAL_CONFIG_FILE": "/dev/null"}

    async def wait_ready() -> None:
        await wait_for_port(ports.temporal)
        await _create_namespace(program, options, environ)
        await asyncio.to_thread(drop_unused_indexes, options.layout.temporal_db)

    return Service(
        name="temporal",
        command=(
            program, "server", "start-dev",
            "--ip", "127.0.0.1",
            "--port", str(ports.temporal),
            "--ui-ip", "127.0.0.1",
            "--ui-port", str(ports.temporal_ui),
            "--db-filename", str(options.layout.temporal_db),
            "--sqlite-pragma", "journal_mode=WAL",
            "--sqlite-pragma", "synchronous=1",
            "--log-level", "warn",
            *(f"--dynamic-config-value={value}" for value in DYNAMIC_CONFIG),
        ),
        environ={"GOMAXPROCS": str(_count_threads()), **environ},
        wait_ready=wait_ready,
        timer_slack_ns=_TIMER_SLACK_NS,
    )  # fmt: skip


def drop_unused_indexes(path: Path) -> None:
    """Drop the 43 of Temporal's 58 workflow indexes that Moyin does not use.

    Each index costs a page write per workflow. Temporal's queries work without these indexes.
    """
    try:
        with closing(sqlite3.connect(path, timeout=10)) as database:
            indexes = database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?",
                ("executions_visibility",),
            )
            for (name,) in indexes.fetchall():
                if _UNUSED_INDEX.fullmatch(name):
                    database.execute(f'DROP INDEX IF EXISTS "{name}"')
            database.commit()
    except sqlite3.Error as error:
        # Not fatal, because the server also works with the indexes.
        _log.warning("cannot drop Temporal's unused indexes: %s", error)


def _count_threads() -> int:
    """Return the number of Temporal's threads: half the cores.

    With a thread for each core, Go's scheduler wastes processor time while it waits for work.
    """
    return max(len(os.sched_getaffinity(0)) // 2, 1)


async def _create_namespace(program: str, options: Options, environ: dict[str, str]) -> None:
    settings = options.settings
    arguments = (
        "--address", settings.temporal_address,
        "--namespace", settings.temporal_namespace,
        "--retention", f"{settings.job_history_days}d",
    )  # fmt: skip
    status, output = await run_command(
        (program, "operator", "namespace", "create", *arguments), environ
    )
    if status != 0:
        # The namespace exists from an earlier start, perhaps with another retention.
        status, output = await run_command(
            (program, "operator", "namespace", "update", *arguments), environ
        )
    if status != 0:
        raise StackError(
            f"Temporal's namespace {settings.temporal_namespace} could not be created: "
            f"{output.strip()[-300:]} (see `moyin logs temporal`)"
        )
