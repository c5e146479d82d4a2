"""Stores the audit log of administrative operations."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from moyin.errors import InvalidRequest
from moyin.store.schema import audit
from moyin.store.sql import Database, Transaction, aware, now
from moyin.store.tokens import new_id

__all__ = ["AuditEntry", "AuditEvent", "AuditLog", "local_actor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEvent:
    """Describes one administrative operation.

    Attributes:
        owner: the tenant whose objects it changed.
        actor: the key id or the user id of the caller.
        action: ``<noun>.<verb>``.
        target: the id of the changed object.
        address: the client's address; empty if unknown.
        details: the changed values; never a secret.
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
    """Holds an event with its id and time in the log."""

    id: str
    at: datetime
    event: AuditEvent


class AuditLog:
    """Appends and reads entries; they cannot be changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, event: AuditEvent, *, within: Transaction | None = None) -> None:
        """Append an event, ``within`` the transaction that performs it, so that none is missing."""
        async with self._database.within(within) as connection:
            await connection.execute(
                audit.insert().values(
                    id=new_id("aud"),
                    at=now(),
                    owner=event.owner,
                    actor=event.actor,
                    action=event.action,
                    target=event.target,
                    details=dict(event.details),
                    request_id=event.request_id,
                    address=event.address,
                )
            )

    async def page(
        self, owner: str | None, *, limit: int, before: str | None = None
    ) -> list[AuditEntry]:
        """Return entries of a tenant, newest first; ``owner`` None: of all tenants.

        Args:
            before: the id of an entry; only older ones are returned.

        Raises:
            InvalidRequest: ``before`` is not the id of an entry.
        """
        query = sa.select(audit).order_by(audit.c.at.desc(), audit.c.id.desc()).limit(limit)
        if owner is not None:
            query = query.where(audit.c.owner == owner)
        async with self._database.reading() as connection:
            if before is not None:
                query = query.where(await _older(connection, before, owner))
            rows = (await connection.execute(query)).mappings().all()
        return [_entry(row) for row in rows]


async def _older(connection: Any, before: str, owner: str | None) -> sa.ColumnElement[bool]:
    entry = (
        await connection.execute(
            sa.select(audit.c.at, audit.c.id, audit.c.owner).where(audit.c.id == before)
        )
    ).first()
    if entry is None or (owner is not None and entry.owner != owner):
        raise InvalidRequest("before must be the id of an audit entry", field="before")
    return sa.or_(audit.c.at < entry.at, sa.and_(audit.c.at == entry.at, audit.c.id < entry.id))


def _entry(row: Mapping[Any, Any]) -> AuditEntry:
    return AuditEntry(
        id=row["id"],
        at=aware(row["at"]) or now(),
        event=AuditEvent(
            owner=row["owner"],
            actor=row["actor"],
            action=row["action"],
            target=row["target"],
            details=row["details"],
            request_id=row["request_id"],
            address=row["address"],
        ),
    )


def local_actor(program: str) -> str:
    """Return the actor of a command on this machine: the program and its user's name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # a container's user may have no name
    return f"{program}, {user}"[:128]
