"""Contains `RunBookkeeper`, which records a pool's runs and their cost exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.render_run import RenderRun
from moyin.errors import WorkerLost
from moyin.store.render_ledger import RenderLedger

_log = logging.getLogger(__name__)
# Maximum seconds by which an outage of the database delays results and the supervision of actors.
_TIMEOUT_SECONDS = 3.0
# Maximum number of runs per transaction. After an outage there may be thousands, too many for one
# transaction in that time.
_RUNS_PER_TRANSACTION = 100


class RunBookkeeper:
    """Records the runs of renders in the ledger, so that each run is charged once.

    `book` records a render's runs when the render ends. `settle` records the runs that were missed,
    such as those that ended while the pool was restarting: each actor reports its ended runs until
    the pool confirms that they are recorded. The unfinished runs of a lost actor are recorded with
    their last known duration.
    """

    def __init__(self, ledger: RenderLedger) -> None:
        self._ledger = ledger
        # The last reported runs of each actor that are not recorded yet, by run id.
        self._reported: dict[str, dict[str, RenderRun]] = {}
        # Runs of lost actors that could not be recorded yet.
        self._lost: dict[str, RenderRun] = {}
        # Transactions that did not end in time; later ones wait for them. A transaction of SQLite
        # that waits for another process cannot be cancelled, and ends only after half a minute.
        self._late_tasks: set[asyncio.Task[None]] = set()

    async def book(self, runs: Sequence[RenderRun]) -> set[str]:
        """Record ended runs, and return the ids of those that were recorded.

        If the database fails or is too slow, `settle` later records the runs that are missing.
        """
        booked_ids = set[str]()
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                for start in range(0, len(runs), _RUNS_PER_TRANSACTION):
                    batch = runs[start : start + _RUNS_PER_TRANSACTION]
                    await self._book_in_time(batch)
                    booked_ids.update(run.id for run in batch)
        except (SQLAlchemyError, OSError) as error:
            _log.warning(
                "%d runs of renders are booked later: %s", len(runs) - len(booked_ids), error
            )
        return booked_ids

    async def _book_in_time(self, runs: Sequence[RenderRun]) -> None:
        """Record runs; if the caller is cancelled, let the transaction end in the background."""
        if self._late_tasks:
            await asyncio.wait(self._late_tasks)
        task = asyncio.create_task(self._ledger.book(runs))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            self._late_tasks.add(task)
            task.add_done_callback(self._finish_late_task)
            raise

    def _finish_late_task(self, task: asyncio.Task[None]) -> None:
        self._late_tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("runs of renders are booked later: %s", error)

    async def settle(self, actor: str, runs: Sequence[RenderRun]) -> list[str]:
        """Record the ended runs that an actor reports, and the runs that were lost.

        A run counts as lost if the actor's previous report contained it and this one does not.

        Args:
            runs: all runs that the actor reports, ended or not; empty if the actor was lost.

        Returns:
            The ids of the reported runs that are recorded, which the actor need not report again.
        """
        reported_runs = {run.id: run for run in runs}
        for run_id, run in self._reported.pop(actor, {}).items():
            if run_id not in reported_runs:
                self._lost[run_id] = run if run.is_ended else _assume_lost(run)
        if reported_runs:
            self._reported[actor] = reported_runs
        ended_runs = [run for run in runs if run.is_ended]
        booked_ids = await self.book([*ended_runs, *self._lost.values()])
        for run_id in booked_ids:
            self._lost.pop(run_id, None)
            reported_runs.pop(run_id, None)
        return [run.id for run in ended_runs if run.id in booked_ids]


def _assume_lost(run: RenderRun) -> RenderRun:
    return replace(run, error=WorkerLost.code, is_ended=True)
