"""Stores the money that budgets reserve for the renders of jobs, until the actual cost replaces it.

A reservation is inserted in the same transaction as its job, and ended in the same transaction as
the job. The cost of a run is added in the transaction that books the run. So the crash of a process
loses neither reservations nor costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING
from typing import Any

import sqlalchemy as sa

from moyin.domain.limits import JobReservation
from moyin.store.schema import render_reservations as reservations
from moyin.store.sql import Database, now
from moyin.store.usage import nano_to_usd

_NANO = 10**9
_MAX_DUE = 100
_MAX_DELETED = 1000
# A run may be booked so much later than its job ended, for example after an outage of the database.
_KEPT = timedelta(days=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class DueReservation:
    """A reservation for which the budgets must count a new amount.

    Attributes:
        booked: the cost of the job's runs so far, in billionths of a US dollar.
        ended: whether the job has ended.
        settled: the amount that budgets last counted after the job ended; None if not counted yet.
    """

    reservation: JobReservation
    booked: int
    ended: bool
    settled: int | None

    @property
    def amount(self) -> int:
        """The amount that budgets must count, in billionths of a US dollar."""
        if self.ended:
            return self.booked
        return max(self.booked, _to_nano_usd(self.reservation))


def insert_reservation(
    connection: sa.Connection, job_id: str, reservation: JobReservation | None, created_at: datetime
) -> None:
    """Insert the reservation of a job, if there is one; ``created_at`` is its time of creation."""
    if reservation is None:
        return
    nano_usd = _to_nano_usd(reservation)
    row = {
        "id": reservation.id,
        "job_id": job_id,
        "owner": reservation.owner,
        "subjects": list(reservation.subjects),
        "day": reservation.day,
        "month": reservation.month,
        "reserved_nano": nano_usd,
        "counted_nano": nano_usd,
        "booked_nano": 0,
        "created_at": created_at,
        "ended": False,
    }
    connection.execute(reservations.insert(), row)


def end_reservation(connection: sa.Connection, job_id: str, due_at: datetime) -> None:
    """Record that the cost of an ended job replaces its reservation at the time ``due_at``."""
    update = reservations.update().where(
        reservations.c.job_id == job_id, reservations.c.ended.is_(False)
    )
    connection.execute(update.values(ended=True, due_at=due_at))


def add_cost(connection: sa.Connection, job_id: str, nano_usd: int, due_from: datetime) -> None:
    """Add the cost of a run to the newest reservation of its job, if there is one.

    Args:
        nano_usd: the cost in billionths of a US dollar.
        due_from: the time from which budgets should count the new amount, if that differs from
            the amount that they count now.
    """
    newest_id = (
        sa.select(reservations.c.id)
        .where(reservations.c.job_id == job_id)
        .order_by(reservations.c.created_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    booked_nano_usd = reservations.c.booked_nano + nano_usd
    must_count = reservations.c.ended | (booked_nano_usd > reservations.c.counted_nano)
    due_at = sa.case(
        (must_count, sa.func.coalesce(reservations.c.due_at, sa.bindparam("moment", due_from))),
        else_=reservations.c.due_at,
    )
    update = reservations.update().where(reservations.c.id == newest_id)
    connection.execute(update.values(booked_nano=booked_nano_usd, due_at=due_at))


class ReservationStore:
    """Finds the reservations whose amount in the budgets must change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_due(self) -> list[DueReservation]:
        """Return reservations for which budgets must count a new amount, the longest due first.

        At most `_MAX_DUE` are returned.
        """
        query = (
            sa.select(reservations)
            .where(reservations.c.due_at <= now())
            .order_by(reservations.c.due_at)
            .limit(_MAX_DUE)
        )
        return [_parse_due_reservation(row) for row in await self._database.fetch_all(query)]

    async def mark_counted(self, due_reservation: DueReservation) -> bool:
        """Record that budgets now count the amount of a reservation.

        Returns:
            True, or False if the amount has changed meanwhile.
        """
        settled_at = now()
        update = (
            reservations.update()
            .where(
                reservations.c.id == due_reservation.reservation.id,
                reservations.c.booked_nano == due_reservation.booked,
                reservations.c.ended.is_(due_reservation.ended),
            )
            .values(counted_nano=due_reservation.amount, due_at=None)
        )
        if due_reservation.ended:
            update = update.values(settled_at=settled_at)
        return await self._database.execute(update) > 0

    async def delete_settled(self) -> int:
        """Delete some old reservations that no run can change any more, and return their number.

        The caller repeats this until it returns 0.
        """
        old_ids = (
            sa.select(reservations.c.id)
            .where(reservations.c.settled_at < now() - _KEPT, reservations.c.due_at.is_(None))
            .limit(_MAX_DELETED)
        )
        return await self._database.execute(
            reservations.delete().where(reservations.c.id.in_(old_ids))
        )


def _to_nano_usd(reservation: JobReservation) -> int:
    return int((reservation.usd * _NANO).to_integral_value(ROUND_CEILING))


def _parse_due_reservation(row: Mapping[Any, Any]) -> DueReservation:
    return DueReservation(
        reservation=JobReservation(
            id=row["id"],
            owner=row["owner"],
            subjects=tuple(row["subjects"]),
            usd=nano_to_usd(row["reserved_nano"]),
            day=row["day"],
            month=row["month"],
        ),
        booked=row["booked_nano"],
        ended=row["ended"],
        settled=None if row["settled_at"] is None else row["counted_nano"],
    )
