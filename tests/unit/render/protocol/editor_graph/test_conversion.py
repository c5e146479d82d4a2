"""Tests the conversion of the editor's graphs.

``tests/acceptance/test_comfyui_frontend.py`` compares the results with those of ComfyUI's frontend.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from moyin.render.protocol.editor_graph.conversion import Conversion, Reason, convert
from tests.editor_graphs import (
    BYPASSED,
    MADE,
    graph,
    make_detours,
    make_id,
    make_nested,
    make_simple,
    node,
    subgraph,
    to_version_1,
)

INT, IMAGE = ["INT", {"default": 512}], ["IMAGE", {}]
CHOICE = ["COMBO", {"options": ["nearest-exact", "area"]}]
NODES: dict[str, Any] = {
    "EmptyImage": {
        "input": {
            "required": {
                "width": INT, "height": INT, "batch_size": ["INT", {"default": 1}],
                "color": ["INT", {"default": 0}],
            }
        },
        "output": ["IMAGE"],
    },
    "ImageInvert": {"input": {"required": {"image": IMAGE}}, "output": ["IMAGE"]},
    "ImageScaleBy": {
        "input": {
            "required": {
                "image": IMAGE,
                "upscale_method": [["nearest-exact", "area"]],
                "scale_by": ["FLOAT", {"default": 1.0}],
            }
        },
        "output": ["IMAGE"],
    },
    "ImageBlend": {
        "input": {
            "required": {
                "image1": IMAGE, "image2": IMAGE, "blend_factor": ["FLOAT", {}],
                "blend_mode": ["COMBO", {"options": ["normal", "multiply"]}],
            }
        },
        "output": ["IMAGE"],
    },
    "SaveImage": {
        "input": {"required": {"images": IMAGE, "filename_prefix": ["STRING", {"default": "x"}]}},
        "output": [], "display_name": "Save Image",
    },
    "PreviewImage": {"input": {"required": {"images": IMAGE}}, "output": []},
    "Sampler": {
        "input": {
            "required": {"seed": ["INT", {}], "text": ["STRING", {"dynamicPrompts": True}]},
            "optional": {
                "strength": ["FLOAT", {"forceInput": True}],
                "file": ["COMBO", {"options": ["a", "b"], "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "fixed": ["INT", {"default": 3, "control_after_generate": False}],
            },
        },
        "input_order": {"required": ["seed", "text"], "optional": ["steps", "strength", "file", "fixed"]},
        "output": ["LATENT"],
    },
    "Camera": {
        "input": {"required": {"image": ["WEBCAM", {}], "width": INT}}, "output": ["IMAGE"],
    },
}  # fmt: skip


def convert_graph(editor_graph: dict[str, Any], **options: Any) -> Conversion:
    return convert(editor_graph, NODES, now=datetime(2026, 3, 7, 9, 5, 1), **options)


def get_converted_inputs(node_class: str, values: Any, **members: Any) -> dict[str, Any]:
    """Return the inputs of a single converted node."""
    [converted_node] = convert_graph(
        graph([node(1, node_class, values, **members)], [])
    ).graph.values()
    inputs: dict[str, Any] = converted_node["inputs"]
    return inputs


@pytest.mark.parametrize("editor_graph", [make_simple(7), to_version_1(make_simple(7))])
def test_both_versions_of_the_format_are_converted(editor_graph: dict[str, Any]) -> None:
    conversion = convert_graph(editor_graph)
    assert conversion.graph == {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 48, "height": 32, "batch_size": 1, "color": 7},
            "_meta": {"title": "EmptyImage"},
        },
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "editor"},
            "_meta": {"title": "Save Image"},
        },
    }
    assert [(part.reason, part.node, part.title) for part in conversion.left_out] == [
        (Reason.MUTED, "3", "Look"),
        (Reason.NOTE, "4", "Note"),
    ]


def test_links_pass_reroutes_primitives_and_bypassed_nodes() -> None:
    conversion = convert_graph(make_detours())
    inputs = {name: converted_node["inputs"] for name, converted_node in conversion.graph.items()}
    assert inputs == {
        "1": {"width": 96, "height": 64, "batch_size": 1, "color": 4711},
        "6": {"image": ["1", 0], "upscale_method": "nearest-exact", "scale_by": 0.5},
        "7": {
            "image1": ["6", 0], "image2": ["1", 0], "blend_factor": 0.25, "blend_mode": "multiply",
        },
        "9": {"images": ["7", 0], "filename_prefix": "of 64 and 0"},
        "10": {},
    }  # fmt: skip
    reasons = {part.node: str(part.reason) for part in conversion.left_out}
    assert reasons == {
        "2": "primitive", "3": "reroute", "4": "reroute", "5": "bypassed", "8": "muted",
        "11": "note", "12": "primitive", "13": "muted", None: "group",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["nested", "listed widgets", "other listed widgets"])
def test_subgraphs_are_inlined_with_the_values_of_their_nodes(name: str) -> None:
    conversion = convert_graph(MADE[name])
    factors = {
        name: converted_node["inputs"]["scale_by"]
        for name, converted_node in conversion.graph.items()
        if converted_node["class_type"] == "ImageScaleBy"
    }
    assert factors == {"2:5:1": 0.25, "2:6:1": 2.0, "3:5:1": 4.0, "3:6:1": 2.0}
    assert conversion.graph["3:7"]["inputs"]["image1"] == ["3:5:2", 0]
    assert conversion.graph["3:5:1"]["inputs"]["image"] == ["2:7", 0]
    assert conversion.graph["4"]["inputs"]["images"] == ["3:7", 0]
    inlined_titles = {
        part.node: part.title for part in conversion.left_out if part.reason is Reason.INLINED
    }
    assert inlined_titles == {
        "2": "Twice", "3": "Twice", "2:5": "Scale", "2:6": "Scale", "3:5": "Scale", "3:6": "Scale",
    }  # fmt: skip


@pytest.mark.parametrize(("mode", "images"), [(BYPASSED, ["1", 0]), (2, None)])
def test_nodes_of_a_subgraph_that_is_not_executed_are_left_out(mode: int, images: Any) -> None:
    editor_graph = make_nested()
    for editor_node in editor_graph["nodes"]:
        if editor_node["type"] == make_id("Twice"):
            editor_node["mode"] = mode
    conversion = convert_graph(editor_graph)
    assert conversion.graph.keys() == {"1", "4"}
    assert conversion.graph["4"]["inputs"].get("images") == images


def test_a_link_through_a_subgraph_leads_to_its_input() -> None:
    inner_subgraph = subgraph(
        "Through", [], [(1, -10, 0, -20, 0, "IMAGE")], {"in": "IMAGE"}, {"out": "IMAGE"}
    )
    subgraph_node = node(2, make_id("Through"), inputs=[{"name": "in", "type": "IMAGE", "link": 1}])
    editor_graph = graph(
        [node(1, "EmptyImage"), subgraph_node, node(3, "PreviewImage", links={"images": 2})],
        [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 3, 0, "IMAGE")],
        definitions={"subgraphs": [inner_subgraph]},
    )
    assert convert_graph(editor_graph).graph["3"]["inputs"] == {"images": ["1", 0]}


def test_values_follow_the_order_of_the_widgets() -> None:
    expected_inputs = {"seed": 5, "text": "t", "steps": 9, "file": "b", "fixed": 4}
    widget_values = [5, "randomize", "t", 9, "b", "fixed", "", 4]
    assert get_converted_inputs("Sampler", widget_values) == expected_inputs
    # The values of buttons come after those of the inputs.
    assert get_converted_inputs("SaveImage", ["a", "image"]) == {"filename_prefix": "a"}
    # Old versions of the editor saved a value of an input that must be linked.
    assert (
        get_converted_inputs("Sampler", [*widget_values[:4], 1.0, *widget_values[4:]])
        == expected_inputs
    )
    assert get_converted_inputs("Sampler", widget_values[:4]) == {
        **expected_inputs,
        "file": "a",
        "fixed": 3,
    }
    assert get_converted_inputs("Sampler", {"text": "t", "seed": 5, "other": 1}) == {
        **expected_inputs, "steps": 20, "file": "a", "fixed": 3,
    }  # fmt: skip


def test_integers_beyond_those_of_javascript_and_lists_stay_as_they_are() -> None:
    assert get_converted_inputs("Sampler", [2**64 - 1, "fixed", [1, "x"]])["seed"] == 2**64 - 1
    assert get_converted_inputs("Sampler", [1, "fixed", [1, "x"]])["text"] == {
        "__value__": [1, "x"]
    }


def test_texts_are_replaced_as_the_editor_does() -> None:
    def choose_last(text: str) -> Any:
        editor_graph = graph([node(1, "Sampler", [1, "fixed", text])], [])
        return convert_graph(editor_graph, choose_alternative=lambda items: items[-1]).graph["1"][
            "inputs"
        ]["text"]

    assert choose_last("a {red|{dark|light} blue} sea") == "a light blue sea"
    assert choose_last("one // two\nthree /* four\n */five /* six") == "one \nthree five /* six"
    assert choose_last(r"\{a|b\} {c|d") == "{a|b} d"
    assert choose_last("{" * 100 + "a" + "}" * 100).count("a") == 1
    [save_node] = convert_graph(
        graph([node(1, "SaveImage", ["%date:yyyy-MM-dd hh-mm-ss yy%/%width%/%No.x%"])], [])
    ).graph.values()
    assert save_node["inputs"]["filename_prefix"] == "2026-03-07 09-05-01 26/%width%/%No.x%"


def test_unknown_classes_keep_their_links() -> None:
    editor_graph = graph(
        [
            node(1, "EmptyImage"),
            node(2, "Mystery", [1, 2], inputs=[{"name": "in", "type": "IMAGE", "link": 1}]),
            node(3, "PreviewImage", links={"images": 2}),
        ],
        [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 3, 0, "IMAGE")],
    )
    converted_graph = convert_graph(editor_graph).graph
    assert converted_graph["2"]["inputs"] == {"in": ["1", 0]}
    assert converted_graph["3"]["inputs"] == {"images": ["2", 0]}


def test_inputs_that_only_the_page_can_fill_are_reported() -> None:
    conversion = convert_graph(graph([node(1, "Camera", ["data", 64])], []))
    assert conversion.graph["1"]["inputs"] == {"width": 64}
    [left_out_part] = conversion.left_out
    assert (left_out_part.reason, left_out_part.node, left_out_part.input) == (
        Reason.PAGE_MADE,
        "1",
        "image",
    )
