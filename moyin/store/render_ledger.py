"""Records the cost of renders in the usage ledger and in the rows of their jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.domain.operation import RENDER, Unit
from moyin.domain.render_run import RenderAccount, RenderRun
from moyin.errors import WorkerLost
from moyin.store.reservations import add_cost
from moyin.store.schema import jobs, usage
from moyin.store.sql import Database, now
from moyin.store.usage import UsageEntry, build_usage_row

_MODEL = "comfyui"
_INSERT = {
    "sqlite": sqlite.insert(usage).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(usage).on_conflict_do_nothing(index_elements=["id"]),
}
# Columns of a run that was booked before its end and has been measured again.
_MEASURED = ("quantity", "load_milliseconds", "cost_nano_usd", "complete", "error")


class RenderLedger:
    """Adds a ledger row for each run of a render, and adds its cost to the run's job.

    The row and the cost are written in one transaction, and each run has a unique id. So several
    processes may book the same run repeatedly, even at once, and it is charged only once.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def book(self, runs: Sequence[RenderRun]) -> None:
        """Write the ledger rows of the runs; skip runs without a `RenderAccount`, which are free.

        If a run is measured twice, the longer measurement is kept.
        """
        priced_runs = [(run, run.account) for run in runs if run.account is not None]
        if not priced_runs:
            return
        # In the same order everywhere, so that transactions do not wait for each other in a circle.
        priced_runs.sort(key=lambda item: (item[1].job_id, item[0].id))
        booked_at = now()

        def book_all(connection: sa.Connection) -> None:
            for run, account in priced_runs:
                _book_run(connection, run, account, booked_at)

        await self._database.write(book_all)


def _book_run(
    connection: sa.Connection, run: RenderRun, account: RenderAccount, booked_at: datetime
) -> None:
    # The job's row is locked first: it is what two runs of a job share. Pruning may have deleted it.
    is_run_job = jobs.c.id == account.job_id
    query = sa.select(jobs.c.key_id, jobs.c.reserved).where(is_run_job).with_for_update()
    key_id, is_reserved = connection.execute(query).one_or_none() or (None, True)
    row = build_usage_row(_build_entry(run, account, key_id), booked_at, run.id)
    insert = _INSERT[connection.dialect.name].returning(usage.c.id)
    added_nano_usd = row["cost_nano_usd"]
    if connection.execute(insert, row).first() is None:
        added_nano_usd = _replace_shorter_measurement(connection, row)
    if added_nano_usd:
        update = jobs.update().where(is_run_job)
        connection.execute(update.values(render_nano_usd=jobs.c.render_nano_usd + added_nano_usd))
        if is_reserved:
            add_cost(connection, account.job_id, added_nano_usd, booked_at)


def _replace_shorter_measurement(connection: sa.Connection, row: dict[str, Any]) -> int:
    """Replace a shorter measurement of the same run.

    Of two equally long measurements, one whose end was observed replaces that of a run that was
    assumed to be lost.

    Returns:
        The change of the cost in billionths of a US dollar; 0 if nothing was replaced.
    """
    columns = (usage.c.quantity, usage.c.error, usage.c.cost_nano_usd)
    query = sa.select(*columns).where(usage.c.id == row["id"]).with_for_update()
    quantity, error, stored_nano_usd = connection.execute(query).one()
    if (quantity, error != WorkerLost.code) >= (row["quantity"], row["error"] != WorkerLost.code):
        return 0
    update = usage.update().where(usage.c.id == row["id"])
    connection.execute(update.values({name: row[name] for name in _MEASURED}))
    return int(row["cost_nano_usd"] - stored_nano_usd)


def _build_entry(run: RenderRun, account: RenderAccount, key_id: str | None) -> UsageEntry:
    return UsageEntry(
        request_id=account.job_id,
        owner=account.owner,
        backend=f"render-{account.pool}",
        model=_MODEL,
        input_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        cost_usd=run.cost_usd,
        complete=run.error is None,
        key_id=key_id,
        error=run.error,
        operation=RENDER,
        unit=Unit.GPU_MILLISECONDS.value,
        quantity=round(Decimal(run.seconds) * 1000),
        # An actor of an earlier version does not measure it.
        load_milliseconds=round(getattr(run, "load_seconds", 0) * 1000),
    )
