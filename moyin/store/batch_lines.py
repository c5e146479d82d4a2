"""Stores the lines of open batches, their results, and which process runs each line.

Only one runner at a time runs a line: the process that has claimed it. A runner regularly records
that it is alive. If it stops doing so, other runners may claim its lines. A result is written once
per line, in the same transaction as its usage ledger entry, so that no line is charged twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.domain.text_batch import (
    BatchLine,
    BatchStatus,
    LineResult,
    LineStatus,
    NewLine,
    get_line_request_id,
)
from moyin.store.schema import text_batch_lines as lines
from moyin.store.schema import text_batch_runners as runners
from moyin.store.schema import text_batches as batches
from moyin.store.sql import Database, now
from moyin.store.usage import UsageEntry, build_usage_row, insert_usage_rows

_INSERT = {
    "sqlite": sqlite.insert(lines).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(lines).on_conflict_do_nothing(),
}
_INSERT_RUNNER: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# A page of results has no more bytes, unless it is one result.
_PAGE_BYTES = 16 * 1024 * 1024
_PENDING = lines.c.status == LineStatus.PENDING.value
_SET_RESULT = (
    lines.update()
    .where(lines.c.batch_id == sa.bindparam("of_batch"), lines.c.number == sa.bindparam("line"))
    .values(
        status=sa.bindparam("new_status"),
        http_status=sa.bindparam("new_http_status"),
        error_code=sa.bindparam("new_error_code"),
        body=sa.bindparam("new_body"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedLine:
    """The result of a batch line, and the model calls to charge for it.

    Attributes:
        run: the id of this run of the line. If a run is reported twice, its calls are charged only
            once. Empty for a line of a native batch: its results may be read again, but always
            report the same calls, which are charged once for each line.
    """

    batch_id: str
    result: LineResult
    usage: tuple[UsageEntry, ...] = ()
    run: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LineCounts:
    """Counts the lines of a batch that have no result.

    Attributes:
        pending: the number of all these lines.
        running: the number of those that a live runner has claimed.
    """

    pending: int
    running: int


class BatchLineStore:
    """Reads and writes the lines of batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, batch_id: str, new_lines: Sequence[NewLine]) -> None:
        """Add lines to a batch; skip lines that exist already."""
        rows = [
            {
                "batch_id": batch_id,
                "number": line.number,
                "custom_id": line.custom_id,
                "start": line.start,
                "size": line.size,
                "status": LineStatus.PENDING.value,
            }
            for line in new_lines
        ]
        if rows:
            await self._database.write(lambda c: c.execute(_INSERT[c.dialect.name], rows))

    async def renew_runner(self, runner_id: str, alive_seconds: float) -> None:
        """Count a runner as alive for the next ``alive_seconds``, and delete long-dead runners."""

        def write(connection: sa.Connection) -> None:
            _renew_runner(connection, runner_id, alive_seconds)
            connection.execute(
                runners.delete().where(runners.c.alive_until < now() - timedelta(days=1))
            )

        await self._database.write(write)

    async def remove_runner(self, runner_id: str) -> None:
        """Record that a runner has ended, so that other runners may claim its lines at once."""
        await self._database.write(
            lambda c: c.execute(runners.delete().where(runners.c.id == runner_id))
        )

    async def claim(
        self,
        batch_id: str,
        runner_id: str,
        limit: int,
        *,
        running_numbers: Sequence[int] = (),
        alive_seconds: float | None = None,
    ) -> list[BatchLine]:
        """Claim the next lines that no other live runner has claimed, and return them.

        Args:
            limit: the maximum number of lines.
            running_numbers: the numbers of the lines that this runner is running, which are left out. All
                other lines that it claimed earlier may be returned again, such as those of a
                cancelled call.
            alive_seconds: if given, also count the runner as alive for this time, as `renew_runner`
                does.

        Returns:
            The claimed lines; empty if none is left, or if the batch was cancelled or has expired.
        """

        def write(connection: sa.Connection) -> list[BatchLine]:
            if not lock_open_batch(connection, batch_id):
                return []
            if alive_seconds is not None:
                _renew_runner(connection, runner_id, alive_seconds)
            query = (
                sa.select(lines.c.number, lines.c.custom_id, lines.c.start, lines.c.size)
                .where(
                    lines.c.batch_id == batch_id,
                    _is_free(runner_id),
                    lines.c.number.not_in(running_numbers),
                )
                .order_by(lines.c.number)
                .limit(limit)
                .with_for_update(skip_locked=True, of=lines)
            )
            while free_lines := [BatchLine(**row) for row in connection.execute(query).mappings()]:
                numbers = set_runner(
                    connection, batch_id, [line.number for line in free_lines], runner_id
                )
                if numbers:
                    return [line for line in free_lines if line.number in numbers]
            return []

        return await self._database.write(write)

    async def release(self, batch_id: str, numbers: Sequence[int], runner_id: str) -> None:
        """Release lines that a runner has claimed but will not run."""
        update = (
            lines.update()
            .where(
                lines.c.batch_id == batch_id,
                lines.c.number.in_(numbers),
                lines.c.runner == runner_id,
                _PENDING,
            )
            .values(runner=None)
        )
        await self._database.write(lambda c: c.execute(update))

    async def release_all(self, batch_id: str, runner_id: str) -> None:
        """Release all lines that a runner has claimed; it must not be running any of them."""
        update = (
            lines.update()
            .where(lines.c.batch_id == batch_id, lines.c.runner == runner_id, _PENDING)
            .values(runner=None)
        )
        await self._database.write(lambda c: c.execute(update))

    async def finish(self, finished_lines: Sequence[FinishedLine]) -> list[FinishedLine]:
        """Write results of lines, and in the same transaction their batches' counts and the usage.

        A result is not written if its line has a result already or its batch has ended. The model
        calls of such a result are nevertheless charged, and recorded as incomplete.

        Returns:
            The results that were not written.
        """

        def write(connection: sa.Connection) -> list[FinishedLine]:
            unwritten_lines: list[FinishedLine] = []
            usage_rows: list[dict[str, Any]] = []
            # In one order, since two writers that lock batches in different ones would deadlock.
            for batch_id in sorted({finished_line.batch_id for finished_line in finished_lines}):
                lines_by_number = {
                    i.result.number: i for i in finished_lines if i.batch_id == batch_id
                }
                written_numbers = _write_results(connection, batch_id, lines_by_number)
                for number, finished_line in sorted(lines_by_number.items()):
                    if number not in written_numbers:
                        unwritten_lines.append(finished_line)
                        # Nothing changes if it was written, but the answer to the commit was lost.
                        finished_line = replace(
                            finished_line,
                            usage=tuple(_mark_incomplete(e) for e in finished_line.usage),
                        )
                    usage_rows += _build_usage_rows(finished_line)
            if usage_rows:
                insert_usage_rows(usage_rows, connection)
            return unwritten_lines

        return await self._database.write(write)

    async def count(self, batch_id: str) -> LineCounts:
        """Count the lines of a batch that have no result yet."""
        pending_query = (
            sa.select(sa.func.count())
            .select_from(lines)
            .where(lines.c.batch_id == batch_id, _PENDING)
        )
        query = sa.select(
            pending_query.scalar_subquery(), pending_query.where(is_running()).scalar_subquery()
        )
        row = await self._database.read(lambda c: c.execute(query).one())
        return LineCounts(pending=row[0], running=row[1])

    async def list_claimed_lines(
        self, batch_id: str, numbers: Sequence[int], runner_id: str
    ) -> list[BatchLine]:
        """Return the lines with ``numbers`` that the runner has claimed and not finished."""
        query = (
            sa.select(lines.c.number, lines.c.custom_id, lines.c.start, lines.c.size)
            .where(
                lines.c.batch_id == batch_id,
                lines.c.number.in_(numbers),
                lines.c.runner == runner_id,
                _PENDING,
            )
            .order_by(lines.c.number)
        )
        return [BatchLine(**dict(row)) for row in await self._database.fetch_all(query)]

    async def list_page(self, batch_id: str, after_number: int, limit: int) -> list[BatchLine]:
        """Return the lines with numbers above ``after_number``, with their results, in order.

        The page has up to ``limit`` lines. It has fewer if their results are large, but at least
        one if any is left.
        """
        conditions = (lines.c.batch_id == batch_id, lines.c.number > after_number)
        size_query = (
            sa.select(lines.c.number, sa.func.coalesce(sa.func.length(lines.c.body), 0))
            .where(*conditions)
            .order_by(lines.c.number)
            .limit(limit)
        )

        def read(connection: sa.Connection) -> Sequence[sa.RowMapping]:
            last_number = after_number
            bytes_left = _PAGE_BYTES
            for number, size in connection.execute(size_query):
                bytes_left -= size
                if bytes_left < 0 and last_number > after_number:
                    break
                last_number = number
            query = sa.select(lines).where(*conditions, lines.c.number <= last_number)
            return connection.execute(query.order_by(lines.c.number)).mappings().all()

        return [_parse_line(row) for row in await self._database.read(read)]


