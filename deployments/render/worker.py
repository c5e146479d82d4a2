"""`RenderWorker`: a Temporal worker of one pool's queue, kept running for as long as asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.workflowservice.v1 import UpdateTaskQueueConfigRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

from deployments.render.activities import RenderActivities
from moyin.errors import ServiceUnavailable
from moyin.jobs.workflows.client import Temporal, fairness_shares
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, render_queue

__all__ = ["RenderWorker", "weigh"]

_log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 10.0
_RPC_TIMEOUT = timedelta(seconds=5)


class RenderWorker:
    """Connects, and connects again, until `stop`. Only a crash of the worker itself is an error.

    Args:
        concurrency: renders in this process, waiting ones included.
        weights: of owners who are worth more or less than 1 at the entrance of the queue.
        grace: how long renders at work may go on after `stop`.
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
        self._temporal = temporal
        self._activities = activities
        self._pool = pool
        self._concurrency = concurrency
        self._grace = grace
        self._worker: Worker | None = None
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    def check(self) -> None:
        """
        Raises:
            RuntimeError: the worker has crashed.
        """
        if self._running is not None and self._running.done():
            raise RuntimeError("the render worker has stopped")

    async def stop(self) -> None:
        """Take no more renders, and return when those at work are done or the grace is over."""
        if self._worker is not None and self._worker.is_running:
            await self._worker.shutdown()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        # Once connected, the SDK itself outlasts outages: an end by error is a crash.
        client = await self._connected()
        if self._weights:
            await weigh(client, self._pool, self._weights)
        self._worker = self._new_worker(client)
        await self._worker.run()

    async def _connected(self) -> Client:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._temporal.client()
            except ServiceUnavailable as error:
                _log.info("render worker waits for Temporal: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    def _new_worker(self, client: Client) -> Worker:
        return Worker(
            client,
            task_queue=render_queue(self._pool),
            activities=[self._activities.render_step],
            max_concurrent_activities=self._concurrency,
            max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
            default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
            graceful_shutdown_timeout=self._grace,
        )


async def weigh(client: Client, pool: str, weights: Mapping[str, float]) -> None:
    """Tell Temporal the weights of owners in the pool's queue; it keeps them until told others."""
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
        # An older server, or one whose operator allows no such thing: all owners are worth 1 there.
        _log.warning("Temporal takes no weights of owners: %s", error)
