"""Caches what the pools' ComfyUIs report about themselves, and merges the reports of all pools.

`moyin.render.comfyui.pool_client` caches the responses of each pool; this module combines them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from pydantic_core import from_json

from moyin.comfy_api.protocol.node_info import (
    PoolInventory,
    has_graph,
    has_node_classes,
    inventory_of,
    permitted_nodes,
    union_of_nodes,
    without_input_folder,
)
from moyin.domain.limits import PoolRules
from moyin.domain.serialization import decode
from moyin.errors import NotFound, ServiceUnavailable
from moyin.render.comfyui.bridge.input_rules import Rule, derive_rules
from moyin.render.comfyui.pool_client import (
    FRESH_RESPONSE_SECONDS,
    MAX_REFRESH_WAIT_SECONDS,
    NODES_PATH,
    RULES_PATH,
    CachedResponse,
    PoolClient,
    PoolResponseCache,
    PoolStarting,
)
from moyin.system.bounded import BoundedDict

__all__ = ["InputRules", "NodeInfoCache"]

# By node class and input.
InputRules = Mapping[str, Mapping[str, Rule]]

_log = logging.getLogger(__name__)
# A submission waits at most this long for a pool's nodes or rules.
_INVENTORY_SECONDS = 2.0
_INPUT_RULES_SECONDS = 300.0
# A graph waits this long for the nodes of a pool that is starting, and polls at this interval.
_START_SECONDS = 20.0
_POLL_SECONDS = 0.5
_MAX_ENTRIES = 128
T = TypeVar("T")


class NodeInfoCache:
    """Caches and merges node information; one per gateway replica.

    Args:
        folder: where the nodes of every pool are stored for the next start.
        fresh, patience: see `PoolResponseCache`.
        start: seconds that a graph waits for the nodes of a pool that is starting.
    """

    def __init__(
        self,
        pool_client: PoolClient,
        *,
        folder: Path | None = None,
        fresh: float = FRESH_RESPONSE_SECONDS,
        patience: float = MAX_REFRESH_WAIT_SECONDS,
        start: float = _START_SECONDS,
    ) -> None:
        self._pool_client = pool_client
        self._start = start
        self._answers = PoolResponseCache(
            pool_client, folder=folder, fresh=fresh, patience=patience
        )
        # Each entry begins with the source from which the rest was parsed or merged.
        self._inventories: BoundedDict[str, tuple[bytes, PoolInventory, InputRules]]
        self._inventories = BoundedDict(_MAX_ENTRIES)
        self._rules: BoundedDict[str, tuple[bytes, PoolRules]] = BoundedDict(_MAX_ENTRIES)
        self._merged: BoundedDict[tuple[str, ...], tuple[Any, Any]] = BoundedDict(_MAX_ENTRIES)

    @property
    def pools(self) -> Sequence[str]:
        """The names of all pools, in the order of the configuration."""
        return self._pool_client.pools

    async def nodes(self, pools: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the merged ``/object_info`` that some pools (None: all) permit; do not modify it.

        Raises:
            ServiceUnavailable: no pool has reported its nodes yet.
        """
        responses = await self._responses(NODES_PATH, self.pools if pools is None else pools)
        rules = {pool: await self.rules(pool) for pool in responses}

        def merge() -> dict[str, Any]:
            return union_of_nodes(
                permitted_nodes(without_input_folder(from_json(body)), rules[pool].permits_node)
                for pool, body in responses.items()
            )

        return await self._merge_once((NODES_PATH, *responses), (responses, rules), merge)

    async def rules(self, pool: str) -> PoolRules:
        """Return the rules that the pool's operator has set; the defaults if they are unknown."""
        try:
            async with asyncio.timeout(_INVENTORY_SECONDS):
                content = (await self._answers.fetch(pool, RULES_PATH, patience=0.0)).value
        except (ServiceUnavailable, TimeoutError):
            content = None
        known = self._rules.get(pool)
        if content is None or (known is not None and known[0] == content):
            return PoolRules() if known is None else known[1]
        try:
            rules = decode(PoolRules, content)
        except ValueError:
            _log.warning("the rules of pool %s are malformed", pool)
            return PoolRules() if known is None else known[1]
        self._rules[pool] = (content, rules)
        return rules

    async def input_rules(self, pool: str, classes: Set[str]) -> InputRules | None:
        """Return what the inputs of the pool's nodes accept; None if the pool has not reported it.

        The inputs of a node change only with the pool's processes, and a report costs each of them
        half a second. So the cached report is used for minutes, unless a class is new.
        """
        known = await self._inventory(pool, _INPUT_RULES_SECONDS, 0.0)
        if known is None or not classes <= known[1].keys():
            known = await self._inventory(pool)
        return None if known is None else known[1]

    async def merged(self, path: str, merge: Callable[[list[Any]], T]) -> T:
        """Return the merged JSON responses of all pools at ``path``; do not modify the result.

        Raises:
            ServiceUnavailable: no pool has responded yet.
            NotFound: no pool has anything at this path.
        """
        responses = list((await self._responses(path, self.pools)).values())
        return await self._merge_once(
            (path,), responses, lambda: merge([from_json(content) for content in responses])
        )

    async def first(self, path: str) -> bytes:
        """Return the response of the first pool that has something at ``path``.

        Raises:
            ServiceUnavailable, NotFound: see `merged`.
        """
        return next(iter((await self._responses(path, self.pools)).values()))

    async def all_renderers(self, path: str) -> list[Any]:
        """Return the current JSON responses of every renderer of every pool."""
        calls = (self._pool_client.get_all(pool, path) for pool in self._pool_client.pools)
        by_pool = await asyncio.gather(*calls)
        return [from_json(body) for bodies in by_pool for _, body in sorted(bodies.items())]

    async def pool_for(self, graph: Mapping[str, Any], pools: Sequence[str] | None = None) -> str:
        """Return the first of some pools (None: all) that has every node and file of the graph.

        If no pool lists all of them, return the first that has the graph's nodes, as it may accept
        files that it does not list. Otherwise return the very first pool, whose error is the most
        useful. A pool that is starting is waited for, so that its graphs do not run elsewhere.

        Raises:
            ServiceUnavailable: a pool is still starting, and no pool before it has everything.
        """
        pools = self.pools if pools is None else pools
        if len(pools) == 1:
            return pools[0]
        with_nodes: list[str] = []
        deadline = time.monotonic() + self._start
        for pool in pools:
            inventory = await self._permitted_inventory(pool, deadline)
            if inventory is not None and has_graph(inventory, graph):
                return pool
            if inventory is not None and has_node_classes(inventory, graph):
                with_nodes.append(pool)
        return with_nodes[0] if with_nodes else pools[0]

    async def close(self) -> None:
        """Cancel the requests to pools that are still running."""
        await self._answers.close()

    async def _merge_once(self, key: tuple[str, ...], source: Any, merge: Callable[[], T]) -> T:
        """Return the result of ``merge``, cached for as long as ``source`` stays the same."""
        known = self._merged.get(key)
        if known is not None and known[0] == source:
            merged: T = known[1]
            return merged
        try:
            merged = await asyncio.to_thread(merge)
        except ValueError:
            raise ServiceUnavailable("a render pool returned malformed JSON") from None
        self._merged[key] = (source, merged)
        return merged

    async def _responses(self, path: str, pools: Sequence[str]) -> dict[str, bytes]:
        """Return the pools' responses by pool, in the order of ``pools``."""
        segments = path.partition("?")[0].split("/")[1:]
        if any(unquote(segment) in ("", ".", "..") for segment in segments):
            # The path could reach another of the worker's routes, such as all tenants' prompts.
            raise NotFound(f"no render pool has anything at {path}")
        results = await asyncio.gather(
            *(self._answers.fetch(pool, path) for pool in pools), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ServiceUnavailable):
                raise result
        answers = {
            p: r for p, r in zip(pools, results, strict=True) if isinstance(r, CachedResponse)
        }
        if not answers:
            raise ServiceUnavailable("no render pool has responded yet; try again", retry_after=5)
        contents = {pool: a.value for pool, a in answers.items() if a.value is not None}
        if not contents:
            raise NotFound(f"no render pool has anything at {path}")
        return contents

    async def _permitted_inventory(self, pool: str, deadline: float) -> PoolInventory | None:
        """Return what graphs may use in the pool; None if it is down and has never reported it.

        Raises:
            ServiceUnavailable: the pool is still starting after the deadline.
        """
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                async with asyncio.timeout(left):
                    answer = await self._answers.fetch(pool, NODES_PATH)
                break
            except (PoolStarting, TimeoutError):
                if time.monotonic() >= deadline:
                    raise ServiceUnavailable(
                        f"render pool {pool!r} is starting, and its nodes are not known yet;"
                        " try again later",
                        retry_after=5,
                    ) from None
            except ServiceUnavailable:
                return None
            await asyncio.sleep(min(_POLL_SECONDS, left))
        known = await self._parse(pool, answer)
        if known is None:
            return None
        rules = await self.rules(pool)
        return {name: node for name, node in known[0].items() if rules.permits_node(name)}

    async def _inventory(
        self, pool: str, fresh: float | None = None, patience: float | None = None
    ) -> tuple[PoolInventory, InputRules] | None:
        try:
            async with asyncio.timeout(_INVENTORY_SECONDS):
                answer = await self._answers.fetch(pool, NODES_PATH, fresh, patience)
        except (ServiceUnavailable, TimeoutError):
            return None
        return await self._parse(pool, answer)

    async def _parse(
        self, pool: str, answer: CachedResponse
    ) -> tuple[PoolInventory, InputRules] | None:
        content = answer.value
        known = self._inventories.get(pool)
        if content is None or (known is not None and known[0] == content):
            return None if known is None else known[1:]
        try:
            inventory, inputs = await asyncio.to_thread(_parse_nodes, content)
        except ValueError:
            return None
        self._inventories[pool] = (content, inventory, inputs)
        return inventory, inputs


def _parse_nodes(content: bytes) -> tuple[PoolInventory, InputRules]:
    nodes = from_json(content)
    return inventory_of(nodes), {name: derive_rules(name, node) for name, node in nodes.items()}