def is_running() -> sa.ColumnElement[bool]:
    """Return the SQL condition for lines whose runner is alive."""
    return sa.and_(
        lines.c.runner.is_not(None),
        sa.exists().where(runners.c.id == lines.c.runner, runners.c.alive_until > now()),
    )


def lock_open_batch(connection: sa.Connection, batch_id: str) -> bool:
    """Lock the row of a batch, so that its state cannot change before the transaction ends.

    Returns:
        True if the lines of the batch may still be run.
    """
    query = sa.select(batches.c.id).where(
        batches.c.id == batch_id,
        batches.c.status == BatchStatus.IN_PROGRESS.value,
        batches.c.expires_at > now(),
    )
    return connection.execute(query.with_for_update(read=True)).first() is not None


def set_runner(
    connection: sa.Connection, batch_id: str, numbers: Sequence[int], runner_id: str
) -> set[int]:
    """Set the runner of those lines that no other live runner has, and return their numbers.

    The caller must have locked the lines with an earlier statement. On PostgreSQL, that statement
    may also have locked lines that a new runner had just claimed, because it could not see the row
    of that runner yet. So the lines are checked again here.
    """
    update = (
        lines.update()
        .where(lines.c.batch_id == batch_id, lines.c.number.in_(numbers), _is_free(runner_id))
        .values(runner=runner_id)
    )
    return set(connection.execute(update.returning(lines.c.number)).scalars())


