"""`NodeInfoCache`: what the farm's ComfyUIs say of themselves, kept, so that nobody waits for them.

`moyin.render.comfyui.pool_client` keeps what each pool answered; this puts the pools together.
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

from moyin.comfy_api.protocol.node_info import permitted_nodes, union_of_nodes, without_input_folder
from moyin.comfy_api.protocol.offers import Offer, has_all, has_nodes, offer_of
from moyin.domain.pools import PoolRules
from moyin.domain.serialization import decode
from moyin.errors import NotFound, ServiceUnavailable
from moyin.render.comfyui.bridge.names import Rule, rules_of
from moyin.render.comfyui.pool_client import (
    FRESH_SECONDS,
    NODES,
    PATIENCE_SECONDS,
    RULES,
    Answer,
    PoolAnswers,
    PoolClient,
    PoolStarting,
)
from moyin.render.comfyui.prompts import BoundedDict

__all__ = ["InputRules", "NodeInfoCache"]

# By node class and input.
InputRules = Mapping[str, Mapping[str, Rule]]

_log = logging.getLogger(__name__)
# Whoever submits a graph waits for what a pool has no longer than this.
_OFFER_SECONDS = 2.0
_LASTING_SECONDS = 300.0
# A graph waits this long for the nodes of a pool that is starting, and looks this often.
_START_SECONDS = 20.0
_LOOK_SECONDS = 0.5
_REMEMBERED = 128
T = TypeVar("T")


class NodeInfoCache:
    """One per gateway replica.

    Args:
        folder: where the nodes of every pool are kept for the next start.
        start: seconds that a graph waits for the nodes of a pool that is starting.
    """

    def __init__(
        self,
        asker: PoolClient,
        *,
        folder: Path | None = None,
        fresh: float = FRESH_SECONDS,
        patience: float = PATIENCE_SECONDS,
        start: float = _START_SECONDS,
    ) -> None:
        self._asker = asker
        self._start = start
        self._answers = PoolAnswers(asker, folder=folder, fresh=fresh, patience=patience)
        self._offers: BoundedDict[str, tuple[bytes, Offer, InputRules]] = BoundedDict(_REMEMBERED)
        self._rules: BoundedDict[str, tuple[bytes, PoolRules]] = BoundedDict(_REMEMBERED)
        self._merged: BoundedDict[tuple[str, ...], tuple[Any, Any]] = BoundedDict(_REMEMBERED)

    @property
    def pools(self) -> Sequence[str]:
        return self._asker.pools

    async def nodes(self, pools: Sequence[str] | None = None) -> dict[str, Any]:
        """``/object_info`` of some pools (None: all) together: what graphs may have there. Leave it
        as it is.

        Raises:
            ServiceUnavailable: no pool ever said what it has.
        """
        said = await self._said(NODES, self.pools if pools is None else pools)
        rules = {pool: await self.rules(pool) for pool in said}

        def merge() -> dict[str, Any]:
            return union_of_nodes(
                permitted_nodes(
                    without_input_folder(from_json(said[pool])), rules[pool].permits_node
                )
                for pool in said
            )

        return await self._once((NODES, *said), (said, rules), merge)

    async def rules(self, pool: str) -> PoolRules:
        """What the pool's operator has said of it; what holds by default until it has said so."""
        try:
            async with asyncio.timeout(_OFFER_SECONDS):
                said = (await self._answers.of(pool, RULES, patience=0.0)).value
        except (ServiceUnavailable, TimeoutError):
            said = None
        known = self._rules.get(pool)
        if said is None or (known is not None and known[0] == said):
            return PoolRules() if known is None else known[1]
        try:
            rules = decode(PoolRules, said)
        except ValueError:
            _log.warning("pool %s has rules that can't be read", pool)
            return PoolRules() if known is None else known[1]
        self._rules[pool] = (said, rules)
        return rules

    async def inputs(self, pool: str, classes: Set[str]) -> InputRules | None:
        """What the inputs of the pool's nodes take; None: it never said what it has.

        How a node describes its inputs lasts as long as the pool's processes, and to be asked for it
        costs each of them half a second: it is asked again soon only for classes that are new.
        """
        offered = await self._offered(pool, _LASTING_SECONDS, 0.0)
        if offered is None or not classes <= offered[1].keys():
            offered = await self._offered(pool)
        return None if offered is None else offered[1]

    async def union(self, path: str, merge: Callable[[list[Any]], T]) -> T:
        """What all pools say at ``path``, as JSON, put together. Leave it as it is.

        Raises:
            ServiceUnavailable: no pool said anything yet.
            NotFound: they have nothing there.
        """
        said = list((await self._said(path, self.pools)).values())
        return await self._once((path,), said, lambda: merge([from_json(one) for one in said]))

    async def first(self, path: str) -> bytes:
        """What the first pool says that has something at ``path``.

        Raises:
            ServiceUnavailable, NotFound: see `union`.
        """
        return next(iter((await self._said(path, self.pools)).values()))

    async def each(self, path: str) -> list[Any]:
        """What every renderer of every pool says now, as JSON."""
        found = await asyncio.gather(
            *(self._asker.ask_all(pool, path) for pool in self._asker.pools)
        )
        return [from_json(said) for pool in found for _, said in sorted(pool.items())]

    async def pool_for(self, graph: Mapping[str, Any], pools: Sequence[str] | None = None) -> str:
        """Return the first of some pools (None: all) that has every node and file of the graph.

        When no pool lists all of them, return the first that has its nodes, which may take more
        files than they list, and else the very first: it says best itself what it lacks. A pool
        that is starting is waited for, so that its graphs do not run on another one meanwhile.

        Raises:
            ServiceUnavailable: a pool is still starting, and no pool before it has it all.
        """
        pools = self.pools if pools is None else pools
        if len(pools) == 1:
            return pools[0]
        able: list[str] = []
        deadline = time.monotonic() + self._start
        for pool in pools:
            offer = await self._permitted_offer(pool, deadline)
            if offer is not None and has_all(offer, graph):
                return pool
            if offer is not None and has_nodes(offer, graph):
                able.append(pool)
        return able[0] if able else pools[0]

    async def close(self) -> None:
        await self._answers.close()

    async def _once(self, key: tuple[str, ...], source: Any, merge: Callable[[], T]) -> T:
        """What ``merge`` makes of ``source``, made again only when that has changed."""
        known = self._merged.get(key)
        if known is not None and known[0] == source:
            merged: T = known[1]
            return merged
        try:
            merged = await asyncio.to_thread(merge)
        except ValueError:
            raise ServiceUnavailable("a render pool answered nonsense") from None
        self._merged[key] = (source, merged)
        return merged

    async def _said(self, path: str, pools: Sequence[str]) -> dict[str, bytes]:
        """By pool, in their order."""
        segments = path.partition("?")[0].split("/")[1:]
        if any(unquote(segment) in ("", ".", "..") for segment in segments):
            # It would be another route of the worker's, such as that of everybody's prompts.
            raise NotFound(f"there is no {path}")
        found = await asyncio.gather(
            *(self._answers.of(pool, path) for pool in pools), return_exceptions=True
        )
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, ServiceUnavailable):
                raise one
        answers = {
            pool: one for pool, one in zip(pools, found, strict=True) if isinstance(one, Answer)
        }
        if not answers:
            raise ServiceUnavailable("no render pool has answered yet", retry_after=5)
        said = {pool: one.value for pool, one in answers.items() if one.value is not None}
        if not said:
            raise NotFound(f"there is no {path}")
        return said

    async def _permitted_offer(self, pool: str, deadline: float) -> Offer | None:
        """Return what the pool has and graphs may have; None when it is down and never said so.

        Raises:
            ServiceUnavailable: it is starting, and the deadline has passed.
        """
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                async with asyncio.timeout(left):
                    answer = await self._answers.of(pool, NODES)
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
            await asyncio.sleep(min(_LOOK_SECONDS, left))
        offered = await self._read(pool, answer)
        if offered is None:
            return None
        rules = await self.rules(pool)
        return {name: node for name, node in offered[0].items() if rules.permits_node(name)}

    async def _offered(
        self, pool: str, fresh: float | None = None, patience: float | None = None
    ) -> tuple[Offer, InputRules] | None:
        try:
            async with asyncio.timeout(_OFFER_SECONDS):
                answer = await self._answers.of(pool, NODES, fresh, patience)
        except (ServiceUnavailable, TimeoutError):
            return None
        return await self._read(pool, answer)

    async def _read(self, pool: str, answer: Answer) -> tuple[Offer, InputRules] | None:
        said = answer.value
        known = self._offers.get(pool)
        if said is None or (known is not None and known[0] == said):
            return None if known is None else known[1:]
        try:
            offer, inputs = await asyncio.to_thread(_read_nodes, said)
        except ValueError:
            return None
        self._offers[pool] = (said, offer, inputs)
        return offer, inputs


def _read_nodes(said: bytes) -> tuple[Offer, InputRules]:
    nodes = from_json(said)
    return offer_of(nodes), {name: rules_of(name, node) for name, node in nodes.items()}
