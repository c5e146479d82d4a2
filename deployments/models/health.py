"""Checks the health of every back end periodically, without using tokens."""

from __future__ import annotations

import asyncio
import logging

from moyin.text.routing.router import Router

__all__ = ["watch_health"]

_log = logging.getLogger(__name__)
_INTERVAL_SECONDS = 5.0


async def watch_health(text_router: Router) -> None:
    """Check the back ends of the current fleet periodically until cancelled."""
    while True:
        runtimes = text_router.fleet.runtimes.values()
        outcomes = await asyncio.gather(
            *(runtime.check_health(_log_change) for runtime in runtimes), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                _log.error("a health check raised an unexpected error", exc_info=outcome)
        await asyncio.sleep(_INTERVAL_SECONDS)


def _log_change(name: str, is_up: bool) -> None:
    level, state = (logging.INFO, "up") if is_up else (logging.WARNING, "down")
    _log.log(level, "back end %s is %s", name, state)
