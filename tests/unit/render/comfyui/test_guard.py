"""Tests the checks inside ComfyUI's process, with fakes of the parts of ComfyUI that they use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moyin.render.comfyui.bridge.guard import (
    MOYIN_KEY,
    NodeRules,
    NotAllowed,
    store_patterns,
    wrap_input_data,
    wrap_validation,
)

OWN_FILE_NAME = f"moyin/{'a' * 64}.png"
EXTRA_DATA = {MOYIN_KEY: {"allow": ["*"], "deny": ["Bad*"], "unchecked": ["Odd.path"]}}


class AnyType(str):
    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class AnyInputNode:
    RETURN_TYPES = ()
    INPUT_TYPES: Any = classmethod(lambda cls: {"required": {"source": (AnyType("*"), {})}})


class LoadNode:
    RETURN_TYPES = ("IMAGE",)
    INPUT_TYPES: Any = classmethod(
        lambda cls: {"required": {"image": ([], {"image_upload": True}), "model": ("MODEL",)}}
    )


class PathNode:
    RETURN_TYPES = ("IMAGE",)
    INPUT_TYPES: Any = classmethod(lambda cls: {"required": {"path": ("STRING", {})}})


class BrokenNode:
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Any:
        raise RuntimeError("no models")


RULES = NodeRules(
    {
        "Broken": BrokenNode,
        "Load": LoadNode,
        "Odd": PathNode,
        "BadNode": PathNode,
        "Shows": AnyInputNode,
    }
)


async def validate_graph(graph: Any, extra_data: Any = EXTRA_DATA) -> Any:
    """Validate a graph as ``POST /prompt`` does; ComfyUI itself accepts every graph.

    Args:
        extra_data: the prompt's ``extra_data``, with the allowed and denied nodes.
    """

    async def validate_prompt(prompt_id: str, prompt: Any, targets: Any) -> Any:
        return True, None, ["1"], {}

    store_patterns({"prompt": graph, "extra_data": extra_data})
    return await wrap_validation(validate_prompt, RULES)("id", graph, None)


@pytest.mark.parametrize("name", ["/etc/passwd", "/etc/nope", "x.png [output]", "moyin"])
async def test_file_name_of_others_is_refused_before_comfyui_checks_it(name: str) -> None:
    graph = {"1": {"class_type": "Load", "inputs": {"image": name}}}
    valid, error, outputs, errors = await validate_graph(graph)
    assert (valid, outputs, error["type"]) == (False, [], "prompt_outputs_failed_validation")
    assert (
        errors["1"]["errors"][0]["details"]
        == "image - you have no file with this name; upload it first"
    )
    assert errors["1"]["class_type"] == "Load"


async def test_allowed_graph_is_passed_to_comfyui() -> None:
    graph = {"1": {"class_type": "Load", "inputs": {"image": OWN_FILE_NAME, "model": ["2", 0]}}}
    assert (await validate_graph(graph))[0] is True
    assert (await validate_graph("nonsense"))[0] is True
    for node_class in ("Broken", "Unknown"):
        assert (await validate_graph({"1": {"class_type": node_class, "inputs": {"x": "y"}}}))[
            0
        ] is True


async def test_denied_class_is_refused() -> None:
    graph = {"1": {"class_type": "BadNode", "inputs": {}}}
    valid, _, _, errors = await validate_graph(graph)
    assert not valid
    assert "does not allow nodes of the class BadNode" in errors["1"]["errors"][0]["details"]
    assert (await validate_graph(graph, {MOYIN_KEY: {"allow": ["*"]}}))[0] is True
    assert (await validate_graph(graph, None))[0] is True, "it is the operator's own graph"
    extra_data_for_load = {MOYIN_KEY: {"allow": ["Load"]}}
    assert (await validate_graph({"1": {"class_type": "Odd", "inputs": {}}}, extra_data_for_load))[
        0
    ] is False


async def test_unchecked_input_is_accepted() -> None:
    graph = {"1": {"class_type": "Odd", "inputs": {"path": "/data/x"}}}
    assert (await validate_graph(graph))[0] is True
    assert (await validate_graph(graph, None))[0] is False


def get_checked_inputs(
    node_class: str, inputs: dict[str, Any], values: dict[str, Any], extra_data: Any
) -> Any:
    """Return the inputs that a node of the class ``node_class`` gets just before it is executed.

    Args:
        inputs: the node's inputs in the graph.
        values: the values that ComfyUI has determined for these inputs.
        extra_data: the prompt's ``extra_data``.
    """

    def get_input_data(*_: Any) -> Any:
        return values, {}, {}

    graph = SimpleNamespace(get_node=lambda _: {"class_type": node_class})
    return wrap_input_data(get_input_data, RULES)(inputs, None, "1", None, graph, extra_data)


def test_linked_values_are_checked_before_execution() -> None:
    linked_inputs = {"image": ["2", 0]}
    assert get_checked_inputs("Load", linked_inputs, {"image": [OWN_FILE_NAME]}, EXTRA_DATA)[0] == {
        "image": [OWN_FILE_NAME]
    }
    with pytest.raises(NotAllowed, match="image: you have no file"):
        get_checked_inputs(
            "Load", linked_inputs, {"image": [OWN_FILE_NAME, "/etc/passwd"]}, EXTRA_DATA
        )
    with pytest.raises(NotAllowed, match="image"):
        get_checked_inputs("Load", {"image": "/etc/passwd"}, {"image": ["/etc/passwd"]}, EXTRA_DATA)
    get_checked_inputs("Load", linked_inputs, {"image": (None,)}, EXTRA_DATA)


def test_data_between_nodes_is_not_checked() -> None:
    values = {"model": [{"weights": "/models/x"}]}
    get_checked_inputs("Load", {"model": ["2", 0]}, values, EXTRA_DATA)
    get_checked_inputs("Shows", {"source": ["2", 0]}, {"source": ["/models/x"]}, EXTRA_DATA)
    with pytest.raises(NotAllowed, match="model"):
        get_checked_inputs("Load", {"model": "/models/x"}, {"model": ["/models/x"]}, EXTRA_DATA)


def test_expanded_node_of_a_denied_class_is_refused() -> None:
    with pytest.raises(NotAllowed, match="BadNode"):
        get_checked_inputs("BadNode", {}, {}, EXTRA_DATA)
    get_checked_inputs("Odd", {"path": ["2", 0]}, {"path": ["/data/x"]}, EXTRA_DATA)


def test_input_data_without_execution_is_not_checked() -> None:
    get_checked_data = wrap_input_data(lambda *_: ({"image": ["/x"]}, {}, {}), RULES)
    assert get_checked_data({"image": "/x"}, None, "1", None)[0] == {"image": ["/x"]}
