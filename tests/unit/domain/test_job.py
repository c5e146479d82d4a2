from __future__ import annotations

from typing import Any

from moyin.domain.job import apply_batch_patch, make_batch_patch

BASE: dict[str, Any] = {
    "1": {"class_type": "A", "inputs": {"a": 1, "b": ["2", 0]}, "_meta": {"title": "x"}},
    "2": {"class_type": "B"},
}


def test_patch_restores_graph_from_base() -> None:
    graph = {**BASE, "1": {**BASE["1"], "inputs": {"a": 1.0, "b": ["2", 0]}}}
    patch = make_batch_patch(BASE, graph)
    assert repr(patch) == "{'1': {'a': 1.0}}"
    assert apply_batch_patch(BASE, patch) == graph
    assert make_batch_patch(BASE, BASE) == {}
    assert apply_batch_patch(BASE, {}) == BASE
