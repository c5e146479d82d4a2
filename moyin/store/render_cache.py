"""Caches the results of renders per tenant, so that an identical graph is not rendered again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import RenderSucceeded
from moyin.domain.serialization import decode, encode
from moyin.store.tenant_cache import TenantCache

# An entry contains the digests of files, but whole texts.
_MAX_ENTRY_BYTES = 256 * 1024
# The owner of entries that all tenants share.
_SHARED_OWNER = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRules:
    """Configures the render cache of a pool.

    Attributes:
        kind: a text that is equal for pools whose renderers give equal results; it contains what
            affects the results, such as ComfyUI's version.
        ttl: the lifetime of an entry in seconds.
        entries: the maximum number of entries per tenant.
        shared: whether tenants share all entries.
    """

    kind: str
    enabled: bool = True
    ttl: int = 7 * 86_400
    entries: int = 10_000
    shared: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedRender:
    """Holds the result of a render.

    Attributes:
        prompt_id: the id of the prompt that was rendered.
        record: ComfyUI's history entry of the prompt.
    """

    prompt_id: str
    done: RenderSucceeded
    record: PromptRecord | None = None


class RenderCache(Protocol):
    """Caches results of renders by owner and by the digest from `compute_render_digest`."""

    async def get(self, owner: str, digest: str) -> CachedRender | None: ...

    async def put(
        self, owner: str, digest: str, render: CachedRender, rules: CacheRules
    ) -> None: ...


class ValkeyRenderCache:
    """Implements `RenderCache` in Valkey."""

    def __init__(self, url: str) -> None:
        self._cache = TenantCache(url, "moyin:renders")

    async def get(self, owner: str, digest: str) -> CachedRender | None:
        encoded_render = await self._cache.get(owner, digest)
        return None if encoded_render is None else decode(CachedRender, encoded_render)

    async def put(self, owner: str, digest: str, render: CachedRender, rules: CacheRules) -> None:
        encoded_render = encode(render)
        if len(encoded_render) <= _MAX_ENTRY_BYTES:
            await self._cache.put(
                owner, digest, encoded_render, ttl_seconds=rules.ttl, max_entries=rules.entries
            )

    async def close(self) -> None:
        await self._cache.close()


def select_cache_owner(owner: str, rules: CacheRules) -> str:
    """Return the owner of the cache entries of a tenant, which is "*" if tenants share them."""
    return _SHARED_OWNER if rules.shared else owner


def compute_render_digest(
    rules: CacheRules, graph: Mapping[str, Any], models: Mapping[str, int]
) -> str:
    """Return a SHA-256 in hex that is equal for graphs with the same result.

    Args:
        graph: the graph, in which the names of input files are derived from their content.
        models: the sizes of the model files that the graph loads, by name.
    """
    nodes = {
        node_id: [node.get("class_type"), node.get("inputs", {})]
        for node_id, node in graph.items()
        if isinstance(node, Mapping)
    }
    canonical_json = json.dumps(
        [rules.kind, nodes, dict(models)], sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(canonical_json.encode()).hexdigest()
