from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.artifact import Artifact
from moyin.render.protocol.graph import artifact_ids, input_name, is_input_name, with_inputs

ID = f"art_{'1' * 32}"
OTHER = f"art_{'2' * 32}"


def artifact(name: str) -> Artifact:
    return Artifact(id=ID, name=name, media_type="image/png", size=1, sha256="a" * 64)


def test_references_are_found_and_replaced_in_inputs_only() -> None:
    graph = {
        "1": {
            "class_type": "LoadImage",
            "inputs": {"image": f"artifact:{ID}", "list": [f"artifact:{OTHER}", {"a": 1}]},
            "_meta": {"title": f"artifact:{'x'}"},
        },
        "2": {"class_type": "Text", "inputs": {"text": f"about artifact:{ID}", "link": ["1", 0]}},
        "3": "not a node",
    }
    assert artifact_ids(graph) == {ID, OTHER}
    replaced = with_inputs(graph, {ID: "one.png", OTHER: "two.png"})
    assert replaced["1"]["inputs"] == {"image": "one.png", "list": ["two.png", {"a": 1}]}
    assert replaced["2"] == graph["2"]
    assert replaced["3"] == "not a node"
    assert graph["1"]["inputs"]["image"] == f"artifact:{ID}", "the given graph is untouched"  # type: ignore[index]


def test_what_the_api_v2_puts_in_the_place_of_a_file_is_a_reference() -> None:
    asset = {"__type": "core/ASSET", "info": {"id": ID, "file_path": "cat.png"}}
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": asset, "more": [asset]}}}
    assert artifact_ids(graph) == {ID}
    named = with_inputs(graph, {ID: "one.png"})
    assert named["1"]["inputs"] == {"image": "one.png", "more": ["one.png"]}


@pytest.mark.parametrize("info", [None, "x", {}, {"id": ""}])
def test_a_malformed_reference_is_one_that_nothing_answers_to(info: object) -> None:
    graph = {"1": {"class_type": "A", "inputs": {"image": {"__type": "core/ASSET", "info": info}}}}
    assert artifact_ids(graph) == {""}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("cat.PNG", ".png"),
        ("cat", ""),
        ("cat.tar.gz", ".gz"),
        ("../../etc/passwd", ""),
        ("a.p\nng", ""),
        ("a.averylongsuffix", ""),
        (".png", ""),
    ],
)
def test_input_names_hold_nothing_of_the_uploaders_but_a_plain_suffix(
    name: str, suffix: str
) -> None:
    assert input_name(artifact(name)) == f"moyin/{'a' * 64}{suffix}"


@given(st.text())
def test_every_input_name_is_one_and_stays_in_its_folder(name: str) -> None:
    made = input_name(artifact(name))
    assert is_input_name(made)
    assert ".." not in made


@pytest.mark.parametrize(
    "name", ["moyin/x.png", f"{'a' * 64}.png", f"moyin/{'a' * 64}/..", f"moyin/{'a' * 64}\n"]
)
def test_other_names_are_not(name: str) -> None:
    assert not is_input_name(name)
