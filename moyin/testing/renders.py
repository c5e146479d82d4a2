"""Kept renders in memory, for unit tests."""

from __future__ import annotations

from moyin.store.renders import CacheRules, KeptRender

__all__ = ["MemoryRenders"]


class MemoryRenders:
    """`moyin.store.renders.RenderCache` that forgets nothing."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], KeptRender] = {}

    async def get(self, owner: str, digest: str) -> KeptRender | None:
        return self.kept.get((owner, digest))

    async def put(self, owner: str, digest: str, render: KeptRender, rules: CacheRules) -> None:
        self.kept[owner, digest] = render
