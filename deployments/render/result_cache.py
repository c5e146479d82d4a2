"""`RenderResultCache`: earlier results of a pool's renders, found again and kept for later ones."""

from __future__ import annotations

from typing import Any

from moyin.domain.job import JobSpec, Step
from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import RenderRequest, RenderSucceeded
from moyin.domain.serialization import from_plain, to_plain
from moyin.store.blobs import BlobStore
from moyin.store.renders import CacheRules, KeptRender, RenderCache, render_digest, tenant

__all__ = ["RenderResultCache"]


class RenderResultCache:
    """What one graph made is the result of every graph that is equal to it.

    Two that are at work at the same time are both rendered. Failures are never kept.
    """

    def __init__(self, cache: RenderCache, blobs: BlobStore, rules: CacheRules) -> None:
        self._cache = cache
        self._blobs = blobs
        self._rules = rules

    def digest(self, spec: JobSpec, step: Step, request: RenderRequest) -> str | None:
        """What equal renders have in common; None: this one is to be rendered whatever was before.

        So are those of ComfyUI's clients, which want to hear how their prompt is executed.
        """
        if not self._rules.enabled or not step.cache or spec.comfyui is not None:
            return None
        return render_digest(self._rules, request.graph, request.models)

    async def find(
        self, owner: str, digest: str, request: RenderRequest
    ) -> tuple[RenderSucceeded, PromptRecord | None] | None:
        """An earlier result whose files are still there, as if it were of this prompt."""
        kept = await self._cache.get(tenant(owner, self._rules), digest)
        if kept is None:
            return None
        for sha256 in {file.sha256 for file in kept.done.files}:
            # New, so that it is not pruned while only this prompt is about to refer to it.
            if not await self._blobs.renew(sha256):
                return None
        if kept.record is None:
            return kept.done, None
        plain = _renamed(to_plain(kept.record), kept.prompt_id, request.prompt_id)
        return kept.done, from_plain(PromptRecord, plain)

    async def keep(self, owner: str, digest: str, render: KeptRender) -> None:
        """For later ones, if the graph would make the same again."""
        if render.done.repeatable:
            await self._cache.put(tenant(owner, self._rules), digest, render, self._rules)


def _renamed(value: Any, before: str, after: str) -> Any:
    """Folders of files are called after the prompt, and events name it."""
    if isinstance(value, str):
        return value.replace(before, after)
    if isinstance(value, dict):
        return {key: _renamed(item, before, after) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, before, after) for item in value]
    return value
