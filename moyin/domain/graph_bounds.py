"""Defines `GraphBounds`: how large the graphs of a caller may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moyin.domain.limits import Limit
from moyin.errors import GraphTooLarge

# The largest graphs of studios have some 2,000 nodes.
DEFAULT_NODES = 5_000
DEFAULT_LINKS = 25_000
DEFAULT_BYTES = 16 * 1024 * 1024
_TENANT = "owner:"


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphBounds:
    """The largest graph, or graphs of one job together, that may be submitted.

    Attributes:
        nodes: the number of nodes.
        links: the number of inputs that are links to other nodes.
        bytes: the size of the graph's JSON, in bytes.
        values: the number of values in inputs, with those inside lists and objects.
        depth: the number of nodes of the longest chain of links; ComfyUI visits each recursively.
    """

    nodes: int = DEFAULT_NODES
    links: int = DEFAULT_LINKS
    bytes: int = DEFAULT_BYTES
    values: int = 100_000
    depth: int = 400

    def narrow(self, limits: Iterable[Limit]) -> GraphBounds:
        """Return the bounds of a caller.

        A tenant's limits, which only operators set, replace the defaults. Those of keys and users
        can only lower them.
        """
        bounds = self
        for limit in sorted(limits, key=lambda limit: not limit.subject.startswith(_TENANT)):
            is_tenant = limit.subject.startswith(_TENANT)
            changes = {
                name: value if is_tenant else min(value, present)
                for name, value, present in (
                    ("nodes", limit.graph_nodes, bounds.nodes),
                    ("links", limit.graph_links, bounds.links),
                    ("bytes", limit.graph_bytes, bounds.bytes),
                )
                if value is not None
            }
            bounds = replace(bounds, **changes)
        return bounds

    def check(self, bound: str, actual: int, field: str, **details: Any) -> None:
        """Raise `GraphTooLarge` if ``actual`` exceeds a bound.

        Args:
            bound: the name of the bound, such as ``nodes``.
            field: the path of the graph in the request.
            details: further members of the error's details.
        """
        maximum = getattr(self, bound)
        if actual > maximum:
            raise new_too_large_error(bound, maximum, actual, field, details)


def new_too_large_error(
    bound: str, maximum: int, actual: int, field: str, details: Mapping[str, Any]
) -> GraphTooLarge:
    return GraphTooLarge(
        f"{field}: the graph has {actual} {_NOUNS[bound]}; at most {maximum} are allowed",
        field=field,
        details={"bound": bound, "max": maximum, "actual": actual, **details},
    )


_NOUNS: Mapping[str, str] = {
    "nodes": "nodes",
    "links": "links",
    "bytes": "bytes",
    "values": "values in inputs",
    "depth": "nodes in a chain of links",
}
