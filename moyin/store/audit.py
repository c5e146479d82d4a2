"""Stores the audit log: which caller changed which object, when, and how."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from moyin.errors import InvalidRequest
from moyin.store.schema import audit
from moyin.store.sql import Database, Transaction, ensure_utc, now
from moyin.store.tokens import generate_id


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEvent:
    """Describes the change of one object, for the audit log.

    Attributes:
        owner: the tenant that owns the changed object.
        actor: the key id or the user id of the caller, or the result of `get_local_actor`.
        action: the object's kind and the kind of change, as ``<noun>.<verb>``.
        target: the id of the changed object.
        address: the client's IP address, or an empty string if it is unknown.
        details: the changed values, without secrets.
    """

    owner: str
    actor: str
    action: str
    target: str
    request_id: str
    address: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """Holds an event of the audit log with its id and time."""

    id: str
    at: datetime
    event: AuditEvent


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditFilter:
    """Selects entries of the audit log; None means no condition.

    Attributes:
        owner: the tenant whose objects changed.
        action: an `AuditEvent.action`, such as ``key.create``, or its noun alone, such as ``key``.
        since: the earliest time of the entries.
        until: the time before which the entries were written.
    """

    owner: str | None = None
    actor: str | None = None
    action: str | None = None
    target: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class AuditLog:
    """Appends entries to the audit log and reads them; nothing changes or deletes entries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, event: AuditEvent, *, transaction: Transaction | None = None) -> None:
        """Append an event in ``transaction``, or in a new one if that is None."""
        entry = audit.insert().values(id=generate_id("aud"), at=now(), **asdict(event))
        await self._database.execute(entry, transaction=transaction)

    async def list_entries(
        self, entry_filter: AuditFilter, *, limit: int, before_id: str | None = None
    ) -> list[AuditEntry]:
        """Return up to ``limit`` entries that the filter selects, newest first.

        Args:
            before_id: the id of an entry; only older entries are returned.

        Raises:
            InvalidRequest: no entry of the filter's tenant has the id ``before_id``.
        """
        query = sa.select(audit).order_by(audit.c.at.desc(), audit.c.id.desc()).limit(limit)
        query = query.where(*_build_conditions(entry_filter))
        async with self._database.reading() as connection:
            if before_id is not None:
                query = query.where(
                    await _build_older_condition(connection, before_id, entry_filter.owner)
                )
            rows = (await connection.execute(query)).mappings().all()
        return [_to_entry(row) for row in rows]


def _build_conditions(entry_filter: AuditFilter) -> list[sa.ColumnElement[bool]]:
    values_by_column = {
        audit.c.owner: entry_filter.owner,
        audit.c.actor: entry_filter.actor,
        audit.c.target: entry_filter.target,
    }
    conditions = [
        column == value for column, value in values_by_column.items() if value is not None
    ]
    if entry_filter.action is not None:
        is_noun = "." not in entry_filter.action
        conditions.append(
            audit.c.action.startswith(f"{entry_filter.action}.", autoescape=True)
            if is_noun
            else audit.c.action == entry_filter.action
        )
    if entry_filter.since is not None:
        conditions.append(audit.c.at >= entry_filter.since)
    if entry_filter.until is not None:
        conditions.append(audit.c.at < entry_filter.until)
    return conditions


async def _build_older_condition(
    connection: Any, before_id: str, owner: str | None
) -> sa.ColumnElement[bool]:
    entry = (
        await connection.execute(
            sa.select(audit.c.at, audit.c.id, audit.c.owner).where(audit.c.id == before_id)
        )
    ).first()
    if entry is None or (owner is not None and entry.owner != owner):
        raise InvalidRequest(
            f"before must be the id of an audit entry, not {before_id!r}", field="before"
        )
    return sa.or_(audit.c.at < entry.at, sa.and_(audit.c.at == entry.at, audit.c.id < entry.id))


def _to_entry(row: Mapping[Any, Any]) -> AuditEntry:
    event = AuditEvent(**{name: row[name] for name in AuditEvent.__slots__})
    return AuditEntry(id=row["id"], at=ensure_utc(row["at"]), event=event)


def get_local_actor(program: str) -> str:
    """Return the `AuditEvent.actor` of a command on this machine: its program and its OS user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # the user of a container may have no name
    return f"{program}, {user}"[:128]
