"""Stores one row per batch of text requests, which is authoritative about the batch's state.

Workflows only trigger the steps of a batch. The row alone decides which step may come next, so any
process may repeat a step at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from moyin.domain.serialization import from_plain, to_plain
from moyin.domain.stored_file import StoredFile
from moyin.domain.text_batch import BatchDialect, BatchError, BatchStatus, LineStatus, TextBatch
from moyin.errors import BatchFinished, BatchNotFinished, BatchNotFound, TooManyBatches
from moyin.store.batch_lines import is_running
from moyin.store.files import insert_files
from moyin.store.schema import text_batch_lines, text_batches
from moyin.store.sql import Database, ensure_utc, now

MAX_OPEN_BATCHES = 50
_RETRY_SECONDS = 30
_OPEN = tuple(status.value for status in BatchStatus if not status.is_final)
_PLAIN_COLUMNS = tuple(
    name
    for name in TextBatch.__slots__
    if name not in ("dialect", "status", "errors", "scopes", "user")
)
_TIMES = tuple(name for name in TextBatch.__slots__ if name.endswith("_at"))


class TextBatchStore:
    """Reads and writes the rows of batches.

    Attributes:
        max_open: the maximum number of open batches of a tenant.
    """

    def __init__(self, database: Database, *, max_open: int = MAX_OPEN_BATCHES) -> None:
        self._database = database
        self.max_open = max_open

    async def create(self, batch: TextBatch) -> None:
        """Insert a batch, which a workflow will run; raise `TooManyBatches` if too many are open."""
        row = _build_row(batch)

        def create(connection: sa.Connection) -> None:
            if connection.dialect.name == "postgresql":
                lock_key = sa.func.hashtext(f"text-batches:{batch.owner}")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_key)))
            query = (
                sa.select(sa.func.count())
                .select_from(text_batches)
                .where(text_batches.c.owner == batch.owner, text_batches.c.status.in_(_OPEN))
            )
            if connection.execute(query).scalar_one() >= self.max_open:
                raise TooManyBatches(
                    f"at most {self.max_open} batches may be open; wait until one has ended",
                    retry_after=_RETRY_SECONDS,
                    details={"limit": "open_batches", "max": self.max_open},
                )
            connection.execute(text_batches.insert(), row)

        await self._database.write(create)

    async def get(
        self, owner: str, batch_id: str, *, dialect: BatchDialect | None = None
    ) -> TextBatch:
        """Return a batch of the tenant, or raise `BatchNotFound`.

        Args:
            dialect: the API that the batch must belong to; None means any.
        """
        batch = await self.find(batch_id)
        if batch is None or batch.owner != owner or dialect not in (None, batch.dialect):
            raise _new_not_found_error(batch_id)
        return batch

    async def find(self, batch_id: str) -> TextBatch | None:
        """Return a batch of any tenant, or None if no batch has the id."""
        query = sa.select(text_batches).where(text_batches.c.id == batch_id)
        row = await self._database.fetch_first(query)
        return None if row is None else _parse_batch(row)

    async def list_page(
        self,
        owner: str,
        dialect: BatchDialect,
        *,
        limit: int = 20,
        after_id: str | None = None,
        before_id: str | None = None,
    ) -> tuple[list[TextBatch], bool]:
        """Return a page of the tenant's batches, newest first, and True if there are more.

        Args:
            dialect: the API whose batches are listed.
            after_id: the id of the last batch of the previous page.
            before_id: the id of the first batch of the next page; not allowed together with
                ``after_id``.

        Raises:
            BatchNotFound: there is no batch with the id ``after_id`` or ``before_id``.
        """
        query = sa.select(text_batches).where(
            text_batches.c.owner == owner, text_batches.c.dialect == dialect.value
        )
        columns = (text_batches.c.created_at, text_batches.c.id)
        if (edge_id := after_id or before_id) is not None:
            edge_batch = await self.get(owner, edge_id, dialect=dialect)
            edge_position = sa.tuple_(
                sa.literal(edge_batch.created_at, text_batches.c.created_at.type),
                sa.literal(edge_batch.id),
            )
            row_position = sa.tuple_(*columns)
            query = query.where(
                row_position < edge_position
                if after_id is not None
                else row_position > edge_position
            )
        is_backwards = after_id is None and before_id is not None
        query = query.order_by(*(c.asc() if is_backwards else c.desc() for c in columns))
        rows = await self._database.fetch_all(query.limit(limit + 1))
        page = [_parse_batch(row) for row in rows[:limit]]
        return page[::-1] if is_backwards else page, len(rows) > limit

    async def cancel(self, owner: str, batch_id: str) -> TextBatch:
        """Begin to cancel a batch and return it: running lines finish, and no other line starts.

        Raises:
            BatchNotFound: the tenant has no such batch.
            BatchFinished: the batch has ended, or all of its lines have.
        """
        update = (
            text_batches.update()
            .where(
                text_batches.c.id == batch_id,
                text_batches.c.owner == owner,
                text_batches.c.status.in_((BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)),
            )
            .values(status=BatchStatus.CANCELLING.value, cancelling_at=now())
        )
        changed_count = await self._database.write(lambda c: c.execute(update).rowcount)
        batch = await self.get(owner, batch_id)
        if not changed_count and batch.status not in (
            BatchStatus.CANCELLING,
            BatchStatus.CANCELLED,
        ):
            raise BatchFinished(
                f"batch {batch_id} has the status {batch.status.value} and cannot be cancelled; only an open "
                "batch can",
                details={"status": batch.status.value},
            )
        return batch

    async def delete(self, owner: str, batch_id: str) -> None:
        """Delete an ended batch; its files stay.

        Raises:
            BatchNotFound: the tenant has no such batch.
            BatchNotFinished: the batch is still open.
        """
        batch = await self.get(owner, batch_id)
        if not batch.status.is_final:
            raise BatchNotFinished(f"batch {batch_id} has not ended; cancel it first")
        statement = text_batches.delete().where(text_batches.c.id == batch_id)
        await self._database.write(lambda c: c.execute(statement))

    async def list_undispatched(self, limit: int = 100) -> list[tuple[str, str]]:
        """Return the id and the owner of each open batch without a workflow, oldest first."""
        query = (
            sa.select(text_batches.c.id, text_batches.c.owner)
            .where(text_batches.c.dispatched.is_(False), text_batches.c.status.in_(_OPEN))
            .order_by(text_batches.c.created_at)
            .limit(limit)
        )
        rows = await self._database.read(lambda c: c.execute(query).all())
        return [(batch_id, owner) for batch_id, owner in rows]

    async def mark_dispatched(self, batch_id: str) -> None:
        """Record that the workflow of a batch was started."""
        update = text_batches.update().where(text_batches.c.id == batch_id).values(dispatched=True)
        await self._database.write(lambda c: c.execute(update))

    async def begin(self, batch_id: str, line_count: int) -> None:
        """Record that all ``line_count`` lines of a batch are valid and stored, so that they may run."""
        update = text_batches.update().where(text_batches.c.id == batch_id)
        running_update = update.where(text_batches.c.status == BatchStatus.VALIDATING).values(
            status=BatchStatus.IN_PROGRESS.value, in_progress_at=now(), total=line_count
        )
        # A batch that was cancelled meanwhile shows its lines, too.
        cancelling_update = update.where(text_batches.c.status == BatchStatus.CANCELLING).values(
            total=line_count
        )

        def write(connection: sa.Connection) -> None:
            connection.execute(running_update)
            connection.execute(cancelling_update)

        await self._database.write(write)

    async def fail(self, batch_id: str, errors: Sequence[BatchError]) -> None:
        """Record that the input file of a batch is invalid."""
        update = (
            text_batches.update()
            .where(
                text_batches.c.id == batch_id,
                text_batches.c.status.in_((BatchStatus.VALIDATING, BatchStatus.CANCELLING)),
            )
            .values(
                status=BatchStatus.FAILED.value,
                ended_at=now(),
                errors=[to_plain(error) for error in errors],
            )
        )
        line_deletion = text_batch_lines.delete().where(text_batch_lines.c.batch_id == batch_id)

        def write(connection: sa.Connection) -> None:
            connection.execute(update)
            connection.execute(line_deletion)

        await self._database.write(write)

    async def seal(self, batch_id: str) -> bool:
        """Seal a batch if all its lines have ended, or if it was cancelled or has expired.

        The lines of a sealed batch can neither start nor change. A batch with running lines is not
        sealed.

        Returns:
            True if the batch is sealed, so that its results can be written to files.
        """
        is_pending = sa.and_(
            text_batch_lines.c.batch_id == batch_id,
            text_batch_lines.c.status == LineStatus.PENDING.value,
        )

        def write(connection: sa.Connection) -> bool:
            row = connection.execute(
                sa.select(text_batches).where(text_batches.c.id == batch_id).with_for_update()
            ).one_or_none()
            if row is None or row.finalizing_at is not None:
                return True
            has_pending_lines = connection.execute(
                sa.select(sa.exists().where(is_pending))
            ).scalar_one()
            is_over = (
                row.status == BatchStatus.CANCELLING.value
                or not has_pending_lines
                or ensure_utc(row.expires_at) <= now()
            )
            running_query = sa.select(sa.exists().where(is_pending, is_running()))
            if not is_over or connection.execute(running_query).scalar_one():
                return False
            values: dict[str, Any] = {"finalizing_at": now()}
            if row.status == BatchStatus.IN_PROGRESS.value:
                values["status"] = BatchStatus.FINALIZING.value
            connection.execute(
                text_batches.update().where(text_batches.c.id == batch_id).values(values)
            )
            return True

        return await self._database.write(write)

    async def finish(
        self, batch_id: str, *, output_file: StoredFile | None, error_file: StoredFile | None
    ) -> TextBatch:
        """Write the final status of a sealed batch and its files, and delete its lines.

        The status is ``cancelled`` if that was requested, ``expired`` if lines were not run, and
        otherwise ``completed``. A batch that has ended already is left unchanged.

        Args:
            output_file: the file with the answers, or None if there are none.
            error_file: the file with the failed lines, or None if there are none.

        Returns:
            The ended batch.
        """
        is_of_batch = text_batch_lines.c.batch_id == batch_id
        pending_query = sa.select(
            sa.exists().where(is_of_batch, text_batch_lines.c.status == LineStatus.PENDING.value)
        )

        def write(connection: sa.Connection) -> Mapping[Any, Any] | None:
            query = sa.select(text_batches).where(text_batches.c.id == batch_id)
            row = connection.execute(query.with_for_update()).mappings().one_or_none()
            if row is None or row["status"] not in _OPEN:
                return row
            status = BatchStatus.COMPLETED
            if row["status"] == BatchStatus.CANCELLING.value:
                status = BatchStatus.CANCELLED
            elif connection.execute(pending_query).scalar_one():
                status = BatchStatus.EXPIRED
            insert_files(
                connection, *(file for file in (output_file, error_file) if file is not None)
            )
            connection.execute(
                text_batches.update()
                .where(text_batches.c.id == batch_id)
                .values(
                    status=status.value,
                    ended_at=now(),
                    output_file_id=None if output_file is None else output_file.id,
                    error_file_id=None if error_file is None else error_file.id,
                )
            )
            connection.execute(text_batch_lines.delete().where(is_of_batch))
            return connection.execute(query).mappings().one()

        ended_row = await self._database.write(write)
        if ended_row is None:
            raise _new_not_found_error(batch_id)
        return _parse_batch(ended_row)


def _new_not_found_error(batch_id: str) -> BatchNotFound:
    return BatchNotFound(
        f"there is no batch {batch_id[:80]!r}: it may have been deleted; check the id"
    )


def _build_row(batch: TextBatch) -> dict[str, Any]:
    return {
        **{name: getattr(batch, name) for name in _PLAIN_COLUMNS},
        "metadata": dict(batch.metadata),
        "dialect": batch.dialect.value,
        "status": batch.status.value,
        "errors": [to_plain(error) for error in batch.errors],
        "scopes": " ".join(sorted(batch.scopes)),
        "user_id": batch.user,
        "dispatched": False,
    }


def _parse_batch(row: Mapping[Any, Any]) -> TextBatch:
    values: dict[str, Any] = {name: row[name] for name in _PLAIN_COLUMNS}
    times: dict[str, datetime | None] = {name: ensure_utc(row[name]) for name in _TIMES}
    return TextBatch(
        **{**values, **times},
        dialect=BatchDialect(row["dialect"]),
        status=BatchStatus(row["status"]),
        errors=tuple(from_plain(BatchError, error) for error in row["errors"]),
        scopes=frozenset(row["scopes"].split()),
        user=row["user_id"],
    )
