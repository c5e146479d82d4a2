"""What is refused inside ComfyUI's process, on stand-ins for the parts that it touches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moyin.render.comfyui.bridge.guard import (
    KEY,
    NotAllowed,
    Rules,
    first_checked,
    noted,
    while_executed,
)

OWN = f"moyin/{'a' * 64}.png"
ALLOWED = {KEY: {"allow": ["*"], "deny": ["Bad*"], "unchecked": ["Odd.path"]}}


class Any_(str):
    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class Shows:
    RETURN_TYPES = ()
    INPUT_TYPES = classmethod(lambda cls: {"required": {"source": (Any_("*"), {})}})


class Load:
    RETURN_TYPES = ("IMAGE",)
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"image": ([], {"image_upload": True}), "model": ("MODEL",)}}
    )


class Odd:
    RETURN_TYPES = ("IMAGE",)
    INPUT_TYPES = classmethod(lambda cls: {"required": {"path": ("STRING", {})}})


class Broken:
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Any:
        raise RuntimeError("no models")


RULES = Rules({"Broken": Broken, "Load": Load, "Odd": Odd, "BadNode": Odd, "Shows": Shows})


async def verdict(graph: Any, extra: Any = ALLOWED) -> Any:
    """What ``POST /prompt`` comes to; ComfyUI itself finds everything well."""

    async def validate_prompt(prompt_id: str, prompt: Any, targets: Any) -> Any:
        return True, None, ["1"], {}

    noted({"prompt": graph, "extra_data": extra})
    return await first_checked(validate_prompt, RULES)("id", graph, None)


@pytest.mark.parametrize("name", ["/etc/passwd", "/etc/nope", "x.png [output]", "moyin"])
async def test_comfyui_is_not_asked_about_a_name_that_is_nobodys(name: str) -> None:
    graph = {"1": {"class_type": "Load", "inputs": {"image": name}}}
    valid, error, outputs, errors = await verdict(graph)
    assert (valid, outputs, error["type"]) == (False, [], "prompt_outputs_failed_validation")
    assert errors["1"]["errors"][0]["details"] == "image - no file of yours has this name"
    assert errors["1"]["class_type"] == "Load"


async def test_a_good_graph_is_comfyuis_to_judge() -> None:
    graph = {"1": {"class_type": "Load", "inputs": {"image": OWN, "model": ["2", 0]}}}
    assert (await verdict(graph))[0] is True
    assert (await verdict("nonsense"))[0] is True
    for kind in ("Broken", "Unknown"):
        assert (await verdict({"1": {"class_type": kind, "inputs": {"x": "y"}}}))[0] is True


async def test_a_class_that_the_pool_denies_is_refused() -> None:
    graph = {"1": {"class_type": "BadNode", "inputs": {}}}
    valid, _, _, errors = await verdict(graph)
    assert not valid
    assert "BadNode are not allowed" in errors["1"]["errors"][0]["details"]
    assert (await verdict(graph, {KEY: {"allow": ["*"]}}))[0] is True
    assert (await verdict(graph, None))[0] is True, "it is the operator's own"
    only = {KEY: {"allow": ["Load"]}}
    assert (await verdict({"1": {"class_type": "Odd", "inputs": {}}}, only))[0] is False


async def test_an_input_may_be_left_unchecked() -> None:
    graph = {"1": {"class_type": "Odd", "inputs": {"path": "/data/x"}}}
    assert (await verdict(graph))[0] is True
    assert (await verdict(graph, None))[0] is False


def executed(kind: str, inputs: dict[str, Any], values: dict[str, Any], extra: Any) -> Any:
    """What a node gets that is about to be executed."""

    def get_input_data(*_: Any) -> Any:
        return values, {}, {}

    graph = SimpleNamespace(get_node=lambda _: {"class_type": kind})
    return while_executed(get_input_data, RULES)(inputs, None, "1", None, graph, extra)


def test_values_that_came_by_links_are_looked_at_when_they_are_there() -> None:
    linked = {"image": ["2", 0]}
    assert executed("Load", linked, {"image": [OWN]}, ALLOWED)[0] == {"image": [OWN]}
    with pytest.raises(NotAllowed, match="image: no file of yours"):
        executed("Load", linked, {"image": [OWN, "/etc/passwd"]}, ALLOWED)
    with pytest.raises(NotAllowed, match="image"):
        executed("Load", {"image": "/etc/passwd"}, {"image": ["/etc/passwd"]}, ALLOWED)
    executed("Load", linked, {"image": (None,)}, ALLOWED)


def test_what_nodes_hand_to_each_other_is_none_of_ours() -> None:
    values = {"model": [{"weights": "/models/x"}]}
    executed("Load", {"model": ["2", 0]}, values, ALLOWED)
    executed("Shows", {"source": ["2", 0]}, {"source": ["/models/x"]}, ALLOWED)
    with pytest.raises(NotAllowed, match="model"):
        executed("Load", {"model": "/models/x"}, {"model": ["/models/x"]}, ALLOWED)


def test_a_node_that_another_became_is_refused_by_its_class() -> None:
    with pytest.raises(NotAllowed, match="BadNode"):
        executed("BadNode", {}, {}, ALLOWED)
    executed("Odd", {"path": ["2", 0]}, {"path": ["/data/x"]}, ALLOWED)


def test_a_look_at_what_is_not_executed_yet_changes_nothing() -> None:
    get = while_executed(lambda *_: ({"image": ["/x"]}, {}, {}), RULES)
    assert get({"image": "/x"}, None, "1", None)[0] == {"image": ["/x"]}
