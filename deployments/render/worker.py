"""`RenderWorker`: a Temporal worker of one pool's queue, kept running until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.workflowservice.v1 import UpdateTaskQueueConfigRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

from deployments.render.activities import RenderActivities
from moyin.jobs.workflows.client import Temporal, fairness_shares
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, render_queue
from moyin.jobs.workflows.worker_runner import WorkerRunner

__all__ = ["RenderWorker", "set_owner_weights"]

_log = logging.getLogger(__name__)
_RPC_TIMEOUT = timedelta(seconds=5)


class RenderWorker:
    """Runs the pool's activities until `stop`; outages of Temporal only delay them.

    Args:
        concurrency: number of renders in this process, waiting ones included.
        grace: how long renders in progress may go on after `stop`.
        weights: weights in the queue by owner; owners that are not listed have weight 1.
    """

    def __init__(
        self,
        *,
        temporal: Temporal,
        activities: RenderActivities,
        pool: str,
        concurrency: int,
        grace: timedelta,
        weights: Mapping[str, float],
    ) -> None:
        self._weights = weights
        self._activities = activities
        self._pool = pool
        self._concurrency = concurrency
        self._grace = grace
        self._runner = WorkerRunner(temporal, self._new_workers)
        self._tasks: list[asyncio.Task[None]] = []
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect and run in the background."""
        self._running = asyncio.create_task(self._runner.run())

    def check(self) -> None:
        """Check that the worker runs or waits for Temporal.

        Raises:
            RuntimeError: the worker has crashed.
        """
        if self._runner.error is not None or (self._running is not None and self._running.done()):
            raise RuntimeError("the render worker has stopped") from self._runner.error

    async def stop(self) -> None:
        """Take no more renders; return when those in progress are done or the grace is over."""
        await self._runner.stop()
        tasks = [*self._tasks, *([self._running] if self._running else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _new_workers(self, client: Client) -> Sequence[Worker]:
        if self._weights:
            weighting = set_owner_weights(client, self._pool, self._weights)
            self._tasks = [asyncio.create_task(weighting)]
        worker = Worker(
            client,
            task_queue=render_queue(self._pool),
            activities=[self._activities.render_step],
            max_concurrent_activities=self._concurrency,
            max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
            default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
            graceful_shutdown_timeout=self._grace,
        )
        return [worker]


async def set_owner_weights(client: Client, pool: str, weights: Mapping[str, float]) -> None:
    """Set the owners' weights in the pool's queue; Temporal keeps them until they are set again."""
    request = UpdateTaskQueueConfigRequest(
        namespace=client.namespace,
        identity=client.identity,
        task_queue=render_queue(pool),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        set_fairness_weight_overrides={
            key: weight * share
            for owner, weight in weights.items()
            for key, share in fairness_shares(owner)
        },
    )
    try:
        await client.workflow_service.update_task_queue_config(request, timeout=_RPC_TIMEOUT)
    except RPCError as error:
        # The server is too old, or its operator does not permit it: all owners have weight 1.
        _log.warning("Temporal does not accept weights of owners: %s", error)
