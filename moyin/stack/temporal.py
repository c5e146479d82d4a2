"""Temporal: the durable queue, on SQLite."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from moyin.errors import StackError
from moyin.stack.options import Options, executable
from moyin.stack.service import Service, run_to_end, until_open

__all__ = ["DYNAMIC_CONFIG", "drop_spare_indexes", "service"]

_log = logging.getLogger(__name__)

DYNAMIC_CONFIG = (
    # One partition: priorities hold over the whole queue, not within a part of it.
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
    "matching.enableFairness=true",
    # Its list of workflows is a second late. A row of it is written when a workflow starts, when a
    # worker first answers, and at the end; the first two only if it has not ended by then.
    "history.visibilityProcessorMaxPollRPS=1",
    "history.visibilityTaskBatchSize=1000",
)
# While there is work Go's runtime looks after its threads every 20 µs, which is a tenth of the
# server's time. Every millisecond is enough: nothing there is due sooner.
_TIMER_SLACK_NS = 1_000_000
# Of search attributes that nothing here sets, by which nobody can look for a workflow.
_SPARE_INDEX = re.compile(
    r"by_((bool|datetime|double|int|keyword)_\d+|batcher_user|temporal_(?!namespace_division).*)"
)


def service(options: Options) -> Service:
    """
    Raises:
        StackError: the wheel with the server is not installed.
    """
    program = executable("temporal")
    ports = options.ports
    # The program reads a profile of its user; that one speaks of other servers.
    environ = {**options.environ, "TEMPORAL_CONFIG_FILE": "/dev/null"}

    async def ready() -> None:
        await until_open(ports.temporal)
        await _make_namespace(program, options, environ)
        await asyncio.to_thread(drop_spare_indexes, options.layout.temporal_db)

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
        environ={"GOMAXPROCS": str(_threads()), **environ},
        ready=ready,
        timer_slack_ns=_TIMER_SLACK_NS,
    )  # fmt: skip


def drop_spare_indexes(path: Path) -> None:
    """Take from the server's list of workflows the indexes that only cost: 43 of 58, each a page to
    write for every workflow. A query by such an attribute still works, only without the index.
    """
    try:
        with closing(sqlite3.connect(path, timeout=10)) as database:
            found = database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?",
                ("executions_visibility",),
            )
            for (name,) in found.fetchall():
                if _SPARE_INDEX.fullmatch(name):
                    database.execute(f'DROP INDEX IF EXISTS "{name}"')
            database.commit()
    except sqlite3.Error as error:
        # They are dropped at the next start; until then all works as well.
        _log.warning("Temporal's spare indexes stay: %s", error)


def _threads() -> int:
    """Half of the cores: with all of them Go's scheduler spins for a tenth of the server's time."""
    return max(len(os.sched_getaffinity(0)) // 2, 1)


async def _make_namespace(program: str, options: Options, environ: dict[str, str]) -> None:
    settings = options.settings
    arguments = (
        "--address", settings.temporal_address,
        "--namespace", settings.temporal_namespace,
        "--retention", f"{settings.job_history_days}d",
    )  # fmt: skip
    status, output = await run_to_end(
        (program, "operator", "namespace", "create", *arguments), environ
    )
    if status != 0:
        # It is there from an earlier start, perhaps with another retention.
        status, output = await run_to_end(
            (program, "operator", "namespace", "update", *arguments), environ
        )
    if status != 0:
        raise StackError(f"Temporal's namespace could not be made: {output.strip()[-300:]}")
