from __future__ import annotations

import copy
from typing import Any

from moyin.comfy_api.protocol.node_info import (
    union_of_lists,
    union_of_nodes,
    union_of_objects,
    with_uploads,
    without_paths,
)


def loader(*files: str) -> dict[str, Any]:
    return {"input": {"required": {"ckpt": [list(files), {"tooltip": "x"}], "n": ["INT", {}]}}}


def combo(*files: str) -> dict[str, Any]:
    return {"input": {"required": {"m": ["COMBO", {"options": list(files)}]}, "hidden": "x"}}


def test_a_node_of_several_pools_has_the_choices_of_all() -> None:
    one = {"Load": loader("a", "b"), "New": combo("x"), "Only": {"input": {}}}
    two = {"Load": loader("b", "c"), "New": combo("y"), "Other": {}}
    before = copy.deepcopy((one, two))
    assert union_of_nodes([one, two]) == {
        "Load": loader("a", "b", "c"),
        "New": combo("x", "y"),
        "Only": {"input": {}},
        "Other": {},
    }
    assert (one, two) == before
    assert union_of_nodes([]) == {}


def test_nodes_of_another_kind_under_the_same_name_are_left_alone() -> None:
    one, two = {"Load": loader("a")}, {"Load": {"input": {"required": {"ckpt": ["STRING", {}]}}}}
    assert union_of_nodes([one, two]) == one
    assert union_of_nodes([two, one]) == two


def test_lists_and_objects_have_everything_once() -> None:
    assert union_of_lists([["a", "b"], ["b", "c"]]) == ["a", "b", "c"]
    assert union_of_lists([[{"name": "a", "size": 1}], [{"name": "a", "size": 2}]]) == [
        {"name": "a", "size": 1}
    ]
    assert union_of_objects([{"a": 1}, {"a": 2, "b": 3}]) == {"a": 1, "b": 3}


def test_an_upload_button_stands_beside_ones_own_files() -> None:
    nodes = {
        "LoadImage": {"input": {"required": {"image": [["theirs"], {"image_upload": True}]}}},
        "LoadVideo": {
            "input": {"required": {"file": ["COMBO", {"options": [], "video_upload": True}]}}
        },
        "Output": {
            "input": {"required": {"image": ["COMBO", {"image_upload": True, "remote": {}}]}}
        },
        "Load": loader("a"),
    }
    before = copy.deepcopy(nodes)
    offered = with_uploads(nodes, ["mine.png"])
    assert offered["LoadImage"]["input"]["required"]["image"][0] == ["mine.png"]
    assert offered["LoadVideo"]["input"]["required"]["file"][1]["options"] == ["mine.png"]
    assert (offered["Output"], offered["Load"]) == (nodes["Output"], nodes["Load"])
    assert nodes == before


def test_nobody_learns_where_models_lie() -> None:
    folders = [{"name": "vae", "folders": ["/mnt/secret/vae"]}]
    assert without_paths(folders) == [{"name": "vae", "folders": ["vae"]}]
