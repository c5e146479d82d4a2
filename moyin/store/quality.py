"""Stores routing decisions, quality signals and learned states in SQL.

Signals are numbered, and every replica learns from them in that order. So replicas have the same
state after the same number, and a new replica continues from the last saved state.
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

# What an owner can do about learning; stored as signals, so that all replicas do it.
OWNER_ACTIONS = ("reset", "freeze", "thaw")

DECISION_RETENTION = timedelta(days=30)
# After this time the weight of a signal has decayed to a fiftieth.
_SIGNAL_RETENTION = timedelta(days=90)
# The half-life of the differences between models, after which levels say little.
_LEVEL_LIFETIME = timedelta(days=10)
_MAX_LEVELS, _PAGE = 1_000, 100
_LOCK = zlib.crc32(b"quality_signals")
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_UNIQUE_COLUMNS = ["owner", "request_id", "key_id", "source"]


# Not frozen, since one is created per request and freezing doubles the cost.
@dataclass(kw_only=True, slots=True)
class DecisionRow:
    """Records the choice of a model for a request and the data on which it was based.

    Attributes:
        model: the chosen model.
        question: the features of the request from `moyin.text.quality.question`, without its text.
        p_good: the estimated probability of a good answer.
        options: for each candidate, its model, its expected cost in billionths of a US dollar, the
            estimated probability that it answers well, and a lower bound of that probability.
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
    """Records a signal about an answer's quality, or an action of the owner in `OWNER_ACTIONS`.

    Attributes:
        key_id: the API key that sent the signal, or an empty string if the gateway observed it.
        question: the features of the request, or None for an action of the owner.
        p_good: the probability of a good answer, as estimated before the model was called.
        number: the position in the log, which is 0 until the signal is written.
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


_DECISION_COLUMNS = tuple(DecisionRow.__dataclass_fields__)
# The database assigns the number.
_SIGNAL_COLUMNS = tuple(name for name in SignalRow.__dataclass_fields__ if name != "number")
_decision_values, _signal_values = attrgetter(*_DECISION_COLUMNS), attrgetter(*_SIGNAL_COLUMNS)
_WRITE_DECISION = {
    name: insert(quality_decisions).on_conflict_do_nothing(index_elements=["id"])
    for name, insert in _INSERT.items()
}
_WRITE_SIGNAL = {
    name: insert(quality_signals).on_conflict_do_nothing(index_elements=_UNIQUE_COLUMNS)
    for name, insert in _INSERT.items()
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedState:
    """Holds the state that was learned from a tenant's signals.

    Attributes:
        number: the number of the last signal that the state includes.
        levels: numbers that say how good each model is for this tenant. The levels shared by all
            tenants are computed from them. None if the tenant does not contribute.
    """

    state: Mapping[str, Any]
    number: int
    levels: Mapping[str, Any] | None = None


class QualityStore:
    """Reads and writes decisions, signals and learned states."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, decisions: Sequence[DecisionRow], signals: Sequence[SignalRow]) -> None:
        """Write a batch of decisions and signals, except those that exist already."""
        if decisions or signals:
            await self._database.write(partial(_write_rows, decisions, signals))

    async def add(self, signals: Sequence[SignalRow]) -> list[SignalRow]:
        """Write signals in one transaction and return them as stored, in the same order.

        If a signal of the same owner, request, key and source exists, it is returned unchanged.
        """
        return await self._database.write(partial(_add_signals, signals))

    async def get_decision(self, owner: str, request_id: str) -> DecisionRow | None:
        """Return the newest decision for a request of the owner, or None if there is none."""
        table = quality_decisions
        query = (
            sa.select(table)
            .where(table.c.owner == owner, table.c.request_id == request_id)
            .order_by(table.c.created_at.desc())
            .limit(1)
        )
        row = await self._database.fetch_first(query)
        return None if row is None else DecisionRow(**_to_utc(row))

    async def list_options(self, owner: str, limit: int) -> list[Sequence[Sequence[Any]]]:
        """Return the ``options`` of the owner's newest decisions of the last thirty days."""
        table = quality_decisions
        query = (
            sa.select(table.c.options)
            .where(table.c.owner == owner, table.c.created_at >= now() - DECISION_RETENTION)
            .order_by(table.c.created_at.desc())
            .limit(limit)
        )
        return list(await self._database.fetch_values(query))

    async def list_signals(
        self, after_number: int, limit: int, *, owner: str | None = None, up_to: int | None = None
    ) -> list[SignalRow]:
        """Return signals numbered above ``after_number`` and at most ``up_to``, in ascending order.

        If ``owner`` is None, the signals of all owners are returned.
        """
        table = quality_signals
        query = (
            sa.select(table)
            .where(table.c.number > after_number)
            .order_by(table.c.number)
            .limit(limit)
        )
        if owner is not None:
            query = query.where(table.c.owner == owner)
        if up_to is not None:
            query = query.where(table.c.number <= up_to)
        return [SignalRow(**_to_utc(row)) for row in await self._database.fetch_all(query)]

    async def list_latest_signals(self, owner: str, limit: int) -> list[SignalRow]:
        """Return the owner's newest signals, newest first."""
        table = quality_signals
        query = (
            sa.select(table)
            .where(table.c.owner == owner)
            .order_by(table.c.number.desc())
            .limit(limit)
        )
        return [SignalRow(**_to_utc(row)) for row in await self._database.fetch_all(query)]

    async def list_verdicts(
        self, owner: str, since: datetime, limit: int
    ) -> list[tuple[str, float]]:
        """Return the request ids and scores of the judge's newest verdicts on the owner's answers."""
        table = quality_signals
        query = (
            sa.select(table.c.request_id, table.c.score)
            .where(table.c.owner == owner, table.c.source == "judge", table.c.created_at >= since)
            .order_by(table.c.number.desc())
            .limit(limit)
        )
        rows = await self._database.read(lambda c: c.execute(query).all())
        return [(request_id, score) for request_id, score in rows]

    async def get_last_number(self) -> int:
        """Return the number of the newest signal, or 0 if there is none."""
        query = sa.select(sa.func.max(quality_signals.c.number))
        return await self._database.fetch_value(query) or 0

    async def get_state(self, owner: str) -> SavedState | None:
        """Return the last saved state that was learned from the owner's signals, or None."""
        table = quality_states
        query = sa.select(table.c.state, table.c.number).where(table.c.owner == owner)
        row = await self._database.fetch_first(query)
        return None if row is None else SavedState(**row)

    async def save_state(self, owner: str, saved_state: SavedState) -> None:
        """Save a state that was learned from the owner's signals.

        It replaces a state that was saved before only if that has a lower ``number``.
        """
        values = {
            "state": dict(saved_state.state),
            "number": saved_state.number,
            "updated_at": now(),
            "levels": dict(saved_state.levels) if saved_state.levels else None,
        }
        await self._database.write(partial(_save_state, owner, values))

    async def list_levels(self) -> list[Mapping[str, Any]]:
        """Return the newest quality levels of up to a thousand tenants, at most ten days old.

        A level says how good a model is for a tenant (`SavedState.levels`).
        """
        # By owner, since a tenant that saves levels meanwhile may appear on two pages.
        table, levels = quality_states, dict[str, Mapping[str, Any]]()
        query = (
            sa.select(table.c.owner, table.c.levels)
            .where(table.c.levels.is_not(None), table.c.updated_at >= now() - _LEVEL_LIFETIME)
            .order_by(table.c.updated_at.desc(), table.c.owner)
        )
        # In pages, since the values are decoded in the event loop.
        for offset in range(0, _MAX_LEVELS, _PAGE):
            rows = await self._database.fetch_all(query.offset(offset).limit(_PAGE))
            levels.update((row["owner"], row["levels"]) for row in rows)
            if len(rows) < _PAGE:
                break
        return list(levels.values())

    async def reset_owner(self, action: SignalRow) -> None:
        """Delete the owner's signals and state, and log ``action``.

        A replica that reads ``action`` in the log discards the state that it has learned for the owner.
        """
        await self._database.write(partial(_reset_owner, action))

    async def prune(self) -> None:
        """Delete decisions older than 30 days and signals older than 90 days."""
        await self._database.write(_prune_old_rows)


