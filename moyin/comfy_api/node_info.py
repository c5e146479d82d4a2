"""Merges the nodes, models and rules that the render pools report, and caches the results.

`moyin.render.comfyui.pool_client` requests and caches the responses of each pool. Requests of tenants
reach the content of pools through `moyin.comfy_api.caller_pools` only.
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
    build_inventory,
    filter_nodes,
    merge_nodes,
    remove_input_folder_choices,
    supports_graph,
    supports_node_classes,
)
from moyin.domain.limits import PoolRules
from moyin.domain.render_run import RenderTariff
from moyin.domain.serialization import decode
from moyin.errors import BackendError, NotFound, ServiceUnavailable
from moyin.render.comfyui.bridge.input_rules import Rule, derive_rules
from moyin.render.comfyui.pool_client import (
    FRESH_RESPONSE_SECONDS,
    MAX_REFRESH_WAIT_SECONDS,
    NODES_PATH,
    RULES_PATH,
    TARIFF_PATH,
    CachedResponse,
    PoolClient,
    PoolResponseCache,
    PoolStarting,
)
from moyin.system.bounded import BoundedDict
from moyin.system.heavy_work import run_aside

# The rules for the values of inputs, by node class and input name.
InputRules = Mapping[str, Mapping[str, Rule]]

_log = logging.getLogger(__name__)
# How many seconds a submission waits at most for a pool's nodes or rules.
_INVENTORY_SECONDS = 2.0
_INPUT_RULES_SECONDS = 300.0
# How many seconds a submission waits for a pool that is starting, and the interval of its polls.
_START_SECONDS = 20.0
_POLL_SECONDS = 0.5
_MAX_ENTRIES = 128
# A pool that does not respond, or whose response is too large.
_NO_RESPONSE = (ServiceUnavailable, BackendError)
T = TypeVar("T")


class NodeInfoCache:
    """Caches and merges the pools' nodes, models and rules for one replica.

    Args:
        folder: the folder in which the pools' nodes are stored for the next start, or None.
        fresh_seconds: the seconds for which a cached response is used without a new request.
        wait_seconds: the seconds to wait for a new response before an older one is used.
        start_seconds: the seconds that a submission waits for the nodes of a pool that is starting.
    """

    def __init__(
        self,
        pool_client: PoolClient,
        *,
        folder: Path | None = None,
        fresh_seconds: float = FRESH_RESPONSE_SECONDS,
        wait_seconds: float = MAX_REFRESH_WAIT_SECONDS,
        start_seconds: float = _START_SECONDS,
    ) -> None:
        self._pool_client = pool_client
        self._start = start_seconds
        self._pool_responses = PoolResponseCache(
            pool_client, folder=folder, fresh_seconds=fresh_seconds, wait_seconds=wait_seconds
        )
        # The first item of each entry is the source from which the second item was computed.
        self._inventories: BoundedDict[str, tuple[bytes, PoolInventory, InputRules]]
        self._inventories = BoundedDict(_MAX_ENTRIES)
        self._rules: BoundedDict[str, tuple[bytes, PoolRules]] = BoundedDict(_MAX_ENTRIES)
        self._tariffs: BoundedDict[str, tuple[bytes, RenderTariff]] = BoundedDict(_MAX_ENTRIES)
        self._merged: BoundedDict[tuple[str, ...], tuple[Any, Any]] = BoundedDict(_MAX_ENTRIES)

    @property
    def pools(self) -> Sequence[str]:
        """The names of all pools, in the order of the configuration."""
        return self._pool_client.pools

    async def fetch_nodes(self, pools: Sequence[str]) -> dict[str, Any]:
        """Return the merged ``/object_info`` of the nodes that the ``pools`` permit.

        The result is cached, so do not modify it.

        Raises:
            ServiceUnavailable: no pool has reported its nodes yet.
        """
        responses = await self._fetch_responses(NODES_PATH, pools)
        rules = {pool: await self.fetch_rules(pool) for pool in responses}

        def merge() -> dict[str, Any]:
            return merge_nodes(
                filter_nodes(remove_input_folder_choices(from_json(body)), rules[pool].permits_node)
                for pool, body in responses.items()
            )

        return await self._get_merged_result((NODES_PATH, *responses), (responses, rules), merge)

    async def fetch_rules(self, pool: str) -> PoolRules:
        """Return the operator's rules for a pool, or its last ones if the pool does not respond.

        Raises:
            ServiceUnavailable: the pool has not reported its rules yet. There are no default rules,
                because they would open a pool that is kept for some tenants to all.
        """
        try:
            async with asyncio.timeout(_INVENTORY_SECONDS):
                content = (
                    await self._pool_responses.fetch(pool, RULES_PATH, wait_seconds=0.0)
                ).value
        except (ServiceUnavailable, TimeoutError):
            content = None
        cached_rules = self._rules.get(pool)
        if content is not None and (cached_rules is None or cached_rules[0] != content):
            try:
                cached_rules = (content, decode(PoolRules, content))
                self._rules[pool] = cached_rules
            except ValueError:
                _log.warning("render pool %s returned malformed rules; its last rules apply", pool)
        if cached_rules is None:
            raise ServiceUnavailable(
                f"render pool {pool!r} has not reported its rules yet; try again", retry_after=5
            )
        return cached_rules[1]

    async def fetch_tariff(self, pool: str) -> RenderTariff:
        """Return a pool's render prices and estimates.

        The estimates are the duration of a render and its number of pictures.

        Raises:
            ServiceUnavailable: the pool has not reported its prices yet.
        """
        message = (
            f"the prices of render pool {pool!r} are unknown while it is down; try again later"
        )
        try:
            async with asyncio.timeout(_INVENTORY_SECONDS):
                content = (await self._pool_responses.fetch(pool, TARIFF_PATH)).value
        except TimeoutError as error:
            raise ServiceUnavailable(message, retry_after=5) from error
        if content is None:
            raise ServiceUnavailable(message, retry_after=5)
        cached_tariff = self._tariffs.get(pool)
        if cached_tariff is None or cached_tariff[0] != content:
            try:
                cached_tariff = (content, decode(RenderTariff, content))
            except ValueError as error:
                raise ServiceUnavailable(message, retry_after=5) from error
            self._tariffs[pool] = cached_tariff
        return cached_tariff[1]

    async def fetch_input_rules(self, pool: str, classes: Set[str]) -> InputRules | None:
        """Return the rules for the inputs of a pool's nodes, or None if the nodes are unknown.

        A cached report of the pool's nodes is used for minutes, unless it lacks one of the
        ``classes``. A new report would cost a ComfyUI process half a second, and its content
        changes only when the pool's processes restart.
        """
        inventory_and_rules = await self._fetch_inventory(pool, _INPUT_RULES_SECONDS, 0.0)
        if inventory_and_rules is None or not classes <= inventory_and_rules[1].keys():
            inventory_and_rules = await self._fetch_inventory(pool)
        return None if inventory_and_rules is None else inventory_and_rules[1]

    async def fetch_merged_responses(
        self, path: str, merge: Callable[[list[Any]], T], pools: Sequence[str]
    ) -> T:
        """Return the JSON responses of ``pools`` to ``path``, merged by ``merge``.

        The result is cached, so do not modify it.

        Raises:
            ServiceUnavailable: no pool has responded yet.
            NotFound: no pool has a response for this path.
        """
        bodies_by_pool = await self._fetch_responses(path, pools)
        responses = list(bodies_by_pool.values())
        return await self._get_merged_result(
            (path, *bodies_by_pool),
            responses,
            lambda: merge([from_json(content) for content in responses]),
        )

    async def fetch_first(self, path: str, pools: Sequence[str]) -> bytes:
        """Return the response to GET ``path`` of the first of ``pools`` that has one.

        Raises the errors of `fetch_merged_responses`.
        """
        return next(iter((await self._fetch_responses(path, pools)).values()))

    async def fetch_from_renderers(self, path: str, pools: Sequence[str]) -> list[Any]:
        """Return the current JSON response to GET ``path`` of every renderer that responds."""
        calls = (self._pool_client.get_all(pool, path) for pool in pools)
        bodies_by_pool = await asyncio.gather(*calls)
        return [from_json(body) for bodies in bodies_by_pool for _, body in sorted(bodies.items())]

    async def choose_pool(self, graph: Mapping[str, Any], pools: Sequence[str]) -> str:
        """Return the first of ``pools`` that lists every node and file of the graph.

        If no pool lists all files, return the first pool with all nodes, because a pool may accept
        files that it does not list. If no pool has all nodes, return the first pool, so that its
        validation error explains the problem to the client. Wait for pools that are starting.

        Raises:
            ServiceUnavailable: a pool is still starting, and no earlier pool has all nodes and
                files.
        """
        if len(pools) == 1:
            return pools[0]
        pools_with_nodes: list[str] = []
        deadline = time.monotonic() + self._start
        for pool in pools:
            inventory = await self._wait_for_inventory(pool, deadline)
            if inventory is not None and await run_aside(supports_graph, inventory, graph):
                return pool
            if inventory is not None and await run_aside(supports_node_classes, inventory, graph):
                pools_with_nodes.append(pool)
        return pools_with_nodes[0] if pools_with_nodes else pools[0]

    async def close(self) -> None:
        """Cancel the requests to pools that are still in progress."""
        await self._pool_responses.close()

    async def _get_merged_result(
        self, key: tuple[str, ...], source: Any, merge: Callable[[], T]
    ) -> T:
        """Return the result of ``merge``, which is cached under ``key`` until ``source`` changes.

        Args:
            source: the responses that ``merge`` combines.
        """
        cached_entry = self._merged.get(key)
        if cached_entry is not None and cached_entry[0] == source:
            merged_result: T = cached_entry[1]
            return merged_result
        try:
            merged_result = await asyncio.to_thread(merge)
        except ValueError:
            raise ServiceUnavailable(
                f"a render pool returned malformed JSON for {key[0]}: ask an operator to look at its logs"
            ) from None
        self._merged[key] = (source, merged_result)
        return merged_result

    async def _fetch_responses(self, path: str, pools: Sequence[str]) -> dict[str, bytes]:
        """Return the responses to GET ``path`` by pool, in the order of ``pools``.

        Pools without a response are left out. If no pool has a response, this raises the errors of
        `fetch_merged_responses`.
        """
        segments = path.partition("?")[0].split("/")[1:]
        if any(unquote(segment) in ("", ".", "..") for segment in segments):
            # Such a path could lead to the route of ComfyUI that returns the prompts of all
            # tenants.
            raise NotFound(f"no render pool serves {path}: check the path")
        results = await asyncio.gather(
            *(self._pool_responses.fetch(pool, path) for pool in pools), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, _NO_RESPONSE):
                raise result
        responses_by_pool = {
            p: r for p, r in zip(pools, results, strict=True) if isinstance(r, CachedResponse)
        }
        for result in results:
            if isinstance(result, BackendError) and not responses_by_pool:
                raise result
        if not responses_by_pool and pools:
            raise ServiceUnavailable(
                "no render pool has reported its nodes or models yet; try again", retry_after=5
            )
        contents_by_pool = {
            pool: a.value for pool, a in responses_by_pool.items() if a.value is not None
        }
        if not contents_by_pool:
            raise NotFound(f"no render pool serves {path}: check the path")
        return contents_by_pool

    async def _wait_for_inventory(self, pool: str, deadline: float) -> PoolInventory | None:
        """Return the nodes and files that graphs may use in a pool, or None if they are unknown.

        Raises:
            ServiceUnavailable: the pool is still starting at the deadline.
        """
        while True:
            seconds_left = max(0.0, deadline - time.monotonic())
            try:
                async with asyncio.timeout(seconds_left):
                    response = await self._pool_responses.fetch(pool, NODES_PATH)
                break
            except (PoolStarting, TimeoutError):
                if time.monotonic() >= deadline:
                    raise ServiceUnavailable(
                        f"render pool {pool!r} is starting, and its nodes are not known yet;"
                        " try again later",
                        retry_after=5,
                    ) from None
            except _NO_RESPONSE:
                return None
            await asyncio.sleep(min(_POLL_SECONDS, seconds_left))
        inventory_and_rules = await self._get_parsed_nodes(pool, response)
        if inventory_and_rules is None:
            return None
        rules = await self.fetch_rules(pool)
        return {
            name: node for name, node in inventory_and_rules[0].items() if rules.permits_node(name)
        }

    async def _fetch_inventory(
        self, pool: str, fresh_seconds: float | None = None, wait_seconds: float | None = None
    ) -> tuple[PoolInventory, InputRules] | None:
        """Return a pool's inventory and input rules, or None if the pool does not respond in time.

        The arguments ``fresh_seconds`` and ``wait_seconds`` override those of the constructor.
        """
        try:
            async with asyncio.timeout(_INVENTORY_SECONDS):
                response = await self._pool_responses.fetch(
                    pool, NODES_PATH, fresh_seconds, wait_seconds
                )
        except (*_NO_RESPONSE, TimeoutError):
            return None
        return await self._get_parsed_nodes(pool, response)

    async def _get_parsed_nodes(
        self, pool: str, response: CachedResponse
    ) -> tuple[PoolInventory, InputRules] | None:
        """Return the inventory and the input rules in a pool's ``/object_info``.

        Content that has been parsed before is not parsed again. Returns None if the pool has never
        reported its nodes.
        """
        content = response.value
        cached_entry = self._inventories.get(pool)
        if content is None or (cached_entry is not None and cached_entry[0] == content):
            return None if cached_entry is None else cached_entry[1:]
        try:
            inventory, input_rules = await asyncio.to_thread(_parse_nodes, content)
        except ValueError:
            return None
        self._inventories[pool] = (content, inventory, input_rules)
        return inventory, input_rules


def _parse_nodes(content: bytes) -> tuple[PoolInventory, InputRules]:
    nodes = from_json(content)
    return build_inventory(nodes), {name: derive_rules(name, node) for name, node in nodes.items()}
