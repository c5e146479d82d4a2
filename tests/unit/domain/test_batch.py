from __future__ import annotations

from moyin.domain.batch import difference, patched

BASE = {
    "1": {"class_type": "A", "inputs": {"a": 1, "b": ["2", 0]}, "_meta": {"title": "x"}},
    "2": {"class_type": "B"},
}


def test_a_graph_is_its_base_and_what_differs() -> None:
    graph = {**BASE, "1": {**BASE["1"], "inputs": {"a": 1.0, "b": ["2", 0]}}}
    patch = difference(BASE, graph)
    assert repr(patch) == "{'1': {'a': 1.0}}"
    assert patched(BASE, patch) == graph
    assert difference(BASE, BASE) == {}
    assert patched(BASE, {}) == BASE