def _to_utc(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**row, "created_at": ensure_utc(row["created_at"])}


def _lock_numbering(connection: sa.Connection) -> None:
    """Let only one transaction at a time assign numbers to signals.

    So a reader that sees a number has also seen all smaller ones. SQLite needs no lock, since it
    has only one writer.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def _write_rows(
    decisions: Sequence[DecisionRow], signals: Sequence[SignalRow], connection: sa.Connection
) -> None:
    name = connection.dialect.name
    if decisions:
        rows = [
            dict(zip(_DECISION_COLUMNS, _decision_values(row), strict=True)) for row in decisions
        ]
        connection.execute(_WRITE_DECISION[name], rows)
    if signals:
        _lock_numbering(connection)
        rows = [dict(zip(_SIGNAL_COLUMNS, _signal_values(row), strict=True)) for row in signals]
        connection.execute(_WRITE_SIGNAL[name], rows)


def _add_signals(signals: Sequence[SignalRow], connection: sa.Connection) -> list[SignalRow]:
    table = quality_signals
    _write_rows((), signals, connection)
    stored_signals = []
    for signal in signals:
        query = sa.select(table).where(
            *(table.c[name] == getattr(signal, name) for name in _UNIQUE_COLUMNS)
        )
        stored_signals.append(SignalRow(**_to_utc(connection.execute(query).mappings().one())))
    return stored_signals


def _save_state(owner: str, values: dict[str, Any], connection: sa.Connection) -> None:
    table = quality_states
    insert = _INSERT[connection.dialect.name](table).values(owner=owner, **values)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["owner"], set_=values, where=table.c.number < values["number"]
        )
    )


def _reset_owner(action: SignalRow, connection: sa.Connection) -> None:
    for table in (quality_signals, quality_states):
        connection.execute(table.delete().where(table.c.owner == action.owner))
    _write_rows((), [action], connection)


def _prune_old_rows(connection: sa.Connection) -> None:
    for table, age in (
        (quality_decisions, DECISION_RETENTION),
        (quality_signals, _SIGNAL_RETENTION),
    ):
        connection.execute(table.delete().where(table.c.created_at < now() - age))
