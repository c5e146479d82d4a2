"""Defines `Intake`, the Serve deployment that takes jobs from message queues."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

from deployments.gateway.pools import PoolValidator, ServePoolClient
from deployments.intake.config import IntakeArgs
from deployments.intake.workers import open_workers
from deployments.logs import configure_logs
from moyin.settings import Settings

__all__ = ["Intake"]


class Intake:
    """Runs one worker per source in each replica; serves no HTTP."""

    # Serve awaits constructors.
    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]
        settings = Settings()
        configure_logs(settings.log_level)
        self._closing = AsyncExitStack()
        config = IntakeArgs.model_validate(args)
        self._workers = await self._closing.enter_async_context(
            open_workers(
                config, settings, os.environ, PoolValidator(), ServePoolClient(config.pools)
            )
        )
        self._running = [asyncio.create_task(worker.run()) for worker in self._workers]

    async def check_health(self) -> None:
        """Check that no worker has failed; Serve replaces the replica if one has.

        An outage of a broker is no reason to replace it.

        Raises:
            RuntimeError: a worker has ended, or its last session failed.
        """
        for worker, task in zip(self._workers, self._running, strict=True):
            if task.done() or worker.error is not None:
                raise RuntimeError("an intake worker has stopped") from worker.error

    async def __del__(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._closing.aclose()
