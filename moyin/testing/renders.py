"""Kept renders in memory, for unit tests."""

from __future__ import annotations

from moyin.store.renders import CachedRender, CacheRules

__all__ = ["MemoryRenders"]


class MemoryRenders:
    """`moyin.store.renders.RenderCache` that forgets nothing."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], CachedRender] = {}

    async def get(self, owner: str, digest: str) -> CachedRender | None:
        return self.kept.get((owner, digest))

    async def put(self, owner: str, digest: str, render: CachedRender, rules: CacheRules) -> None:
        self.kept[owner, digest] = render
