"""Contains `RenderWorker`, which runs the Temporal worker of a pool's queue."""

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

from deployments.render.render_activities import RenderActivities
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.launcher import compute_fairness_shares
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, get_render_queue
from moyin.jobs.workflows.worker import WorkerRunner

_log = logging.getLogger(__name__)
_RPC_TIMEOUT = timedelta(seconds=5)


class RenderWorker:
    """Runs a Temporal worker of the queue ``render-<pool>`` from `start` to `stop`.

    Args:
        concurrency: maximum number of running and waiting renders in this process.
        grace_period: time for which running renders may continue after `stop`.
        weights: weights in the queue by tenant; other tenants have the weight 1.
    """

    def __init__(
        self,
        *,
        temporal: TemporalConnection,
        activities: RenderActivities,
        pool: str,
        concurrency: int,
        grace_period: timedelta,
        weights: Mapping[str, float],
    ) -> None:
        async def new_workers(client: Client) -> list[Worker]:
            if weights:
                await set_owner_weights(client, pool, weights)
            worker = Worker(
                client,
                task_queue=get_render_queue(pool),
                activities=[activities.render_step],
                max_concurrent_activities=concurrency,
                max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
                default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
                graceful_shutdown_timeout=grace_period,
            )
            return [worker]

        self._runner = WorkerRunner(temporal, new_workers)
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the worker, even if Temporal is not available yet."""
        self._running = asyncio.create_task(self._runner.run())

    def check_running(self) -> None:
        """Raise RuntimeError if the worker has ended, or has crashed and waits for its restart."""
        has_ended = self._running is not None and self._running.done()
        if has_ended or self._runner.error is not None:
            raise RuntimeError(
                "the Temporal worker of the render pool has crashed; the replica's log has the cause"
            ) from self._runner.error

    async def stop(self) -> None:
        """Accept no more renders, and wait for running renders until the grace period ends."""
        await self._runner.stop()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)


async def set_owner_weights(client: Client, pool: str, weights: Mapping[str, float]) -> None:
    """Set the tenants' weights in the pool's queue; Temporal stores them until the next call."""
    request = UpdateTaskQueueConfigRequest(
        namespace=client.namespace,
        identity=client.identity,
        task_queue=get_render_queue(pool),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        set_fairness_weight_overrides={
            key: weight * share
            for owner, weight in weights.items()
            for key, share in compute_fairness_shares(owner)
        },
    )
    try:
        await client.workflow_service.update_task_queue_config(request, timeout=_RPC_TIMEOUT)
    except RPCError as error:
        # The Temporal server may be too old for this call or forbid it.
        _log.warning(
            "Temporal rejects the owners' weights for the queue %s, so all owners have the weight 1: %s",
            request.task_queue,
            error,
        )
