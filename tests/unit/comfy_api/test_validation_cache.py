from __future__ import annotations

import math
from typing import Any

import pytest

from moyin.comfy_api.validation_cache import ValidationCache

BODY = {"outputs": ["2"], "node_errors": {}}
FREE = {
    "1": {
        "seed": ["INT", 0, 2**64 - 1],
        "cfg": ["FLOAT", 0.0, 100.0],
        "text": ["STRING", None, None],
        "on": ["BOOLEAN", None, None],
    }
}


def graph(**changed: Any) -> dict[str, Any]:
    inputs = {"seed": 1, "cfg": 7.5, "text": "a", "on": True, "name": "a.ckpt", "strength": 1.0}
    return {
        "1": {"class_type": "K", "inputs": inputs | changed},
        "2": {"class_type": "S", "inputs": {"images": ["1", 0], "filename_prefix": "m"}},
    }


@pytest.fixture
def verdicts() -> ValidationCache:
    verdicts = ValidationCache()
    verdicts.keep("p", graph(), None, BODY, FREE)
    return verdicts


@pytest.mark.parametrize(
    "changed",
    [{}, {"seed": 2**64 - 1}, {"seed": 0}, {"cfg": 1}, {"text": "ü" * 999}, {"on": False}],
)
def test_a_graph_that_differs_in_nothing_that_is_checked(
    verdicts: ValidationCache, changed: dict[str, Any]
) -> None:
    assert verdicts.find("p", graph(**changed), None) == BODY


@pytest.mark.parametrize(
    "changed",
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
def test_a_graph_that_differs_in_something_else(
    verdicts: ValidationCache, changed: dict[str, Any]
) -> None:
    assert verdicts.find("p", graph(**changed), None) is None


def test_it_is_of_one_pool_and_of_what_shall_be_executed(verdicts: ValidationCache) -> None:
    assert verdicts.find("q", graph(), None) is None
    assert verdicts.find("p", graph(), ["2"]) is None
    verdicts.keep("p", graph(), ["2"], BODY, FREE)
    assert verdicts.find("p", graph(seed=5), ["2"]) == BODY


def test_links_classes_and_names_count(verdicts: ValidationCache) -> None:
    for path, value in (("class_type", "L"), ("inputs", {}), ("inputs", None)):
        other = graph()
        other["1"][path] = value
        assert verdicts.find("p", other, None) is None
    renamed = graph()
    renamed["3"] = renamed.pop("1")
    assert verdicts.find("p", renamed, None) is None
    titled = graph(seed=9)
    titled["1"]["_meta"] = {"title": "mine"}
    assert verdicts.find("p", titled, None) == BODY


def test_several_values_that_are_checked_are_remembered_side_by_side(
    verdicts: ValidationCache,
) -> None:
    verdicts.keep("p", graph(name="b.ckpt"), None, BODY, FREE)
    for name in ("a.ckpt", "b.ckpt"):
        assert verdicts.find("p", graph(name=name, seed=4), None) == BODY


def test_a_word_is_not_taken_for_ever() -> None:
    verdicts = ValidationCache(seconds=0)
    verdicts.keep("p", graph(), None, BODY, FREE)
    assert verdicts.find("p", graph(), None) is None


def test_a_half_good_graph_is_asked_about_again() -> None:
    verdicts = ValidationCache()
    verdicts.keep("p", graph(), None, {"outputs": ["2"], "node_errors": {"3": {}}}, FREE)
    assert verdicts.find("p", graph(), None) is None


@pytest.mark.parametrize("bad", [{"1": 1}, {"1": {}}, {"1": {"class_type": "K"}}])
def test_what_is_no_graph_is_left_to_comfyui(bad: dict[str, Any]) -> None:
    verdicts = ValidationCache()
    verdicts.keep("p", bad, None, BODY, {})
    assert verdicts.find("p", bad, None) is None
