"""Records the callers that cancel an attempt of a job, in the column ``cancelled_by`` of its row.

Several cancel requests may overlap, and each of them may fail. So each request adds its own entry,
and a failed request removes only its own. The job shows the oldest entry as its canceller.
"""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa

from moyin.domain.job import Canceller
from moyin.domain.serialization import to_plain
from moyin.store.job_rows import OPEN_STATUSES, get_canceller_entries
from moyin.store.schema import jobs

# Further requests are sent on, too, but could only be the canceller if all of these failed.
_MAX_ENTRIES = 8
_ATTEMPT = (
    jobs.c.id == sa.bindparam("job_id"),
    jobs.c.attempts == sa.bindparam("attempt"),
    jobs.c.status.in_(OPEN_STATUSES),
)
_LOCK = sa.select(jobs.c.cancelled_by).where(*_ATTEMPT).with_for_update()
_UPDATE = jobs.update().where(*_ATTEMPT)


def add_canceller(
    connection: sa.Connection, job_id: str, attempt: int, canceller: Canceller
) -> str | None:
    """Add an entry for a cancel request and return the entry's id.

    The result is None if the attempt has ended or already has the maximum number of entries.
    """
    entries = _lock_entries(connection, job_id, attempt)
    if entries is None or len(entries) >= _MAX_ENTRIES:
        return None
    entry_id = secrets.token_hex(8)
    entry = {"id": entry_id, "by": to_plain(canceller)}
    _write_entries(connection, job_id, attempt, [*entries, entry])
    return entry_id


def remove_canceller(connection: sa.Connection, job_id: str, attempt: int, entry_id: str) -> None:
    """Remove an entry of `add_canceller`, because its request to cancel the job has failed.

    If the attempt has ended, do nothing.
    """
    entries = _lock_entries(connection, job_id, attempt)
    if entries is not None:
        remaining_entries = [entry for entry in entries if entry["id"] != entry_id]
        _write_entries(connection, job_id, attempt, remaining_entries)


def _lock_entries(connection: sa.Connection, job_id: str, attempt: int) -> list[Any] | None:
    values = {"job_id": job_id, "attempt": attempt}
    row = connection.execute(_LOCK, values).mappings().first()
    return None if row is None else get_canceller_entries(row)


def _write_entries(
    connection: sa.Connection, job_id: str, attempt: int, entries: list[Any]
) -> None:
    values = {"job_id": job_id, "attempt": attempt}
    connection.execute(_UPDATE.values(cancelled_by=entries or None), values)
