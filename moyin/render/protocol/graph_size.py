"""Measures graphs in the API format, and refuses those that are too large or have a circle.

All functions take time that is linear in the size of the graph, and none is recursive over links.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from moyin.domain.graph_bounds import GraphBounds
from moyin.errors import InvalidGraph
from moyin.render.protocol.graph_links import is_link, list_sources

_MAX_SHOWN_ID = 64
# The most nodes of a circle that an error names.
_MAX_SHOWN_NODES = 20


def check_graph_size(
    graphs: Sequence[tuple[str, Mapping[str, Any]]],
    bounds: GraphBounds,
    patches: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Check that the graphs of one job are within the bounds together.

    Malformed nodes count, too; ComfyUI's validation reports them later.

    Args:
        graphs: the graphs, each with its path in the request.
        patches: for a batch, the changed inputs of each child by node id and name.

    Raises:
        GraphTooLarge: a bound is exceeded; the error names the bound.
        InvalidGraph: the links of a graph form a circle; the error names its nodes.
    """
    field = graphs[0][0] if graphs else "workflow"
    node_count = link_count = value_count = byte_count = 0
    for field, graph in graphs:
        node_count += len(graph)
        bounds.check("nodes", node_count, field)
        links, values = _count_links_and_values(graph)
        link_count += links
        value_count += values
        bounds.check("links", link_count, field)
        bounds.check("values", value_count, field)
        byte_count += len(to_json(graph, inf_nan_mode="constants"))
        bounds.check("bytes", byte_count, field)
        _check_chains(graph, bounds, field)
    for patch in patches:
        value_count += sum(_count_values(inputs) for inputs in patch.values())
        byte_count += len(to_json(patch, inf_nan_mode="constants"))
        bounds.check("values", value_count, field)
        bounds.check("bytes", byte_count, field)


def _count_links_and_values(graph: Mapping[str, Any]) -> tuple[int, int]:
    link_count = value_count = 0
    for node in graph.values():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        if not isinstance(inputs, Mapping):
            continue
        value_count += len(inputs)
        for value in inputs.values():
            if isinstance(value, list | dict):
                if is_link(value):
                    link_count += 1
                else:
                    value_count += _count_values(value)
    return link_count, value_count


def _count_values(value: Any) -> int:
    """Return the number of values inside a list or an object, at any depth."""
    count = 0
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Mapping):
            item = item.values()
        elif not isinstance(item, list | tuple):
            continue
        count += len(item)
        pending.extend(inner for inner in item if isinstance(inner, list | dict))
    return count


def _check_chains(graph: Mapping[str, Any], bounds: GraphBounds, field: str) -> None:
    """Check the longest chain of links, by removing nodes whose sources are all removed."""
    sources = {node_id: list_sources(graph, node) for node_id, node in graph.items()}
    targets: dict[str, list[str]] = {}
    for node_id, source_ids in sources.items():
        for source_id in source_ids:
            targets.setdefault(source_id, []).append(node_id)
    missing_counts = {node_id: len(source_ids) for node_id, source_ids in sources.items()}
    depths = dict.fromkeys(graph, 1)
    ready_ids = [node_id for node_id, count in missing_counts.items() if not count]
    done_count = 0
    while ready_ids:
        node_id = ready_ids.pop()
        done_count += 1
        for target_id in targets.get(node_id, ()):
            depths[target_id] = max(depths[target_id], depths[node_id] + 1)
            missing_counts[target_id] -= 1
            if not missing_counts[target_id]:
                ready_ids.append(target_id)
    if done_count < len(graph):
        circle_ids = _find_circle(sources, {n for n, count in missing_counts.items() if count})
        raise _new_circle_error(graph, circle_ids, field)
    if depths:
        deepest_id = max(depths, key=depths.__getitem__)
        node = deepest_id[:_MAX_SHOWN_ID]
        bounds.check("depth", depths[deepest_id], field, node=node)


def _find_circle(sources: Mapping[str, set[str]], blocked_ids: set[str]) -> list[str]:
    """Return the nodes of a circle, each before the nodes that take its outputs.

    Args:
        blocked_ids: the nodes that are in a circle or behind one.
    """
    node_id = next(iter(blocked_ids))
    positions: dict[str, int] = {}
    while node_id not in positions:
        positions[node_id] = len(positions)
        node_id = next(source for source in sources[node_id] if source in blocked_ids)
    return list(positions)[positions[node_id] :][::-1]


def _new_circle_error(
    graph: Mapping[str, Any], circle_ids: Sequence[str], field: str
) -> InvalidGraph:
    node_id = circle_ids[0]
    shown_id = node_id[:_MAX_SHOWN_ID]
    shown_ids = [repr(circle_id[:_MAX_SHOWN_ID]) for circle_id in circle_ids[:_MAX_SHOWN_NODES]]
    if len(circle_ids) > _MAX_SHOWN_NODES:
        shown_ids.append(f"… {len(circle_ids) - _MAX_SHOWN_NODES} more")
    chain = " → ".join([*shown_ids, repr(shown_id)])
    message = f"node {shown_id!r}: the links of the graph must not form a circle: {chain}"
    error = {
        "type": "dependency_cycle",
        "message": "Dependency cycle detected",
        "details": message,
        "extra_info": {"node_id": shown_id},
    }
    node_error = {
        "errors": [{**error, "extra_info": {}}],
        "dependent_outputs": [],
        "class_type": str(graph[node_id].get("class_type"))[:_MAX_SHOWN_ID],
    }
    return InvalidGraph(
        message,
        field=f"{field}.{shown_id}",
        details={"error": error, "node_errors": {shown_id: node_error}},
    )
