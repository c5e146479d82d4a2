"""Decides which pools, nodes and files a caller's graphs may use."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.protocol.node_info import permitted_nodes
from moyin.domain.identity import Identity
from moyin.domain.limits import PoolRules, filter_permitted_pools
from moyin.errors import InputNotFound, InvalidRequest, NodeNotAllowed
from moyin.render.comfyui.bridge.input_rules import PREFIX, Refusal, Rule, find_refusals
from moyin.render.protocol.graph import NOT_YOUR_FILE, RefusedInput, make_refusal_body

__all__ = ["GraphAdmission"]

_NO_RULES: Mapping[str, Rule] = {}
# A graph can be wrong in thousands of places; a client needs only some of them.
_MAX_REPORTED = 1_000


class GraphAdmission:
    """Implements `moyin.jobs.ports.GraphGuard` with the node information and rules of the pools."""

    def __init__(self, node_info: NodeInfoCache) -> None:
        self._node_info = node_info

    async def list_pools(self, caller: Identity) -> Sequence[str]:
        """See `moyin.jobs.ports.GraphGuard`."""
        permitted = filter_permitted_pools(caller.limits, self._node_info.pools)
        return [
            p for p in permitted if (await self._node_info.rules(p)).serves_tenant(caller.owner)
        ]

    async def choose_pool(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        """See `moyin.jobs.ports.GraphGuard`."""
        pools = await self.list_pools(caller)
        if not pools:
            raise InvalidRequest(
                "no render pool is open to your jobs: ask an operator", field="pool"
            )
        return await self._node_info.pool_for(graph, pools)

    async def nodes(self, caller: Identity) -> Mapping[str, Any]:
        """Return the ``/object_info`` of the nodes that the caller may use; do not modify it.

        Raises:
            ServiceUnavailable: no pool has reported its nodes yet.
        """
        pools = await self.list_pools(caller)
        nodes: Mapping[str, Any] = await self._node_info.nodes(pools) if pools else {}
        bounds = [(limit.allowed_nodes, limit.denied_nodes) for limit in caller.limits]
        if all(bound == (None, None) for bound in bounds):
            return nodes
        return permitted_nodes(nodes, lambda name: _permits(caller, name))

    async def check_graph(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own: Collection[str]
    ) -> bool:
        """See `moyin.jobs.ports.GraphGuard`."""
        rules = await self._node_info.rules(pool)
        denied = list(islice(_denied_nodes(caller, rules, graph), _MAX_REPORTED))
        if denied:
            first = denied[0]
            raise NodeNotAllowed(
                f"node {first.node!r}: {first.reason}",
                field=f"{first.node}.class_type",
                details=make_refusal_body(denied),
            )
        classes = {
            str(node.get("class_type")) for node in graph.values() if isinstance(node, Mapping)
        }
        inputs = await self._node_info.input_rules(pool, classes)
        known = inputs or {}
        refused_inputs = (
            RefusedInput(
                refusal.node, refusal.class_type, refusal.input, _reason_for_input(refusal)
            )
            for refusal in find_refusals(
                graph, lambda name: known.get(name, _NO_RULES), own.__contains__
            )
            if rules.checks_input(refusal.class_type, refusal.input)
        )
        refused = list(islice(refused_inputs, _MAX_REPORTED))
        if refused:
            first = refused[0]
            raise InputNotFound(
                f"node {first.node!r} ({first.class_type}): {first.input}: {first.reason}",
                field=f"{first.node}.inputs.{first.input}",
                details=make_refusal_body(refused),
            )
        return inputs is not None


def _denied_nodes(
    caller: Identity, rules: PoolRules, graph: Mapping[str, Any]
) -> Iterator[RefusedInput]:
    # Cached by class, because a graph of thousands of nodes has few classes.
    reasons: dict[str, str | None] = {}
    for node_id, node in graph.items():
        class_type = str(node.get("class_type")) if isinstance(node, Mapping) else ""
        if class_type not in reasons:
            reasons[class_type] = _reason_for_class(caller, rules, class_type)
        reason = reasons[class_type]
        if reason is not None:
            yield RefusedInput(node_id, class_type, "", reason)


def _reason_for_class(caller: Identity, rules: PoolRules, class_type: str) -> str | None:
    """Return why graphs may not contain nodes of the class; None if they may."""
    if not rules.permits_node(class_type):
        return f"this render pool does not allow nodes of class {class_type[:64]}"
    if not _permits(caller, class_type):
        return f"your limits do not allow nodes of class {class_type[:64]}"
    return None


def _permits(caller: Identity, class_type: str) -> bool:
    return all(limit.permits_node(class_type) for limit in caller.limits)


def _reason_for_input(refusal: Refusal) -> str:
    if refusal.kind == PREFIX:
        return "the name of an output file must stay within the node's own folder"
    return NOT_YOUR_FILE
