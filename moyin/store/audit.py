"""The audit log: who did which administrative act, to what, when and from where."""

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

__all__ = ["Act", "AuditLog", "Entry", "local_actor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """One administrative act.

    Attributes:
        owner: the tenant that it concerns.
        actor: key id or user id.
        action: ``<noun>.<verb>``.
        details: what changed; never a secret.
    """

    owner: str
    actor: str
    action: str
    target: str
    request_id: str
    address: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An act as it was written down."""

    id: str
    at: datetime
    act: Act


class AuditLog:
    """Appends and reads; there is no way to change an entry."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, act: Act, *, within: Transaction | None = None) -> None:
        """``within``: the transaction of the act itself, so that there is none without its entry."""
        async with self._database.within(within) as connection:
            await connection.execute(
                audit.insert().values(
                    id=new_id("aud"),
                    at=now(),
                    owner=act.owner,
                    actor=act.actor,
                    action=act.action,
                    target=act.target,
                    details=dict(act.details),
                    request_id=act.request_id,
                    address=act.address,
                )
            )

    async def page(
        self, owner: str | None, *, limit: int, before: str | None = None
    ) -> list[Entry]:
        """Newest first; ``owner`` None: everybody's. ``before``: the id of an entry.

        Raises:
            InvalidRequest: ``before`` is no entry.
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
    found = (
        await connection.execute(
            sa.select(audit.c.at, audit.c.id, audit.c.owner).where(audit.c.id == before)
        )
    ).first()
    if found is None or (owner is not None and found.owner != owner):
        raise InvalidRequest("before must be the id of an entry", field="before")
    return sa.or_(audit.c.at < found.at, sa.and_(audit.c.at == found.at, audit.c.id < found.id))


def _entry(row: Mapping[Any, Any]) -> Entry:
    return Entry(
        id=row["id"],
        at=aware(row["at"]) or now(),
        act=Act(
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
    """Return the actor of what a command did on this machine: no more than the machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"  # a container's user may have no name
    return f"{program}, {user}"[:128]
