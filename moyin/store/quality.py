"""Decisions, signals and what they taught, in SQL.

Signals are a log: each has a number, and every replica learns from them in that order. So replicas
agree as soon as they have read the same numbers, and a new one starts from the last saved state.
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
from moyin.store.sql import Database, aware, now

__all__ = ["ACTS", "KEPT_DECISIONS", "DecisionRow", "QualityStore", "SavedState", "SignalRow"]

# What an owner may do about learning; kept among the signals, so that all replicas follow suit.
ACTS = ("reset", "freeze", "thaw")

KEPT_DECISIONS = timedelta(days=30)
# By then a signal about a model has faded to a fiftieth.
_KEPT_SIGNALS = timedelta(days=90)
# After a half-life of what tells models apart, a tenant's level says little of today's.
_SHARING = timedelta(days=10)
_MOST_SHARING, _PAGE = 1_000, 100
_LOCK = zlib.crc32(b"quality_signals")
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_UNIQUE = ["owner", "request_id", "key_id", "source"]


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class DecisionRow:
    """What was known when a model was chosen for a request.

    Attributes:
        question: of the request, as `moyin.text.quality` knows it; no text.
        options: per candidate its model, expected cost in nano US dollars, expectation and bound.
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
    """One signal, or with ``question`` None one of `ACTS`.

    Attributes:
        number: its place in the log; 0 until it is written.
        key_id: whose signal it is; empty: the gateway's own observation.
        p_good: what was expected before the answer.
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
# The database gives the number.
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
    """What a tenant's signals up to ``number`` taught.

    Attributes:
        levels: what the tenant contributes to the levels that all share.
    """

    state: Mapping[str, Any]
    number: int
    levels: Mapping[str, Any] | None = None


class QualityStore:
    """Rows of decisions, signals and states."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, decisions: Sequence[DecisionRow], signals: Sequence[SignalRow]) -> None:
        """Write a batch; what was written before is not written twice."""
        if decisions or signals:
            await self._database.write(partial(_write, decisions, signals))

    async def add(self, signals: Sequence[SignalRow]) -> list[SignalRow]:
        """Write ``signals`` in one step, unless there is one for the same request, key and source;
        returns what is there now, in the order given."""
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
            .where(table.c.owner == owner, table.c.created_at >= now() - KEPT_DECISIONS)
            .order_by(table.c.created_at.desc())
            .limit(limit)
        )
        return list(await self._database.read(lambda c: c.execute(query).scalars().all()))

    async def signals(
        self, after: int, limit: int, *, owner: str | None = None, upto: int | None = None
    ) -> list[SignalRow]:
        """Return signals whose number is above ``after``, in order.

        Args:
            owner: whose; None: everybody's.
            upto: the highest number to return; None: any.
        """
        table = quality_signals
        query = sa.select(table).where(table.c.number > after).order_by(table.c.number).limit(limit)
        if owner is not None:
            query = query.where(table.c.owner == owner)
        if upto is not None:
            query = query.where(table.c.number <= upto)
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
        """Return the judge's newest scores of ``owner``'s answers since a moment, by request id."""
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
        """Return the highest number that was given; 0 when there is none."""
        query = sa.select(sa.func.max(quality_signals.c.number))
        return await self._database.read(lambda c: c.execute(query).scalar()) or 0

    async def state(self, owner: str) -> SavedState | None:
        """Return what was last saved for ``owner``."""
        table = quality_states
        query = sa.select(table.c.state, table.c.number).where(table.c.owner == owner)
        row = await self._database.read(lambda c: c.execute(query).mappings().first())
        return None if row is None else SavedState(**row)

    async def save(self, owner: str, saved: SavedState) -> None:
        """Keep ``saved`` unless a later state is there."""
        levels = dict(saved.levels) if saved.levels else None
        values = {
            "state": dict(saved.state),
            "number": saved.number,
            "updated_at": now(),
            "levels": levels,
        }
        await self._database.write(partial(_save, owner, values))

    async def levels(self) -> list[Mapping[str, Any]]:
        """Return what the tenants contribute that learned something within the last ten days, of a
        thousand at most those that did so last."""
        # By owner: one that saves meanwhile stands on another page, too, and counts once all the same.
        table, found = quality_states, dict[str, Mapping[str, Any]]()
        query = (
            sa.select(table.c.owner, table.c.levels)
            .where(table.c.levels.is_not(None), table.c.updated_at >= now() - _SHARING)
            .order_by(table.c.updated_at.desc(), table.c.owner)
        )
        # In pages, since the values are read in the event loop.
        for place in range(0, _MOST_SHARING, _PAGE):
            rows = await self._database.read(partial(_page, query.offset(place).limit(_PAGE)))
            found.update((row["owner"], row["levels"]) for row in rows)
            if len(rows) < _PAGE:
                break
        return list(found.values())

    async def reset(self, act: SignalRow) -> None:
        """Delete an owner's signals and state, and tell every replica by ``act``."""
        await self._database.write(partial(_reset, act))

    async def prune(self) -> None:
        """Delete decisions and signals that are too old to matter."""
        await self._database.write(_prune)


def _page(query: sa.Select[Any], connection: sa.Connection) -> Sequence[Any]:
    return connection.execute(query).mappings().all()


def _utc(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**row, "created_at": aware(row["created_at"])}


def _take_turns(connection: sa.Connection) -> None:
    """Make numbers visible in their order: a reader that saw one has seen all below it. SQLite has
    one writer anyway."""
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
        _take_turns(connection)
        rows = [dict(zip(_SIGNAL, _signal_values(row), strict=True)) for row in signals]
        connection.execute(_WRITE_SIGNAL[name], rows)


def _add(signals: Sequence[SignalRow], connection: sa.Connection) -> list[SignalRow]:
    table = quality_signals
    _write((), signals, connection)
    found = []
    for signal in signals:
        query = sa.select(table).where(
            *(table.c[name] == getattr(signal, name) for name in _UNIQUE)
        )
        found.append(SignalRow(**_utc(connection.execute(query).mappings().one())))
    return found


def _save(owner: str, values: dict[str, Any], connection: sa.Connection) -> None:
    table = quality_states
    insert = _INSERT[connection.dialect.name](table).values(owner=owner, **values)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["owner"], set_=values, where=table.c.number < values["number"]
        )
    )


def _reset(act: SignalRow, connection: sa.Connection) -> None:
    for table in (quality_signals, quality_states):
        connection.execute(table.delete().where(table.c.owner == act.owner))
    _write((), [act], connection)


def _prune(connection: sa.Connection) -> None:
    for table, age in ((quality_decisions, KEPT_DECISIONS), (quality_signals, _KEPT_SIGNALS)):
        connection.execute(table.delete().where(table.c.created_at < now() - age))
