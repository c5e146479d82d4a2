"""Asks every back end now and then whether it is up; never at the cost of a token."""

from __future__ import annotations

import asyncio
import logging

from moyin.text.routing.router import Router

__all__ = ["watch_health"]

_log = logging.getLogger(__name__)
_SECONDS = 5.0


async def watch_health(text_router: Router) -> None:
    """Check the health of the current fleet's back ends until cancelled."""
    while True:
        runtimes = text_router.fleet.runtimes.values()
        outcomes = await asyncio.gather(
            *(runtime.check(_note) for runtime in runtimes), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                _log.error("a health check failed in an unforeseen way", exc_info=outcome)
        await asyncio.sleep(_SECONDS)


def _note(name: str, up: bool) -> None:
    _log.log(
        logging.INFO if up else logging.WARNING, "back end %s is %s", name, "up" if up else "down"
    )
