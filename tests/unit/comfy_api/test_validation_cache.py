from __future__ import annotations

import math
from typing import Any

import pytest

from moyin.comfy_api.validation_cache import ValidationCache

BODY = {"outputs": ["2"], "node_errors": {}}
UNCHECKED: dict[str, dict[str, list[Any]]] = {
    "1": {
        "seed": ["INT", 0, 2**64 - 1],
        "cfg": ["FLOAT", 0.0, 100.0],
        "text": ["STRING", None, None],
        "on": ["BOOLEAN", None, None],
    }
}


def make_graph(**changed_inputs: Any) -> dict[str, Any]:
    inputs = {"seed": 1, "cfg": 7.5, "text": "a", "on": True, "name": "a.ckpt", "strength": 1.0}
    return {
        "1": {"class_type": "K", "inputs": inputs | changed_inputs},
        "2": {"class_type": "S", "inputs": {"images": ["1", 0], "filename_prefix": "m"}},
    }


@pytest.fixture
def cache() -> ValidationCache:
    cache = ValidationCache()
    cache.store("p", make_graph(), None, BODY, UNCHECKED)
    return cache


@pytest.mark.parametrize(
    "changed_inputs",
    [{}, {"seed": 2**64 - 1}, {"seed": 0}, {"cfg": 1}, {"text": "ü" * 999}, {"on": False}],
)
def test_a_graph_that_differs_only_in_unchecked_inputs_is_cached(
    cache: ValidationCache, changed_inputs: dict[str, Any]
) -> None:
    assert cache.find("p", make_graph(**changed_inputs), None) == BODY


@pytest.mark.parametrize(
    "changed_inputs",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"seed": True},
        {"seed": 1.5},
        {"seed": "1"},
        {"seed": ["2", 0]},
        {"seed": None},
        {"cfg": 100.1},
        {"cfg": math.nan},
        {"cfg": math.inf},
        {"text": 1},
        {"text": ["2", 0]},
        {"text": {"__value__": []}},
        {"on": 1},
        {"name": "b.ckpt"},
        {"strength": 2.0},
        {"strength": 1},
        {"strength": math.nan},
        {"another": 1},
        {"seed": "\ud800"},
        {"name": "\ud800"},
        {"seed": ["\ud800"]},
    ],
)
def test_a_graph_that_differs_in_a_checked_value_is_not_cached(
    cache: ValidationCache, changed_inputs: dict[str, Any]
) -> None:
    assert cache.find("p", make_graph(**changed_inputs), None) is None


def test_results_are_cached_per_pool_and_target_nodes(cache: ValidationCache) -> None:
    assert cache.find("q", make_graph(), None) is None
    assert cache.find("p", make_graph(), ["2"]) is None
    cache.store("p", make_graph(), ["2"], BODY, UNCHECKED)
    assert cache.find("p", make_graph(seed=5), ["2"]) == BODY


def test_links_classes_and_node_ids_are_part_of_the_shape(cache: ValidationCache) -> None:
    for member, value in (("class_type", "L"), ("inputs", {}), ("inputs", None)):
        other_graph = make_graph()
        other_graph["1"][member] = value
        assert cache.find("p", other_graph, None) is None
    renamed_graph = make_graph()
    renamed_graph["3"] = renamed_graph.pop("1")
    assert cache.find("p", renamed_graph, None) is None
    titled_graph = make_graph(seed=9)
    titled_graph["1"]["_meta"] = {"title": "mine"}
    assert cache.find("p", titled_graph, None) == BODY


def test_several_checked_values_are_cached_at_once(
    cache: ValidationCache,
) -> None:
    cache.store("p", make_graph(name="b.ckpt"), None, BODY, UNCHECKED)
    for name in ("a.ckpt", "b.ckpt"):
        assert cache.find("p", make_graph(name=name, seed=4), None) == BODY


def test_results_expire() -> None:
    cache = ValidationCache(ttl_seconds=0)
    cache.store("p", make_graph(), None, BODY, UNCHECKED)
    assert cache.find("p", make_graph(), None) is None


def test_a_result_with_node_errors_is_not_cached() -> None:
    cache = ValidationCache()
    cache.store("p", make_graph(), None, {"outputs": ["2"], "node_errors": {"3": {}}}, UNCHECKED)
    assert cache.find("p", make_graph(), None) is None


@pytest.mark.parametrize("malformed_graph", [{"1": 1}, {"1": {}}, {"1": {"class_type": "K"}}])
def test_a_malformed_graph_is_not_cached(malformed_graph: dict[str, Any]) -> None:
    cache = ValidationCache()
    cache.store("p", malformed_graph, None, BODY, {})
    assert cache.find("p", malformed_graph, None) is None
