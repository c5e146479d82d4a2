"""Checks which pools, nodes and files the graphs of a caller may use."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from moyin.comfy_api.caller_pools import CallerPools
from moyin.comfy_api.node_info import InputRules, NodeInfoCache
from moyin.comfy_api.protocol.node_info import filter_nodes
from moyin.domain.graph_bounds import GraphBounds
from moyin.domain.identity import Identity
from moyin.domain.limits import PoolRules, filter_permitted_pools
from moyin.errors import InputNotFound, InvalidGraph, NodeNotAllowed, ServiceUnavailable
from moyin.render.comfyui.bridge.input_rules import PREFIX, Refusal, Rule, find_refusals
from moyin.render.protocol.graph import NOT_YOUR_FILE, RefusedInput, make_refusal_body
from moyin.render.protocol.graph_size import check_graph_size
from moyin.system.heavy_work import run_aside

_NO_RULES: Mapping[str, Rule] = {}
# The most errors in a response. A graph can have thousands of errors, and a client needs only some.
_MAX_REPORTED = 1_000
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


class GraphAdmission:
    """Checks graphs against the nodes and rules of the pools and the limits of the caller.

    Args:
        bounds: the largest graphs of callers without limits of their own.
    """

    def __init__(self, node_info: NodeInfoCache, bounds: GraphBounds | None = None) -> None:
        self._node_info = node_info
        self._bounds = bounds or GraphBounds()

    def get_bounds(self, caller: Identity) -> GraphBounds:
        """Return how large the caller's graphs may be."""
        return self._bounds.narrow(caller.limits)

    async def check_size(
        self,
        caller: Identity,
        graphs: Sequence[tuple[str, Mapping[str, Any]]],
        patches: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Check that the graphs of one job are within the caller's bounds together.

        Args:
            graphs: the graphs, each with its path in the request.
            patches: for a batch, the changed inputs of each child.

        Raises:
            GraphTooLarge: a bound is exceeded; the error names the bound.
            InvalidGraph: the links of a graph form a circle; the error names its nodes.
        """
        await run_aside(check_graph_size, graphs, self.get_bounds(caller), patches)

    async def find_pools(self, caller: Identity) -> CallerPools:
        """Return the pools that run the caller's jobs.

        A pool that has not reported its rules yet is left out, because it may be kept for others.
        """
        permitted_pools = filter_permitted_pools(caller.limits, self._node_info.pools)
        rules = await asyncio.gather(*map(self._find_rules, permitted_pools))
        return CallerPools(
            names=tuple(
                pool
                for pool, pool_rules in zip(permitted_pools, rules, strict=True)
                if pool_rules is not None and pool_rules.serves_tenant(caller.owner)
            ),
            are_all_known=None not in rules,
            node_info=self._node_info,
        )

    async def choose_pool(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        """Return the best of the caller's pools for the graph; see `CallerPools.choose`."""
        return await (await self.find_pools(caller)).choose(graph)

    async def list_nodes(self, caller: Identity, pool: str | None = None) -> Mapping[str, Any]:
        """Return the ``/object_info`` of the nodes that the caller may use. Do not modify it.

        Args:
            pool: only the nodes of this pool; None for all of the caller's pools.

        Raises:
            InvalidRequest: there is no such pool, or it does not run the caller's jobs.
            ServiceUnavailable: no pool has reported its nodes yet.
        """
        pools = (await self.find_pools(caller)).select(pool)
        nodes = await pools.fetch_nodes()
        node_limits = [(limit.allowed_nodes, limit.denied_nodes) for limit in caller.limits]
        if all(node_limit == (None, None) for node_limit in node_limits):
            return nodes
        return filter_nodes(nodes, lambda name: _is_permitted(caller, name))

    async def check_graph(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own_names: Collection[str]
    ) -> bool:
        """Check a graph's nodes and files; return False if they can't be checked yet.

        They can't be checked while the pool has not reported its nodes.

        Args:
            own_names: the names of the caller's files in the graph.

        Raises:
            NodeNotAllowed: the pool or the caller's limits do not allow a node.
            InputNotFound: an input names a file that the caller does not have.
            InvalidGraph: an input that is not prose has control characters.
            ServiceUnavailable: the pool has not reported its rules yet.
        """
        rules = await self._node_info.fetch_rules(pool)
        denied_nodes = await run_aside(_list_denied_nodes, caller, rules, graph)
        if denied_nodes:
            first_refusal = denied_nodes[0]
            raise NodeNotAllowed(
                f"node {first_refusal.node!r}: {first_refusal.reason}",
                field=f"{first_refusal.node}.class_type",
                details=make_refusal_body(denied_nodes),
            )
        class_types = {
            str(node.get("class_type")) for node in graph.values() if isinstance(node, Mapping)
        }
        input_rules = await self._node_info.fetch_input_rules(pool, class_types)
        reported_inputs = await run_aside(
            _list_refused_inputs, rules, input_rules or {}, graph, own_names
        )
        if reported_inputs:
            missing_files = [refusal for refusal, is_file in reported_inputs if is_file]
            first_refusal = missing_files[0] if missing_files else reported_inputs[0][0]
            error_class = InputNotFound if missing_files else InvalidGraph
            raise error_class(
                f"node {first_refusal.node!r} ({first_refusal.class_type}): {first_refusal.input}: "
                f"{first_refusal.reason}",
                field=f"{first_refusal.node}.inputs.{first_refusal.input}",
                details=make_refusal_body(refusal for refusal, _ in reported_inputs),
            )
        return input_rules is not None

    async def _find_rules(self, pool: str) -> PoolRules | None:
        """Return the operator's rules for a pool, or None if it has not reported them yet."""
        try:
            return await self._node_info.fetch_rules(pool)
        except ServiceUnavailable:
            return None


def _list_refused_inputs(
    rules: PoolRules,
    input_rules: InputRules,
    graph: Mapping[str, Any],
    own_names: Collection[str],
) -> list[tuple[RefusedInput, bool]]:
    """Return the refused inputs, each with False if control characters are the reason."""
    refused_inputs = (
        _describe_refusal(refusal, graph)
        for refusal in find_refusals(
            graph, lambda name: input_rules.get(name, _NO_RULES), own_names.__contains__
        )
        if rules.checks_input(refusal.class_type, refusal.input)
    )
    return list(islice(refused_inputs, _MAX_REPORTED))


def _list_denied_nodes(
    caller: Identity, rules: PoolRules, graph: Mapping[str, Any]
) -> list[RefusedInput]:
    return list(islice(_find_denied_nodes(caller, rules, graph), _MAX_REPORTED))


def _find_denied_nodes(
    caller: Identity, rules: PoolRules, graph: Mapping[str, Any]
) -> Iterator[RefusedInput]:
    """Yield the nodes of the graph that the pool or the caller's limits do not allow."""
    # Results are cached by class, because a graph with thousands of nodes has few classes.
    reasons: dict[str, str | None] = {}
    for node_id, node in graph.items():
        class_type = str(node.get("class_type")) if isinstance(node, Mapping) else ""
        if class_type not in reasons:
            reasons[class_type] = _explain_denial(caller, rules, class_type)
        reason = reasons[class_type]
        if reason is not None:
            yield RefusedInput(node_id, class_type, "", reason)


def _explain_denial(caller: Identity, rules: PoolRules, class_type: str) -> str | None:
    """Return the reason why graphs may not contain the node class, or None if they may."""
    if not rules.permits_node(class_type):
        return f"this render pool does not allow nodes of class {class_type[:64]}"
    if not _is_permitted(caller, class_type):
        return f"your limits do not allow nodes of class {class_type[:64]}"
    return None


def _is_permitted(caller: Identity, class_type: str) -> bool:
    return all(limit.permits_node(class_type) for limit in caller.limits)


def _describe_refusal(refusal: Refusal, graph: Mapping[str, Any]) -> tuple[RefusedInput, bool]:
    character = _find_control_character(graph[refusal.node]["inputs"][refusal.input])
    if character is not None:
        reason = (
            f"the text has the control character U+{ord(character):04X}, which only texts of several "
            "lines may have; remove it"
        )
    elif refusal.kind == PREFIX:
        reason = "the name of an output file must stay within the node's own folder"
    else:
        reason = NOT_YOUR_FILE
    refused_input = RefusedInput(refusal.node, refusal.class_type, refusal.input, reason)
    return refused_input, character is None


def _find_control_character(value: Any) -> str | None:
    """Return a control character in the texts of an input, or None if there is none."""
    pending_values = [value]
    while pending_values:
        item = pending_values.pop()
        if isinstance(item, str):
            if (match := _CONTROL_CHARACTER.search(item)) is not None:
                return match[0]
        elif isinstance(item, Mapping):
            pending_values.extend(item.values())
        elif isinstance(item, list | tuple):
            pending_values.extend(item)
    return None
