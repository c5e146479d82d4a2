"""`RenderGuard`: what a pool refuses when a render's turn has come, whoever let it in."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from moyin.domain.limits import Limit, permitted_pools
from moyin.domain.pools import PoolRules
from moyin.errors import InputNotFound, NodeNotAllowed, PoolNotAllowed
from moyin.render.comfyui.bridge.guard import KEY
from moyin.render.comfyui.bridge.tenants import TENANT
from moyin.render.protocol.graph import loaded_names
from moyin.render.protocol.refusals import NOT_YOURS

__all__ = ["RenderGuard"]


class OwnerLimits(Protocol):
    """The limits that there are of some subjects."""

    async def of(self, subjects: list[str]) -> tuple[Limit, ...]: ...


class RenderGuard:
    """Looks at a graph whose values are all known. It needs nothing that a ComfyUI would say.

    Args:
        rules: of the pool.
        limits: asked only about renders that were sent here from another pool.
    """

    def __init__(self, pool: str, rules: PoolRules, limits: OwnerLimits) -> None:
        self._pool = pool
        self._rules = rules
        self._limits = limits

    async def check(
        self, owner: str, pool: str, graph: Mapping[str, Any], own: Collection[str]
    ) -> None:
        """Refuse what the pool may not render.

        Args:
            pool: the one that was asked for.
            own: names of the input files that come with the graph.

        Raises:
            PoolNotAllowed: the pool is not for the owner's renders.
            NodeNotAllowed: the graph has a node that the pool allows nobody.
            InputNotFound: it names an input file that does not come with it.
        """
        if not self._rules.serves_tenant(owner) or not await self._is_permitted(owner, pool):
            raise PoolNotAllowed(f"the render pool {self._pool!r} does not run these jobs")
        for node_id, class_type in _classes(graph):
            if not self._rules.permits_node(class_type):
                raise NodeNotAllowed(
                    f"node {node_id!r}: this render pool allows no nodes of the class "
                    f"{class_type[:64]}"
                )
        for node_id, name in loaded_names(graph):
            if name not in own:
                raise InputNotFound(f"node {node_id!r}: {NOT_YOURS}")

    def extra_data(self, owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """``extra_data`` for ComfyUI: the client's, and what holds for nodes that come to be later."""
        rules = {
            # Nodes read this: it tells tenants apart, and not who they are.
            TENANT: hashlib.sha256(owner.encode()).hexdigest()[:16],
            "allow": list(self._rules.allow),
            "deny": list(self._rules.deny),
            "unchecked": list(self._rules.unchecked),
        }
        return {**given, KEY: rules}

    async def _is_permitted(self, owner: str, asked: str) -> bool:
        if asked == self._pool:
            return True
        limits = await self._limits.of([f"owner:{owner}"])
        return bool(permitted_pools(limits, [self._pool]))


def _classes(graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for node_id, node in graph.items():
        if isinstance(node, Mapping):
            yield node_id, str(node.get("class_type"))
