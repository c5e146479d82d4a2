"""Stores native batches, and which lines of a batch belong to each of them.

A native batch is recorded as the runner of its lines, and counts as alive until its results are
written, so that no other runner claims the lines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.domain.native_batch import NativeBatch, NativeStatus, get_plan_id
from moyin.domain.text_batch import BatchLine, LineStatus
from moyin.store.batch_lines import is_running, lock_open_batch, set_runner
from moyin.store.schema import native_batches as natives
from moyin.store.schema import text_batch_lines as lines
from moyin.store.schema import text_batch_runners as runners
from moyin.store.sql import Database, ensure_utc, now

# Longer than a batch and its steps can take.
_LIFETIME = timedelta(days=3)
# Rows of ended batches are kept, so that their ids at back ends are known.
_KEPT = timedelta(days=7)
_INSERT = {
    "sqlite": sqlite.insert(natives).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(natives).on_conflict_do_nothing(),
}
_INSERT_RUNNER: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_PENDING = lines.c.status == LineStatus.PENDING.value


class NativeBatchStore:
    """Reads and writes the rows of native batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_open(self, batch_id: str) -> list[NativeBatch]:
        """Return the unfinished native batches of a batch, and its planning entry if it has one.

        A planning entry (`NativeBatch.is_plan`) is returned even if it is finished, because that
        shows that the batch has already been divided into native batches.
        """
        query = sa.select(natives).where(
            natives.c.batch_id == batch_id,
            sa.or_(
                natives.c.status != NativeStatus.DONE.value, natives.c.id == get_plan_id(batch_id)
            ),
        )
        return [_parse_native_batch(row) for row in await self._database.fetch_all(query)]

    async def list_remote_ids(self, backend: str) -> set[str]:
        """Return the back end's ids of all batches that Moyin has created there."""
        query = sa.select(natives.c.remote_id).where(
            natives.c.backend == backend, natives.c.remote_id.is_not(None)
        )
        return set(await self._database.fetch_values(query))

    async def add(self, native_batch: NativeBatch) -> None:
        """Add a native batch unless its row exists, and delete rows of old finished ones."""
        row = {name: getattr(native_batch, name) for name in NativeBatch.__slots__}
        row |= {"status": native_batch.status.value, "state": dict(native_batch.state)}

        def write(connection: sa.Connection) -> None:
            connection.execute(_INSERT[connection.dialect.name], row)
            connection.execute(
                natives.delete().where(
                    natives.c.status == NativeStatus.DONE.value,
                    natives.c.created_at < now() - _KEPT,
                )
            )

        await self._database.write(write)

    async def reserve_step(self, native_batch: NativeBatch, lease_seconds: float) -> bool:
        """Reserve the next step of a native batch for this replica.

        The step becomes due again after ``lease_seconds``, unless `renew_step` is called.

        Returns:
            False if the step is not due, or if another replica has reserved it.
        """
        update = (
            natives.update()
            .where(_is_unchanged(native_batch), natives.c.due_at <= now())
            .values(due_at=now() + timedelta(seconds=lease_seconds))
        )
        return bool(await self._database.write(lambda c: c.execute(update).rowcount))

    async def renew_step(self, native_id: str, lease_seconds: float) -> None:
        """Keep the current step of a native batch reserved for ``lease_seconds`` from now."""
        await self._update(native_id, due_at=now() + timedelta(seconds=lease_seconds))

    async def save(self, native_batch: NativeBatch, *, due_in_seconds: float = 0.0) -> None:
        """Write the status, the remote id and the state of a native batch.

        Its next step becomes due in ``due_in_seconds`` seconds.
        """
        await self._update(
            native_batch.id,
            status=native_batch.status.value,
            remote_id=native_batch.remote_id,
            state=dict(native_batch.state),
            due_at=now() + timedelta(seconds=due_in_seconds),
        )

    async def make_first_step_due(self, native_batch: NativeBatch) -> None:
        """Make the first step of a newly added native batch due, for any replica to begin."""
        update = natives.update().where(_is_unchanged(native_batch)).values(due_at=now())
        await self._database.write(lambda c: c.execute(update))

    async def assign_lines(self, native_batch: NativeBatch, line_numbers: Collection[int]) -> int:
        """Make a new native batch the runner of those lines that have none; return their number.

        No line is assigned if a step of the native batch has begun, or if the batch was cancelled
        or has expired.
        """

        def write(connection: sa.Connection) -> int:
            is_new = sa.select(sa.exists().where(_is_unchanged(native_batch)))
            if not lock_open_batch(connection, native_batch.batch_id):
                return 0
            if not connection.execute(is_new).scalar_one():
                return 0
            row = {"id": native_batch.id, "alive_until": now() + _LIFETIME}
            insert = _INSERT_RUNNER[connection.dialect.name](runners).values(row)
            connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=row))
            # In order, so that transactions do not wait for each other in a circle.
            free_lines = (
                sa.select(lines.c.number)
                .where(
                    lines.c.batch_id == native_batch.batch_id,
                    lines.c.number.in_(sorted(line_numbers)),
                    _PENDING,
                    sa.not_(is_running()),
                )
                .order_by(lines.c.number)
                .with_for_update(of=lines)
            )
            free_numbers = list(connection.execute(free_lines).scalars())
            return len(set_runner(connection, native_batch.batch_id, free_numbers, native_batch.id))

        return await self._database.write(write)

    async def list_free_lines(
        self, batch_id: str, after_number: int, limit: int
    ) -> list[BatchLine]:
        """Return lines with numbers above ``after_number`` that have neither a runner nor a result."""
        return await self._list_lines(batch_id, after_number, limit, sa.not_(is_running()))

    async def list_lines(
        self, native_batch: NativeBatch, after_number: int, limit: int
    ) -> list[BatchLine]:
        """Return lines of a native batch with numbers above ``after_number`` that have no result."""
        return await self._list_lines(
            native_batch.batch_id, after_number, limit, lines.c.runner == native_batch.id
        )

    async def release_lines(self, native_batch: NativeBatch) -> int:
        """Release the lines of a native batch that have no result; return their number."""

        def write(connection: sa.Connection) -> int:
            released_count = connection.execute(
                lines.update()
                .where(
                    lines.c.batch_id == native_batch.batch_id,
                    lines.c.runner == native_batch.id,
                    _PENDING,
                )
                .values(runner=None)
            ).rowcount
            connection.execute(runners.delete().where(runners.c.id == native_batch.id))
            return released_count

        return await self._database.write(write)

    async def _list_lines(
        self, batch_id: str, after_number: int, limit: int, condition: sa.ColumnElement[bool]
    ) -> list[BatchLine]:
        query = (
            sa.select(lines.c.number, lines.c.custom_id, lines.c.start, lines.c.size)
            .where(lines.c.batch_id == batch_id, lines.c.number > after_number, _PENDING, condition)
            .order_by(lines.c.number)
            .limit(limit)
        )
        return [BatchLine(**dict(row)) for row in await self._database.fetch_all(query)]

    async def _update(self, native_id: str, **values: Any) -> None:
        update = natives.update().where(natives.c.id == native_id).values(values)
        await self._database.write(lambda c: c.execute(update))


def _is_unchanged(native_batch: NativeBatch) -> sa.ColumnElement[bool]:
    return sa.and_(natives.c.id == native_batch.id, natives.c.due_at == native_batch.due_at)


def _parse_native_batch(row: Mapping[Any, Any]) -> NativeBatch:
    values: dict[str, Any] = {name: row[name] for name in NativeBatch.__slots__}
    for name in ("created_at", "due_at"):
        values[name] = ensure_utc(values[name])
    return NativeBatch(**{**values, "status": NativeStatus(row["status"])})
