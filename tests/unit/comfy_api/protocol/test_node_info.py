from __future__ import annotations

import copy
from typing import Any

import pytest

from moyin.comfy_api.protocol.node_info import (
    build_inventory,
    merge_lists,
    merge_nodes,
    merge_objects,
    remove_folder_paths,
    set_upload_choices,
    supports_graph,
)


def make_loader_node(*files: str) -> dict[str, Any]:
    return {"input": {"required": {"ckpt": [list(files), {"tooltip": "x"}], "n": ["INT", {}]}}}


def make_combo_node(*files: str) -> dict[str, Any]:
    return {"input": {"required": {"m": ["COMBO", {"options": list(files)}]}, "hidden": "x"}}


def test_a_node_of_several_pools_has_the_choices_of_all() -> None:
    first_nodes = {
        "Load": make_loader_node("a", "b"),
        "New": make_combo_node("x"),
        "Only": {"input": {}},
    }
    second_nodes = {"Load": make_loader_node("b", "c"), "New": make_combo_node("y"), "Other": {}}
    nodes_before = copy.deepcopy((first_nodes, second_nodes))
    assert merge_nodes([first_nodes, second_nodes]) == {
        "Load": make_loader_node("a", "b", "c"),
        "New": make_combo_node("x", "y"),
        "Only": {"input": {}},
        "Other": {},
    }
    assert (first_nodes, second_nodes) == nodes_before
    assert merge_nodes([]) == {}


def test_the_first_definition_counts_when_an_input_differs_in_kind() -> None:
    first_nodes, second_nodes = (
        {"Load": make_loader_node("a")},
        {"Load": {"input": {"required": {"ckpt": ["STRING", {}]}}}},
    )
    assert merge_nodes([first_nodes, second_nodes]) == first_nodes
    assert merge_nodes([second_nodes, first_nodes]) == second_nodes


def test_lists_and_objects_are_merged_without_duplicates() -> None:
    assert merge_lists([["a", "b"], ["b", "c"]]) == ["a", "b", "c"]
    assert merge_lists([[{"name": "a", "size": 1}], [{"name": "a", "size": 2}]]) == [
        {"name": "a", "size": 1}
    ]
    assert merge_objects([{"a": 1}, {"a": 2, "b": 3}]) == {"a": 1, "b": 3}


def test_upload_inputs_offer_only_the_callers_files() -> None:
    nodes = {
        "LoadImage": {"input": {"required": {"image": [["theirs"], {"image_upload": True}]}}},
        "LoadVideo": {
            "input": {"required": {"file": ["COMBO", {"options": [], "video_upload": True}]}}
        },
        "Output": {
            "input": {"required": {"image": ["COMBO", {"image_upload": True, "remote": {}}]}}
        },
        "Load": make_loader_node("a"),
    }
    nodes_before = copy.deepcopy(nodes)
    changed_nodes = set_upload_choices(nodes, ["mine.png"])
    assert changed_nodes["LoadImage"]["input"]["required"]["image"][0] == ["mine.png"]
    assert changed_nodes["LoadVideo"]["input"]["required"]["file"][1]["options"] == ["mine.png"]
    assert (changed_nodes["Output"], changed_nodes["Load"]) == (nodes["Output"], nodes["Load"])
    assert nodes == nodes_before


def test_paths_of_model_folders_are_hidden() -> None:
    folders = [{"name": "vae", "folders": ["/mnt/secret/vae"]}]
    assert remove_folder_paths(folders) == [{"name": "vae", "folders": ["vae"]}]


NODES: dict[str, Any] = {
    "Load": {
        "input": {
            "required": {"ckpt": [["a", "b"], {}], "image": [["mine"], {"image_upload": True}]},
            "optional": {"mode": ["COMBO", {"options": ["fast", 3]}], "n": ["INT", {}]},
        }
    },
    "Bare": {},
}


@pytest.mark.parametrize(
    ("inputs", "is_supported"),
    [
        ({"ckpt": "a", "mode": "fast", "n": 1}, True),
        ({"ckpt": ["2", 0], "n": "text"}, True),
        ({"ckpt": "a", "image": "anybody's"}, True),
        ({"ckpt": "a", "mode": 4}, True),
        ({"ckpt": "c"}, False),
        ({"mode": "slow"}, False),
    ],
)
def test_a_graph_must_use_choices_of_the_inventory(
    inputs: dict[str, Any], is_supported: bool
) -> None:
    inventory = build_inventory(NODES)
    assert (
        supports_graph(inventory, {"1": {"class_type": "Load", "inputs": inputs}}) is is_supported
    )


def test_a_graph_must_use_nodes_of_the_inventory() -> None:
    inventory = build_inventory(NODES)
    assert supports_graph(inventory, {"1": {"class_type": "Bare"}})
    assert not supports_graph(
        inventory, {"1": {"class_type": "Bare"}, "2": {"class_type": "Other"}}
    )
    assert not supports_graph(inventory, {"1": {}})
