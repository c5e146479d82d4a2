"""Stores routing decisions, quality signals and learned states in SQL.

Signals form a numbered log, and every replica learns from them in that order. So replicas agree once
they have read the same numbers, and a new one starts from the last saved state.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.store.schema import quality_decisions, quality_signals, quality_states
from moyin.store.sql import Database, ensure_utc, now

__all__ = [
    "DECISION_RETENTION",
    "OWNER_ACTIONS",
    "DecisionRow",
    "QualityStore",
    "SavedState",
    "SignalRow",
]

# The actions of an owner on learning. They are stored as signals, so that all replicas apply them.
OWNER_ACTIONS = ("reset", "freeze", "thaw")

DECISION_RETENTION = timedelta(days=30)
# After this time the weight of a signal has decayed to a fiftieth.
_SIGNAL_RETENTION = timedelta(days=90)
# A half-life of what distinguishes models: older levels say little about the present ones.
_LEVEL_LIFETIME = timedelta(days=10)
_MAX_LEVELS, _PAGE = 1_000, 100
_LOCK = zlib.crc32(b"quality_signals")
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_UNIQUE = ["owner", "request_id", "key_id", "source"]


# Not frozen: one is made per request, and freezing doubles the cost.
@dataclass(kw_only=True, slots=True)
class DecisionRow:
    """Records what was known when a model was chosen for a request.

    Attributes:
        question: the request's features as `moyin.text.quality` defines them; no text.
        p_good: the expected probability of a good answer.
        options: for each candidate its model, expected cost in nano US dollars, expected quality,
            and lower bound of the quality.
    """

    id: str
    owner: str
    request_id: str
    model: str
    question: Mapping[str, Any]
    p_good: float
    options: Sequence[Sequence[Any]]
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalRow:
    """Records one signal; with ``question`` None, one of `OWNER_ACTIONS`.

    Attributes:
        number: the position in the log; 0 until it is written.
        key_id: the key that gave the signal; empty: the gateway observed it.
        p_good: the probability of a good answer that was expected before the answer.
    """

    owner: str
    request_id: str
    key_id: str
    source: str
    model: str
    question: Mapping[str, Any] | None
    score: float
    weight: float
    p_good: float | None
    created_at: datetime
    comment: str | None = None
    number: int = 0


_DECISION = tuple(DecisionRow.__dataclass_fields__)
# The database assigns the number.
_SIGNAL = tuple(name for name in SignalRow.__dataclass_fields__ if name != "number")
_decision_values, _signal_values = attrgetter(*_DECISION), attrgetter(*_SIGNAL)
_WRITE_DECISION = {
    name: insert(quality_decisions).on_conflict_do_nothing(index_elements=["id"])
    for name, insert in _INSERT.items()
}
_WRITE_SIGNAL = {
    name: insert(quality_signals).on_conflict_do_nothing(index_elements=_UNIQUE)
    for name, insert in _INSERT.items()
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedState:
    """Holds the state learned from a tenant's signals up to ``number``.

    Attributes:
        levels: the tenant's contribution to the shared levels.
    """

    state: Mapping[str, Any]
    number: int
    levels: Mapping[str, Any] | None = None


class QualityStore:
    """Reads and writes rows of decisions, signals and states."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, decisions: Sequence[DecisionRow], signals: Sequence[SignalRow]) -> None:
        """Write a batch, except rows that exist."""
        if decisions or signals:
            await self._database.write(partial(_write, decisions, signals))

    async def add(self, signals: Sequence[SignalRow]) -> list[SignalRow]:
        """Write ``signals`` in one transaction and return the stored rows, in the same order.

        An existing signal of the same request, key and source is kept and returned.
        """
        return await self._database.write(partial(_add, signals))

    async def decision(self, owner: str, request_id: str) -> DecisionRow | None:
        """Return the newest decision of ``owner`` under this request id."""
        table = quality_decisions
        query = (
            sa.select(table)
            .where(table.c.owner == owner, table.c.request_id == request_id)
            .order_by(table.c.created_at.desc())
            .limit(1)
        )
        row = await self._database.read(lambda c: c.execute(query).mappings().first())
        return None if row is None else DecisionRow(**_utc(row))

    async def options(self, owner: str, limit: int) -> list[Sequence[Sequence[Any]]]:
        """Return the options of the newest decisions of ``owner`` within thirty days."""
        table = quality_decisions
        query = (
            sa.select(table.c.options)
            .where(table.c.owner == owner, table.c.created_at >= now() - DECISION_RETENTION)
            .order_by(table.c.created_at.desc())
            .limit(limit)
        )
        return list(await self._database.read(lambda c: c.execute(query).scalars().all()))

    async def signals(
        self, after: int, limit: int, *, owner: str | None = None, up_to: int | None = None
    ) -> list[SignalRow]:
        """Return signals whose number is above ``after``, in order.

        Args:
            owner: only signals of this owner; None: of all.
            up_to: the highest number to return; None: any.
        """
        table = quality_signals
        query = sa.select(table).where(table.c.number > after).order_by(table.c.number).limit(limit)
        if owner is not None:
            query = query.where(table.c.owner == owner)
        if up_to is not None:
            query = query.where(table.c.number <= up_to)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [SignalRow(**_utc(row)) for row in rows]

    async def latest(self, owner: str, limit: int) -> list[SignalRow]:
        """Return the newest signals of ``owner``, newest first."""
        table = quality_signals
        query = (
            sa.select(table)
            .where(table.c.owner == owner)
            .order_by(table.c.number.desc())
            .limit(limit)
        )
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [SignalRow(**_utc(row)) for row in rows]

    async def verdicts(self, owner: str, since: datetime, limit: int) -> list[tuple[str, float]]:
        """Return the judge's newest scores of ``owner``'s answers since ``since``, by request id."""
        table = quality_signals
        query = (
            sa.select(table.c.request_id, table.c.score)
            .where(
                table.c.owner == owner,
                table.c.source == "judge",
                table.c.created_at >= since,
            )
            .order_by(table.c.number.desc())
            .limit(limit)
        )
        rows = await self._database.read(lambda c: c.execute(query).all())
        return [(request_id, score) for request_id, score in rows]

    async def last_number(self) -> int:
        """Return the highest number in the log; 0 if it is empty."""
        query = sa.select(sa.func.max(quality_signals.c.number))
        return await self._database.read(lambda c: c.execute(query).scalar()) or 0

    async def state(self, owner: str) -> SavedState | None:
        """Return the last saved state of ``owner``; None: there is none."""
        table = quality_states
        query = sa.select(table.c.state, table.c.number).where(table.c.owner == owner)
        row = await self._database.read(lambda c: c.execute(query).mappings().first())
        return None if row is None else SavedState(**row)

    async def save(self, owner: str, saved: SavedState) -> None:
        """Save a state unless a later one is stored."""
        levels = dict(saved.levels) if saved.levels else None
        values = {
            "state": dict(saved.state),
            "number": saved.number,
            "updated_at": now(),
            "levels": levels,
        }
        await self._database.write(partial(_save, owner, values))

    async def levels(self) -> list[Mapping[str, Any]]:
        """Return the levels of the tenants that learned within ten days, the newest thousand."""
        # By owner, since a tenant that saves meanwhile may appear on two pages.
        table, levels = quality_states, dict[str, Mapping[str, Any]]()
        query = (
            sa.select(table.c.owner, table.c.levels)
            .where(table.c.levels.is_not(None), table.c.updated_at >= now() - _LEVEL_LIFETIME)
            .order_by(table.c.updated_at.desc(), table.c.owner)
        )
        # In pages, since the values are decoded in the event loop.
        for offset in range(0, _MAX_LEVELS, _PAGE):
            rows = await self._database.read(partial(_page, query.offset(offset).limit(_PAGE)))
            levels.update((row["owner"], row["levels"]) for row in rows)
            if len(rows) < _PAGE:
                break
        return list(levels.values())

    async def reset(self, action: SignalRow) -> None:
        """Delete an owner's signals and state, and write ``action``, so that replicas follow."""
        await self._database.write(partial(_reset, action))

    async def prune(self) -> None:
        """Delete decisions and signals that are too old to matter."""
        await self._database.write(_prune)


