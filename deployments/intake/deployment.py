"""`Intake`: the Serve deployment that works message queues. No HTTP."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

from deployments.gateway.pool_client import ServePoolClient
from deployments.gateway.pool_validator import PoolValidator
from deployments.intake.config import IntakeArgs
from deployments.intake.workers import open_workers
from deployments.logs import configure_logs
from moyin.settings import Settings

__all__ = ["Intake"]


class Intake:
    """One worker per source in every replica."""

    # Serve awaits constructors.
    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]
        settings = Settings()
        configure_logs(settings.log_level)
        self._closing = AsyncExitStack()
        asked = IntakeArgs.model_validate(args)
        self._workers = await self._closing.enter_async_context(
            open_workers(asked, settings, os.environ, PoolValidator(), ServePoolClient(asked.pools))
        )
        self._running = [asyncio.create_task(worker.run()) for worker in self._workers]

    async def check_health(self) -> None:
        """Tell Serve to replace a replica whose workers have a fault; absent brokers are fine.

        Raises:
            RuntimeError: a worker is not running any more, or fails again and again.
        """
        for worker, task in zip(self._workers, self._running, strict=True):
            if task.done() or worker.error is not None:
                raise RuntimeError("an intake worker has stopped") from worker.error

    async def __del__(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._closing.aclose()
