"""Contains the guards of a pool, which reject renders because of the pool's rules or its memory."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from moyin.domain.limits import Limit, PoolRules, filter_permitted_pools
from moyin.domain.renderer import RenderRequest
from moyin.errors import InputNotFound, NodeNotAllowed, OutOfMemory, PoolNotAllowed
from moyin.render.comfyui.bridge.guard import MOYIN_KEY
from moyin.render.comfyui.bridge.tenants import TENANT_KEY
from moyin.render.protocol.graph import NOT_YOUR_FILE, find_input_names
from moyin.system.bounded import BoundedDict

_REMEMBERED_FAILURES = 1024
# A render needs this factor of its largest model's size: ComfyUI swaps the other models, and
# latents and activations need additional memory.
_MEMORY_OVERHEAD = 1.2


class LimitReader(Protocol):
    """Reads limits from the database; implemented by `moyin.store.limits.LimitStore`."""

    async def list_for(self, subjects: list[str]) -> tuple[Limit, ...]: ...


class RenderGuard:
    """Checks graphs against the pool's rules just before they render, without a request to ComfyUI.

    The gateway has already checked the graph at submission, but the values that earlier steps of
    the job insert into the graph were unknown then.

    Args:
        limits: reads the tenant's limits; used only if another pool redirected the render to this
            pool.
    """

    def __init__(self, pool: str, rules: PoolRules, limits: LimitReader) -> None:
        self._pool = pool
        self._rules = rules
        self._limits = limits

    async def check_render(
        self, owner: str, requested_pool: str, graph: Mapping[str, Any], own_files: Collection[str]
    ) -> None:
        """Raise an error if the pool must not run the render.

        Args:
            requested_pool: name of the pool in the step's spec.
            own_files: names of the input files that are sent to ComfyUI with the graph.

        Raises:
            PoolNotAllowed: the pool does not run renders of this owner.
            OutOfMemory: the render was redirected to this pool, which does not run renders of its
                owner. The error does not name this pool, because the owner may not see it.
            NodeNotAllowed: the pool does not allow a node of the graph.
            InputNotFound: the graph names an input file that is not in ``own_files``.
        """
        if not self._rules.serves_tenant(owner) or not await self._is_permitted(
            owner, requested_pool
        ):
            if requested_pool != self._pool:
                raise OutOfMemory(
                    "the render needs more memory than a renderer of the pool "
                    f"{requested_pool!r} has"
                )
            raise PoolNotAllowed(
                f"render pool {self._pool!r} does not run jobs of this tenant; use another pool"
            )
        classes = {
            id_: str(n.get("class_type")) for id_, n in graph.items() if isinstance(n, Mapping)
        }
        for node_id, class_type in classes.items():
            if not self._rules.permits_node(class_type):
                raise NodeNotAllowed(
                    f"node {node_id!r}: render pool {self._pool!r} does not allow nodes of the class "
                    f"{class_type[:64]}: remove the node or use another pool"
                )
        for node_id, name in find_input_names(graph):
            if name not in own_files:
                raise InputNotFound(f"node {node_id!r}: {NOT_YOUR_FILE}")

    def add_pool_rules(self, owner: str, extra_data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a prompt's ``extra_data`` together with the pool's rules for node classes.

        ComfyUI applies the rules to nodes that other nodes create while the prompt is executed.
        """
        rules = {
            # A digest instead of the tenant's name, because nodes can read this value.
            TENANT_KEY: hashlib.sha256(owner.encode()).hexdigest()[:16],
            "allow": list(self._rules.allow),
            "deny": list(self._rules.deny),
            "unchecked": list(self._rules.unchecked),
        }
        return {**extra_data, MOYIN_KEY: rules}

    async def _is_permitted(self, owner: str, requested_pool: str) -> bool:
        if requested_pool == self._pool:
            return True
        limits = await self._limits.list_for([f"owner:{owner}"])
        return bool(filter_permitted_pools(limits, [self._pool]))


class MemoryGuard:
    """Redirects renders to a larger pool if they need more GPU memory than this pool's actors have.

    Without a larger pool, the guard rejects no render, because ComfyUI may still succeed.

    Args:
        larger_pool: name of a pool whose actors have a larger share of a GPU.
    """

    def __init__(self, larger_pool: str | None = None) -> None:
        self._larger_pool = larger_pool
        self._available_bytes: int | None = None
        self._failed: BoundedDict[frozenset[str], None] = BoundedDict(_REMEMBERED_FAILURES)

    def set_available_memory(self, memory_bytes: int | None) -> None:
        """Set the GPU memory in bytes that an actor may use; None (no GPU) changes nothing."""
        if memory_bytes is not None:
            self._available_bytes = memory_bytes

    def check_memory(self, request: RenderRequest) -> None:
        """Raise OutOfMemory if the request's models are too large for an actor of this pool.

        This is known from the size of the largest model, or because an earlier render with these
        models ran out of memory.
        """
        if self._larger_pool is None or not request.models:
            return
        required_bytes = max(request.models.values()) * _MEMORY_OVERHEAD
        is_too_large = self._available_bytes is not None and required_bytes > self._available_bytes
        if is_too_large or frozenset(request.models) in self._failed:
            raise OutOfMemory(
                "the render's models need more memory than an actor of its pool has, so the render "
                f"is sent to the larger pool {self._larger_pool!r}",
                details={"pool": self._larger_pool},
            )

    def record_failure(self, request: RenderRequest, error: OutOfMemory) -> OutOfMemory:
        """Record that the models of the request are too large, and return the error to raise.

        The returned error names the larger pool, if there is one.
        """
        if request.models:
            self._failed[frozenset(request.models)] = None
        if self._larger_pool is None:
            return error
        return OutOfMemory(error.message, details={**error.details, "pool": self._larger_pool})
