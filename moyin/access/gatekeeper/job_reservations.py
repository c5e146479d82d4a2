"""Updates the amounts that budgets in Valkey count for the renders of jobs.

`moyin.access.gatekeeper.limits` makes the reservations, and `moyin.store.reservations` stores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import redis.asyncio as redis
from redis.exceptions import RedisError

from moyin.access.gatekeeper.budgets import build_key
from moyin.domain.limits import JobReservation
from moyin.errors import ServiceUnavailable


class JobReservationCounter:
    """Replaces the reserved amounts of jobs by the actual cost of their renders."""

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection
        script = files("moyin.access.gatekeeper") / "scripts" / "recount.lua"
        self._recount = connection.register_script(script.read_text())

    async def recount(
        self, reservation: JobReservation, nano_usd: int, *, counted_nano_usd: int, is_open: bool
    ) -> None:
        """Set the amount that the budgets count for a reservation; a repetition has no effect.

        Args:
            nano_usd: the amount to count, in billionths of a US dollar.
            counted_nano_usd: the amount that the budgets count so far, used if Valkey does not know
                it.
            is_open: True if the amount is still reserved and not spent.

        Raises:
            ServiceUnavailable: Valkey is unavailable.
        """
        arguments: list[str | int] = [
            reservation.id,
            nano_usd,
            counted_nano_usd,
            int(is_open),
            reservation.day,
            reservation.month,
        ]
        try:
            await self._recount(keys=_build_keys(reservation), args=arguments)
        except RedisError as error:
            raise _new_outage_error() from error

    async def delete_amounts(self, reservations: Sequence[JobReservation]) -> None:
        """Delete from Valkey how much is counted for each ended job; the budgets stay the same.

        A later `recount` gets this amount as ``counted_nano_usd``.

        Raises:
            ServiceUnavailable: Valkey is unavailable.
        """
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for reservation in reservations:
                    for key in _build_keys(reservation):
                        pipeline.hdel(key, f"cost:{reservation.id}")
                await pipeline.execute()
        except RedisError as error:
            raise _new_outage_error() from error


def _build_keys(reservation: JobReservation) -> list[str]:
    return [build_key(reservation.owner, subject, "money") for subject in reservation.subjects]


def _new_outage_error() -> ServiceUnavailable:
    return ServiceUnavailable("budgets cannot be changed at the moment; try again", retry_after=1)
