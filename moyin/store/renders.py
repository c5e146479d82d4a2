"""Results of renders that are kept, to be given again for the very same graph."""

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

__all__ = ["CacheRules", "KeptRender", "RenderCache", "RenderStore", "render_digest", "tenant"]

# What an entry may weigh: files are named in it, not held, but texts are.
_LARGEST_ENTRY = 256 * 1024
# The tenant that stands for all of them.
_EVERYBODY = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRules:
    """Attributes:
    kind: what the renderers of a pool are, as far as that changes what they make.
    ttl: seconds; ``entries`` of each tenant.
    shared: tenants may get each other's results.
    """

    kind: str
    enabled: bool = True
    ttl: int = 7 * 86_400
    entries: int = 10_000
    shared: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptRender:
    """What a prompt made.

    Attributes:
        prompt_id: of the prompt that made it.
        record: what ComfyUI's history said of it.
    """

    prompt_id: str
    done: RenderSucceeded
    record: PromptRecord | None = None


class RenderCache(Protocol):
    """Where results are kept."""

    async def get(self, owner: str, digest: str) -> KeptRender | None: ...

    async def put(self, owner: str, digest: str, render: KeptRender, rules: CacheRules) -> None: ...


class RenderStore:
    """`RenderCache` in Valkey."""

    def __init__(self, url: str) -> None:
        self._kept = TenantCache(url, "moyin:renders")

    async def get(self, owner: str, digest: str) -> KeptRender | None:
        kept = await self._kept.get(owner, digest)
        return None if kept is None else decode(KeptRender, kept)

    async def put(self, owner: str, digest: str, render: KeptRender, rules: CacheRules) -> None:
        encoded = encode(render)
        if len(encoded) <= _LARGEST_ENTRY:
            await self._kept.put(owner, digest, encoded, ttl=rules.ttl, entries=rules.entries)

    async def close(self) -> None:
        await self._kept.close()


def tenant(owner: str, rules: CacheRules) -> str:
    """Whose results ``owner`` gets."""
    return _EVERYBODY if rules.shared else owner


def render_digest(rules: CacheRules, graph: Mapping[str, Any], models: Mapping[str, int]) -> str:
    """Equal for graphs of which one result is as good as another; sha256 in hex.

    Args:
        graph: with input files under names that say their content (`input_name`).
        models: sizes of the files that it loads.
    """
    nodes = {
        node_id: [node.get("class_type"), node.get("inputs", {})]
        for node_id, node in graph.items()
        if isinstance(node, Mapping)
    }
    plain = json.dumps([rules.kind, nodes, dict(models)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()
