"""Reserves the estimated cost of a job's renders in budgets, and later settles the actual cost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Protocol

from moyin.access.gatekeeper.job_reservations import JobReservationCounter
from moyin.access.gatekeeper.limits import Admission, RequestMeter
from moyin.domain.identity import Identity
from moyin.domain.job import JobSpec, StepKind, apply_batch_patch
from moyin.domain.limits import JobReservation, Limit
from moyin.domain.render_run import RenderTariff
from moyin.errors import ServiceUnavailable
from moyin.render.protocol.shape import (
    PictureCounts,
    combine_hashes,
    compute_shape,
    estimate_pictures,
    hash_node,
)
from moyin.store.reservations import ReservationStore
from moyin.store.sql import Database
from moyin.system.heavy_work import run_aside

_log = logging.getLogger(__name__)
_DELETION_SECONDS = 600.0


class TariffSource(Protocol):
    """The interface that returns the prices of a pool's renders."""

    async def fetch_tariff(self, pool: str) -> RenderTariff:
        """Return the pool's prices and estimates; raise ServiceUnavailable if they are unknown."""
        ...


class HeldBudget:
    """Money that is reserved in budgets for a job that is not accepted yet.

    Attributes:
        reservation: the data to store in the job's row; None if nothing is reserved in budgets.
    """

    def __init__(self, admission: Admission | None = None, usd: Decimal = Decimal(0)) -> None:
        self._admission = admission
        self.reservation: JobReservation | None = None
        if admission is not None:
            self.reservation = admission.build_job_reservation(usd)

    def release(self) -> None:
        """Release the reservation in the background, because the job was not accepted."""
        if self._admission is not None:
            self._admission.release()


class RenderBudgets:
    """Reserves money for the renders of jobs.

    The money is reserved in the budgets of the caller, which limit text requests, too.
    """

    def __init__(self, meter: RequestMeter, tariffs: TariffSource) -> None:
        self._meter = meter
        self._tariffs = tariffs

    async def reserve(
        self, caller: Identity, spec: JobSpec, done_indexes: Collection[int] = ()
    ) -> HeldBudget:
        """Reserve the estimated cost of the job's renders in all budgets of the caller.

        Args:
            done_indexes: the indexes of steps that do not run again.

        Returns:
            The reservation, which the caller must release if the job is not accepted.

        Raises:
            BudgetExceeded: the remaining amount of a budget does not cover the estimate.
            ServiceUnavailable: the pool's prices are unknown, or Valkey is unavailable and the
                settings demand a check of budgets.
        """
        budgets = [
            Limit(
                subject=limit.subject,
                usd_per_day=limit.usd_per_day,
                usd_per_month=limit.usd_per_month,
            )
            for limit in caller.limits
            if limit.has_budget
        ]
        usd = await self._estimate_cost(spec, done_indexes) if budgets else Decimal(0)
        if not usd:
            return HeldBudget()
        return HeldBudget(await self._meter.admit(budgets, owner=caller.owner, usd=usd), usd)

    async def _estimate_cost(self, spec: JobSpec, done_indexes: Collection[int]) -> Decimal:
        pools = {step.pool for step in spec.steps if step.kind is StepKind.RENDER}
        tariffs = {pool: await self._tariffs.fetch_tariff(pool) for pool in sorted(pools)}
        if all(tariff.price is None for tariff in tariffs.values()):
            return Decimal(0)
        renders = await run_aside(lambda: list(_list_renders(spec)))
        costs = (
            tariffs[pool].estimate_cost(shape, picture_count)
            for index, pool, shape, picture_count in renders
            if index not in done_indexes
        )
        return sum(costs, Decimal(0))


def _list_renders(spec: JobSpec) -> Iterator[tuple[int, str, str, int]]:
    """Yield the index, pool, shape and estimated number of pictures of each render.

    The shape is a digest of the properties that determine a render's duration (`compute_shape`).
    """
    base_graph = spec.base
    hashes = (
        {} if base_graph is None else {name: hash_node(node) for name, node in base_graph.items()}
    )
    hash_sum = sum(hashes.values())
    base_counts = PictureCounts.from_graph(base_graph or {})
    for index, step in enumerate(spec.steps):
        if step.kind is not StepKind.RENDER:
            continue
        if base_graph is None:
            yield index, step.pool, compute_shape(step.payload), estimate_pictures(step.payload)
            continue
        # Hash the nodes that all children of a batch share only once, because there may be many
        # nodes and many children.
        changed_nodes = apply_batch_patch(
            {name: base_graph[name] for name in step.payload}, step.payload
        )
        other_hash_sum = hash_sum - sum(hashes[name] for name in changed_nodes)
        shape = combine_hashes([other_hash_sum, *map(hash_node, changed_nodes.values())])
        own_counts = PictureCounts.from_graph(changed_nodes)
        yield index, step.pool, shape, PictureCounts(*map(max, base_counts, own_counts)).estimate()


class BudgetSettler:
    """Replaces the reserved amounts in budgets by the actual costs of the renders of jobs.

    Any number of processes may run a settler; only one of them works at a time. If a process ends
    early, the next one repeats the work that was not finished.
    """

    def __init__(
        self,
        database: Database,
        counter: JobReservationCounter,
        *,
        interval: timedelta = timedelta(seconds=2),
    ) -> None:
        self._database = database
        self._store = ReservationStore(database)
        self._counter = counter
        self._interval = interval.total_seconds()

    async def run(self) -> None:
        """Call `settle` repeatedly until cancelled, and continue after errors and outages."""
        deleted_at = time.monotonic()
        while True:
            try:
                while await self.settle():
                    continue
                if time.monotonic() - deleted_at >= _DELETION_SECONDS:
                    while await self._store.delete_settled():
                        continue
                    deleted_at = time.monotonic()
            except ServiceUnavailable as error:
                _log.info("budgets wait for the cost of renders: %s", error)
            except Exception:
                _log.exception("counting the cost of renders in budgets failed and is repeated")
            await asyncio.sleep(self._interval)

    async def settle(self) -> int:
        """Replace the reserved amounts in budgets by the costs of renders that were recorded since.

        Returns:
            The number of reservations with a new cost; 0 also if another process is settling.

        Raises:
            ServiceUnavailable: Valkey is unavailable.
        """
        if not await self._store.list_due():
            return 0
        async with self._database.advisory_lock("render-budgets") as is_acquired:
            if not is_acquired:
                return 0
            due_reservations = await self._store.list_due()
            ended_reservations = []
            for due_reservation in due_reservations:
                await self._counter.recount(
                    due_reservation.reservation,
                    due_reservation.amount,
                    counted_nano_usd=due_reservation.settled or 0,
                    is_open=not due_reservation.ended,
                )
                # If the row has changed, another run was booked meanwhile, and the next round
                # counts it.
                if await self._store.mark_counted(due_reservation) and due_reservation.ended:
                    ended_reservations.append(due_reservation.reservation)
            await self._counter.delete_amounts(ended_reservations)
        return len(due_reservations)
