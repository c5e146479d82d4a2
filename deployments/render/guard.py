"""Guards of a pool: they refuse renders that its rules do not allow or its memory cannot hold."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from moyin.domain.limits import Limit, PoolRules, filter_permitted_pools
from moyin.domain.renderer import RenderRequest
from moyin.errors import InputNotFound, NodeNotAllowed, OutOfMemory, PoolNotAllowed
from moyin.render.comfyui.bridge.guard import MOYIN_KEY
from moyin.render.comfyui.bridge.tenants import TENANT_KEY
from moyin.render.protocol.graph import NOT_YOUR_FILE, find_input_names
from moyin.system.bounded import BoundedDict

__all__ = ["MemoryGuard", "RenderGuard"]

_REMEMBERED_FAILURES = 1024
# ComfyUI loads the largest model whole and swaps the others, so only that one must fit; latents and
# activations come on top.
_OVERHEAD = 1.2


class OwnerLimits(Protocol):
    """Reads the limits of some subjects."""

    async def list_for(self, subjects: list[str]) -> tuple[Limit, ...]: ...


class RenderGuard:
    """Checks a graph whose values are all known against the pool's rules, just before it renders.

    It needs no answer of a ComfyUI.

    Args:
        rules: rules of the pool.
        limits: read only for renders that another pool has sent here.
    """

    def __init__(self, pool: str, rules: PoolRules, limits: OwnerLimits) -> None:
        self._pool = pool
        self._rules = rules
        self._limits = limits

    async def check(
        self,
        owner: str,
        requested_pool: str,
        graph: Mapping[str, Any],
        own_files: Collection[str],
    ) -> None:
        """Refuse a render that the pool may not run.

        Args:
            requested_pool: name of the pool in the step's spec.
            own_files: names of the input files that come with the graph.

        Raises:
            PoolNotAllowed: the pool does not run renders of this owner.
            NodeNotAllowed: the graph has a node that the pool does not allow.
            InputNotFound: the graph names an input file that does not come with it.
        """
        if not self._rules.serves_tenant(owner) or not await self._is_permitted(
            owner, requested_pool
        ):
            raise PoolNotAllowed(f"render pool {self._pool!r} does not run your jobs")
        for node_id, class_type in _classes(graph):
            if not self._rules.permits_node(class_type):
                raise NodeNotAllowed(
                    f"node {node_id!r}: this render pool allows no nodes of the class "
                    f"{class_type[:64]}"
                )
        for node_id, name in find_input_names(graph):
            if name not in own_files:
                raise InputNotFound(f"node {node_id!r}: {NOT_YOUR_FILE}")

    def extra_data(self, owner: str, client_data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the client's ``extra_data`` with the rules for nodes that are expanded later."""
        rules = {
            # Nodes read this: the digest tells tenants apart without naming them.
            TENANT_KEY: hashlib.sha256(owner.encode()).hexdigest()[:16],
            "allow": list(self._rules.allow),
            "deny": list(self._rules.deny),
            "unchecked": list(self._rules.unchecked),
        }
        return {**client_data, MOYIN_KEY: rules}

    async def _is_permitted(self, owner: str, requested_pool: str) -> bool:
        if requested_pool == self._pool:
            return True
        limits = await self._limits.list_for([f"owner:{owner}"])
        return bool(filter_permitted_pools(limits, [self._pool]))


class MemoryGuard:
    """Redirects renders that do not fit into a card's memory, or did not, to a larger pool.

    Without a larger pool it refuses none: ComfyUI may still manage with the memory that it has.

    Args:
        larger_pool: name of a pool whose actors have a larger share of a card.
    """

    def __init__(self, larger_pool: str | None = None) -> None:
        self._larger_pool = larger_pool
        self._available: int | None = None
        self._failed: BoundedDict[frozenset[str], None] = BoundedDict(_REMEMBERED_FAILURES)

    def set_available(self, memory: int | None) -> None:
        """Set the bytes of a card that an actor may use; None: it has no card."""
        if memory is not None:
            self._available = memory

    def check(self, request: RenderRequest) -> None:
        """Refuse a render that is too large for this pool.

        Raises:
            OutOfMemory: its models are too large, or ran out of memory here before.
        """
        if self._larger_pool is None or not request.models:
            return
        needed = max(request.models.values()) * _OVERHEAD
        is_too_large = self._available is not None and needed > self._available
        if is_too_large or frozenset(request.models) in self._failed:
            raise OutOfMemory(
                f"the render's models need more memory than this pool's actors have; "
                f"it goes to pool {self._larger_pool!r}",
                details={"pool": self._larger_pool},
            )

    def redirect(self, request: RenderRequest, error: OutOfMemory) -> OutOfMemory:
        """Remember that these models ran out of memory; return the error that names a larger pool."""
        if request.models:
            self._failed[frozenset(request.models)] = None
        if self._larger_pool is None:
            return error
        return OutOfMemory(error.message, details={**error.details, "pool": self._larger_pool})


def _classes(graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for node_id, node in graph.items():
        if isinstance(node, Mapping):
            yield node_id, str(node.get("class_type"))