def _is_free(runner_id: str) -> sa.ColumnElement[bool]:
    """Return the SQL condition for unfinished lines that no other live runner has."""
    return sa.and_(_PENDING, sa.or_(lines.c.runner == runner_id, sa.not_(is_running())))


def _renew_runner(connection: sa.Connection, runner_id: str, alive_seconds: float) -> None:
    row = {"id": runner_id, "alive_until": now() + timedelta(seconds=alive_seconds)}
    insert = _INSERT_RUNNER[connection.dialect.name](runners).values(row)
    connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=row))


def _write_results(
    connection: sa.Connection, batch_id: str, lines_by_number: Mapping[int, FinishedLine]
) -> set[int]:
    """Write the results in ``lines_by_number``, except for lines that have a result already.

    Returns:
        The numbers of the lines whose results were written.
    """
    unsealed_batch = sa.select(batches.c.id).where(
        batches.c.id == batch_id, batches.c.finalizing_at.is_(None)
    )
    # The lock prevents the sealing of the batch. It is exclusive, since the counts are changed below:
    # two writers with a shared lock could deadlock.
    if connection.execute(unsealed_batch.with_for_update()).first() is None:
        return set()
    query = sa.select(lines.c.number).where(
        lines.c.batch_id == batch_id, lines.c.number.in_(list(lines_by_number)), _PENDING
    )
    numbers = set(connection.execute(query.with_for_update()).scalars())
    if not numbers:
        return numbers
    results = [lines_by_number[number].result for number in sorted(numbers)]
    connection.execute(
        _SET_RESULT,
        [
            {
                "of_batch": batch_id,
                "line": result.number,
                "new_status": result.status.value,
                "new_http_status": result.http_status,
                "new_error_code": result.error_code,
                "new_body": result.body,
            }
            for result in results
        ],
    )
    failed_count = sum(result.status is LineStatus.FAILED for result in results)
    connection.execute(
        batches.update()
        .where(batches.c.id == batch_id)
        .values(
            completed=batches.c.completed + len(results) - failed_count,
            failed=batches.c.failed + failed_count,
        )
    )
    return numbers


def _build_usage_rows(finished_line: FinishedLine) -> list[dict[str, Any]]:
    """Return the ledger rows of a line's model calls.

    The id of a row is derived from the line, its run and the position of the call, so that writing
    the row twice charges the call once.
    """
    written_at = now()
    request_id = get_line_request_id(finished_line.batch_id, finished_line.result.number)
    if finished_line.run:
        request_id += f"/{finished_line.run}"
    return [
        build_usage_row(
            entry,
            written_at,
            hashlib.sha256(f"{request_id}/{call_index}".encode()).hexdigest()[:32],
        )
        for call_index, entry in enumerate(finished_line.usage)
    ]


def _mark_incomplete(entry: UsageEntry) -> UsageEntry:
    return replace(entry, complete=False)


def _parse_line(row: Mapping[Any, Any]) -> BatchLine:
    result = None
    if row["status"] != LineStatus.PENDING.value:
        result = LineResult(
            number=row["number"],
            http_status=row["http_status"],
            body=row["body"],
            error_code=row["error_code"],
        )
    return BatchLine(
        number=row["number"],
        custom_id=row["custom_id"],
        start=row["start"],
        size=row["size"],
        result=result,
    )