def _page(query: sa.Select[Any], connection: sa.Connection) -> Sequence[Any]:
    return connection.execute(query).mappings().all()


def _utc(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**row, "created_at": ensure_utc(row["created_at"])}


def _lock_numbering(connection: sa.Connection) -> None:
    """Serialize writers, so that a reader that sees a number also sees all smaller ones.

    SQLite has only one writer.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def _write(
    decisions: Sequence[DecisionRow], signals: Sequence[SignalRow], connection: sa.Connection
) -> None:
    name = connection.dialect.name
    if decisions:
        rows = [dict(zip(_DECISION, _decision_values(row), strict=True)) for row in decisions]
        connection.execute(_WRITE_DECISION[name], rows)
    if signals:
        _lock_numbering(connection)
        rows = [dict(zip(_SIGNAL, _signal_values(row), strict=True)) for row in signals]
        connection.execute(_WRITE_SIGNAL[name], rows)


def _add(signals: Sequence[SignalRow], connection: sa.Connection) -> list[SignalRow]:
    table = quality_signals
    _write((), signals, connection)
    stored = []
    for signal in signals:
        query = sa.select(table).where(
            *(table.c[name] == getattr(signal, name) for name in _UNIQUE)
        )
        stored.append(SignalRow(**_utc(connection.execute(query).mappings().one())))
    return stored


def _save(owner: str, values: dict[str, Any], connection: sa.Connection) -> None:
    table = quality_states
    insert = _INSERT[connection.dialect.name](table).values(owner=owner, **values)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["owner"], set_=values, where=table.c.number < values["number"]
        )
    )


def _reset(action: SignalRow, connection: sa.Connection) -> None:
    for table in (quality_signals, quality_states):
        connection.execute(table.delete().where(table.c.owner == action.owner))
    _write((), [action], connection)


def _prune(connection: sa.Connection) -> None:
    for table, age in (
        (quality_decisions, DECISION_RETENTION),
        (quality_signals, _SIGNAL_RETENTION),
    ):
        connection.execute(table.delete().where(table.c.created_at < now() - age))
