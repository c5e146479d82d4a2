"""Tests how limits change the bounds of graphs."""

from __future__ import annotations

import pytest

from moyin.domain.graph_bounds import GraphBounds
from moyin.domain.limits import Limit
from moyin.errors import GraphTooLarge

DEFAULTS = GraphBounds(nodes=100, links=200, bytes=3_000)


@pytest.mark.parametrize(
    ("limits", "expected_nodes"),
    [
        ((), 100),
        ((Limit(subject="owner:ann", graph_nodes=500),), 500),
        ((Limit(subject="owner:ann", graph_nodes=5),), 5),
        ((Limit(subject="key:k", graph_nodes=500),), 100),
        ((Limit(subject="user:u", graph_nodes=5),), 5),
        (
            (Limit(subject="key:k", graph_nodes=300), Limit(subject="owner:a", graph_nodes=500)),
            300,
        ),
    ],
)
def test_a_tenants_limit_replaces_the_default_and_a_keys_only_lowers_it(
    limits: tuple[Limit, ...], expected_nodes: int
) -> None:
    bounds = DEFAULTS.narrow(limits)
    assert (bounds.nodes, bounds.links, bounds.bytes) == (expected_nodes, 200, 3_000)


def test_an_error_names_the_bound_the_size_and_the_field() -> None:
    DEFAULTS.check("bytes", 3_000, "prompt")
    with pytest.raises(GraphTooLarge, match="prompt: the graph has 3001 bytes") as exc_info:
        DEFAULTS.check("bytes", 3_001, "prompt")
    assert exc_info.value.details == {"bound": "bytes", "max": 3_000, "actual": 3_001}
