"""`RenderResultCache`: stores results of a pool's renders for equal graphs that come later."""

from __future__ import annotations

from typing import Any

from moyin.domain.job import JobSpec, Step
from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import RenderRequest, RenderSucceeded
from moyin.domain.serialization import from_plain, to_plain
from moyin.store.blobs import BlobStore
from moyin.store.render_cache import (
    CachedRender,
    CacheRules,
    RenderCache,
    compute_render_digest,
    select_cache_owner,
)

__all__ = ["RenderResultCache"]


class RenderResultCache:
    """Returns the result of a graph for every equal graph.

    Two equal graphs that are in progress at the same time are both rendered. Failures are never
    stored.
    """

    def __init__(self, cache: RenderCache, blobs: BlobStore, rules: CacheRules) -> None:
        self._cache = cache
        self._blobs = blobs
        self._rules = rules

    def digest(self, spec: JobSpec, step: Step, request: RenderRequest) -> str | None:
        """Return the cache key that equal renders share; None if this one must be rendered.

        Prompts of ComfyUI's clients are always rendered: these clients wait for the events of
        their execution.
        """
        if not self._rules.enabled or not step.cache or spec.comfyui is not None:
            return None
        return compute_render_digest(self._rules, request.graph, request.models)

    async def find(
        self, owner: str, digest: str, request: RenderRequest
    ) -> tuple[RenderSucceeded, PromptRecord | None] | None:
        """Return an earlier result, renamed to this prompt; None if one of its files is gone."""
        kept = await self._cache.get(select_cache_owner(owner, self._rules), digest)
        if kept is None:
            return None
        for sha256 in {file.sha256 for file in kept.done.files}:
            # Renewed, so that it is not pruned before this prompt refers to it.
            if not await self._blobs.renew(sha256):
                return None
        if kept.record is None:
            return kept.done, None
        plain = _renamed(to_plain(kept.record), kept.prompt_id, request.prompt_id)
        return kept.done, from_plain(PromptRecord, plain)

    async def store(self, owner: str, digest: str, render: CachedRender) -> None:
        """Store a result if the graph would always produce the same one."""
        if render.done.repeatable:
            await self._cache.put(
                select_cache_owner(owner, self._rules), digest, render, self._rules
            )


def _renamed(value: Any, old_id: str, new_id: str) -> Any:
    """Replace the prompt's id everywhere: events and the names of folders contain it."""
    if isinstance(value, str):
        return value.replace(old_id, new_id)
    if isinstance(value, dict):
        return {key: _renamed(item, old_id, new_id) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, old_id, new_id) for item in value]
    return value
