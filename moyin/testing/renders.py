"""Provides an in-memory render cache for unit tests."""

from __future__ import annotations

from moyin.store.render_cache import CachedRender, CacheRules

__all__ = ["InMemoryRenderCache"]


class InMemoryRenderCache:
    """Implements `moyin.store.render_cache.RenderCache` without eviction."""

    def __init__(self) -> None:
        self.renders: dict[tuple[str, str], CachedRender] = {}

    async def get(self, owner: str, digest: str) -> CachedRender | None:
        return self.renders.get((owner, digest))

    async def put(self, owner: str, digest: str, render: CachedRender, rules: CacheRules) -> None:
        self.renders[owner, digest] = render
