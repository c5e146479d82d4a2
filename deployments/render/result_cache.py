"""Contains `RenderResultCache`, which reuses the results of renders for equal graphs."""

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


class RenderResultCache:
    """Caches the results of a pool's finished renders, but not their failures."""

    def __init__(self, cache: RenderCache, blobs: BlobStore, rules: CacheRules) -> None:
        self._cache = cache
        self._blobs = blobs
        self._rules = rules

    def compute_key(self, spec: JobSpec, step: Step, request: RenderRequest) -> str | None:
        """Return the cache key, the same for equal renders; None if the render must not be cached.

        Prompts of ComfyUI's clients do not use the cache, because these clients wait for the events
        of their execution.
        """
        if not self._rules.enabled or not step.cache or spec.comfyui is not None:
            return None
        return compute_render_digest(self._rules, request.graph, request.models)

    async def find(
        self, owner: str, key: str, request: RenderRequest
    ) -> tuple[RenderSucceeded, PromptRecord | None] | None:
        """Return the cached result for a key from `compute_key`, with its history record, if any.

        In the record, the id of the requested prompt replaces that of the prompt that was rendered.
        Returns None if there is no such result, or if one of its files was deleted.
        """
        cached_render = await self._cache.get(select_cache_owner(owner, self._rules), key)
        if cached_render is None:
            return None
        for sha256 in {file.sha256 for file in cached_render.done.files}:
            # A renewed blob is not pruned before the prompt's result references it.
            if not await self._blobs.renew(sha256):
                return None
        if cached_render.record is None:
            return cached_render.done, None
        record_data = _replace_prompt_id(
            to_plain(cached_render.record), cached_render.prompt_id, request.prompt_id
        )
        return cached_render.done, from_plain(PromptRecord, record_data)

    async def store(self, owner: str, key: str, render: CachedRender) -> None:
        """Store a result if rendering the graph again would produce the same result.

        Args:
            key: the cache key from `compute_key`.
        """
        if render.done.repeatable:
            await self._cache.put(select_cache_owner(owner, self._rules), key, render, self._rules)


def _replace_prompt_id(value: Any, old_id: str, new_id: str) -> Any:
    """Return ``value`` with a prompt's id replaced wherever a string is or contains the id."""
    if isinstance(value, str):
        return value.replace(old_id, new_id)
    if isinstance(value, dict):
        return {key: _replace_prompt_id(item, old_id, new_id) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_prompt_id(item, old_id, new_id) for item in value]
    return value
