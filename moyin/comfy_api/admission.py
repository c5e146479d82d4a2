"""`Admission`: which pools, nodes and files a caller's graphs may have, by what the pools say."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.protocol.node_info import permitted_nodes
from moyin.domain.identity import Identity
from moyin.domain.limits import permitted_pools
from moyin.domain.pools import PoolRules
from moyin.errors import InputNotFound, InvalidRequest, NodeNotAllowed
from moyin.render.comfyui.bridge.names import PREFIX, Refusal, Rule, refusals
from moyin.render.protocol.refusals import NOT_YOURS, Refused, refused_body

__all__ = ["Admission"]

_NO_RULES: Mapping[str, Rule] = {}
# A graph may be wrong in thousands of places; some are enough to mend it.
_MOST_TOLD = 1_000


class Admission:
    """`moyin.jobs.ports.GraphGuard` on what the pools say of themselves."""

    def __init__(self, facts: NodeInfoCache) -> None:
        self._facts = facts

    async def pools(self, caller: Identity) -> Sequence[str]:
        """See `moyin.jobs.ports.GraphGuard`."""
        permitted = permitted_pools(caller.limits, self._facts.pools)
        return [p for p in permitted if (await self._facts.rules(p)).serves_tenant(caller.owner)]

    async def pool_for(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        """See `moyin.jobs.ports.GraphGuard`."""
        pools = await self.pools(caller)
        if not pools:
            raise InvalidRequest("no render pool runs your jobs; ask an operator", field="pool")
        return await self._facts.pool_for(graph, pools)

    async def nodes(self, caller: Identity) -> Mapping[str, Any]:
        """Return ``/object_info`` of what the caller's graphs may have. Leave it as it is.

        Raises:
            ServiceUnavailable: no pool ever said what it has.
        """
        pools = await self.pools(caller)
        nodes: Mapping[str, Any] = await self._facts.nodes(pools) if pools else {}
        bounds = [(limit.allowed_nodes, limit.denied_nodes) for limit in caller.limits]
        if all(bound == (None, None) for bound in bounds):
            return nodes
        return permitted_nodes(nodes, lambda name: _permits(caller, name))

    async def check(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own: Collection[str]
    ) -> bool:
        """See `moyin.jobs.ports.GraphGuard`."""
        rules = await self._facts.rules(pool)
        denied = list(islice(_denied(caller, rules, graph), _MOST_TOLD))
        if denied:
            first = denied[0]
            raise NodeNotAllowed(
                f"node {first.node!r}: {first.why}",
                field=f"{first.node}.class_type",
                details=refused_body(denied),
            )
        classes = {
            str(node.get("class_type")) for node in graph.values() if isinstance(node, Mapping)
        }
        inputs = await self._facts.inputs(pool, classes)
        known = inputs or {}
        found = (
            Refused(one.node, one.class_type, one.input, _why(one))
            for one in refusals(graph, lambda name: known.get(name, _NO_RULES), own.__contains__)
            if rules.checks_input(one.class_type, one.input)
        )
        refused = list(islice(found, _MOST_TOLD))
        if refused:
            first = refused[0]
            raise InputNotFound(
                f"node {first.node!r} ({first.class_type}): {first.input}: {first.why}",
                field=f"{first.node}.inputs.{first.input}",
                details=refused_body(refused),
            )
        return inputs is not None


def _denied(caller: Identity, rules: PoolRules, graph: Mapping[str, Any]) -> Iterator[Refused]:
    # A graph of thousands of nodes has few classes.
    reasons: dict[str, str | None] = {}
    for node_id, node in graph.items():
        class_type = str(node.get("class_type")) if isinstance(node, Mapping) else ""
        if class_type not in reasons:
            reasons[class_type] = _reason(caller, rules, class_type)
        reason = reasons[class_type]
        if reason is not None:
            yield Refused(node_id, class_type, "", reason)


def _reason(caller: Identity, rules: PoolRules, class_type: str) -> str | None:
    """Why graphs may not have nodes of the class; None: they may."""
    if not rules.permits_node(class_type):
        return f"this render pool allows no nodes of the class {class_type[:64]}"
    if not _permits(caller, class_type):
        return f"your limits allow no nodes of the class {class_type[:64]}"
    return None


def _permits(caller: Identity, class_type: str) -> bool:
    return all(limit.permits_node(class_type) for limit in caller.limits)


def _why(refusal: Refusal) -> str:
    if refusal.kind == PREFIX:
        return "what a node writes must have a name within its own folder"
    return NOT_YOURS
