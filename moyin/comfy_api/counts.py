"""`OpenCounts`: how many prompts of an owner wait or run, asked once for all of his sockets."""

from __future__ import annotations

import asyncio
import time

from moyin.render.comfyui.prompts import BoundedDict
from moyin.store.prompts import PromptStore

__all__ = ["OpenCounts"]

_REMEMBERED = 1_024


class OpenCounts:
    """What this replica has found out, by owner."""

    def __init__(self, prompts: PromptStore) -> None:
        self._prompts = prompts
        # When it was asked, and the answer.
        self._known: BoundedDict[str, tuple[float, int]] = BoundedDict(_REMEMBERED)
        self._asking: dict[str, asyncio.Task[int]] = {}

    async def now(self, owner: str) -> int:
        """As it is after whatever the caller has just heard of."""
        asked = time.monotonic()
        count = await self._prompts.count_open(owner)
        known = self._known.get(owner)
        if known is None or known[0] <= asked:
            self._known[owner] = (asked, count)
        return self._known[owner][1]

    def newest(self, owner: str, count: int) -> int:
        """What was counted last; ``count`` when that is forgotten."""
        known = self._known.get(owner)
        return count if known is None else known[1]

    async def lately(self, owner: str, seconds: float) -> int:
        """As it was no longer than so long ago."""
        known = self._known.get(owner)
        if known is not None and time.monotonic() - known[0] < seconds:
            return known[1]
        if owner not in self._asking:
            self._asking[owner] = asyncio.create_task(self.now(owner))
            self._asking[owner].add_done_callback(lambda _: self._asking.pop(owner, None))
        return await asyncio.shield(self._asking[owner])
