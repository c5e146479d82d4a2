"""Tests which cached node results may be shared by the tenants of a ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest

from moyin.render.comfyui.bridge.guard import MOYIN_KEY
from moyin.render.comfyui.bridge.tenants import wrap_execution, wrap_signature


def make_node_class(hidden: Any = None, is_output: bool = False) -> type:
    inputs = {"required": {}} | ({} if hidden is None else {"hidden": hidden})
    members = {"OUTPUT_NODE": is_output, "INPUT_TYPES": classmethod(lambda _: inputs)}
    return type("Node", (), members)


class BrokenNode:
    @classmethod
    def INPUT_TYPES(cls) -> Any:
        raise OSError("no such folder")


CLASSES = {
    "Latent": make_node_class(),
    "Seed": make_node_class({"unique_id": "UNIQUE_ID"}),
    "Save": make_node_class(is_output=True),
    "Stamp": make_node_class({"info": "EXTRA_PNGINFO"}),
    "Newer": make_node_class({"prompt": ("PROMPT",)}),
    "Broken": BrokenNode,
}


class FakePrompt:
    """A fake of ComfyUI's DynamicPrompt with one node."""

    def __init__(self, class_type: str) -> None:
        self._node = {"class_type": class_type}

    def has_node(self, node_id: str) -> bool:
        return node_id == "1"

    def get_node(self, node_id: str) -> Any:
        return {"1": self._node}[node_id]


async def sign_inputs(class_type: str, extra_data: Any, node_id: str = "1") -> Any:
    async def compute_signature(_keys: Any, _prompt: Any, _node_id: str, _order: Any) -> list[Any]:
        return ["inputs"]

    async def execute_async(*_: Any) -> Any:
        return await wrap_signature(compute_signature, CLASSES)(
            None, FakePrompt(class_type), node_id, {}
        )

    return await wrap_execution(execute_async)(None, {}, "id", extra_data, [])


@pytest.mark.parametrize(
    ("class_type", "is_shared"),
    [
        ("Latent", True),
        ("Seed", True),
        ("Save", False),
        ("Stamp", False),
        ("Newer", False),
        ("Broken", False),
    ],
)
async def test_nodes_that_reveal_the_graph_are_not_shared(class_type: str, is_shared: bool) -> None:
    ann, bob = [{MOYIN_KEY: {"tenant": name}} for name in ("ann", "bob")]
    assert await sign_inputs(class_type, ann) == await sign_inputs(class_type, ann)
    assert (await sign_inputs(class_type, ann) == await sign_inputs(class_type, bob)) == is_shared


async def test_prompts_without_a_tenant_share_signatures() -> None:
    assert await sign_inputs("Save", None) == await sign_inputs("Save", {})
    assert await sign_inputs("Save", {}, node_id="2") == ["inputs"]
