"""`JudgeRunner`: a Temporal worker of the queue ``judge``, kept running for as long as asked."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from moyin.errors import ServiceUnavailable
from workflows.client import Temporal
from workflows.judge import JudgeActivities, JudgeWorkflow
from workflows.types import HEARTBEAT_INTERVAL, JUDGE_QUEUE

__all__ = ["JudgeRunner", "new_judge_worker"]

_log = logging.getLogger(__name__)
_GRACE = timedelta(seconds=5)
_MAX_PAUSE_SECONDS = 10.0


def new_judge_worker(client: Client, activities: JudgeActivities, *, concurrency: int) -> Worker:
    """Return a worker of the queue ``judge``; ``concurrency`` bounds its simultaneous activities."""
    return Worker(
        client,
        task_queue=JUDGE_QUEUE,
        workflows=[JudgeWorkflow],
        workflow_runner=UnsandboxedWorkflowRunner(),
        activities=activities.all(),
        max_concurrent_activities=concurrency,
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        graceful_shutdown_timeout=_GRACE,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )


class JudgeRunner:
    """Runs workers one after the other: when one ends by an error, the next connects again."""

    def __init__(
        self, *, temporal: Temporal, activities: JudgeActivities, concurrency: int
    ) -> None:
        self._temporal = temporal
        self._activities = activities
        self._concurrency = concurrency
        self._worker: Worker | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stop`; outages of Temporal only delay it."""
        pause = 0.2
        while not self._stopping.is_set():
            try:
                client = await self._temporal.client()
                self._worker = new_judge_worker(
                    client, self._activities, concurrency=self._concurrency
                )
                await self._work(self._worker)
                pause = 0.2
            except ServiceUnavailable as error:
                _log.info("the judge's worker waits for Temporal: %s", error)
            except Exception:
                _log.exception("the judge's worker ended; starting another")
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    def stop(self) -> None:
        """Take no more tasks, give running ones a moment, and let `run` return."""
        self._stopping.set()

    async def _work(self, worker: Worker) -> None:
        running = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not running.done():
                await worker.shutdown()
            await running
