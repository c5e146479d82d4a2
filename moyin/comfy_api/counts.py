"""Caches the number of a tenant's open prompts, which is sent to all of the tenant's WebSockets."""

from __future__ import annotations

import asyncio
import time

from moyin.store.prompts import PromptStore
from moyin.system.bounded import BoundedDict

_MAX_TENANTS = 1_024


class OpenPromptCounter:
    """Counts and caches the number of waiting and running prompts of each tenant in this replica."""

    def __init__(self, prompts: PromptStore) -> None:
        self._prompts = prompts
        # The time and the result of the latest query, by tenant.
        self._known: BoundedDict[str, tuple[float, int]] = BoundedDict(_MAX_TENANTS)
        self._queries: dict[str, asyncio.Task[int]] = {}

    async def count_now(self, owner: str) -> int:
        """Query the database for the tenant's number of open prompts, and cache and return it."""
        started_at = time.monotonic()
        count = await self._prompts.count_open(owner)
        cached_count = self._known.get(owner)
        if cached_count is None or cached_count[0] <= started_at:
            self._known[owner] = (started_at, count)
        return self._known[owner][1]

    def get_latest_count(self, owner: str, default: int) -> int:
        """Return the tenant's cached number of open prompts, or ``default`` if none is cached."""
        cached_count = self._known.get(owner)
        return default if cached_count is None else cached_count[1]

    async def count_recent(self, owner: str, max_age_seconds: float) -> int:
        """Return the tenant's number of open prompts, at most ``max_age_seconds`` seconds old."""
        cached_count = self._known.get(owner)
        if cached_count is not None and time.monotonic() - cached_count[0] < max_age_seconds:
            return cached_count[1]
        if owner not in self._queries:
            self._queries[owner] = asyncio.create_task(self.count_now(owner))
            self._queries[owner].add_done_callback(lambda _: self._queries.pop(owner, None))
        return await asyncio.shield(self._queries[owner])
