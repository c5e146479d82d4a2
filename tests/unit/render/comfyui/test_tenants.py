"""Tests which cached results may be used for another tenant of a ComfyUI."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moyin.render.comfyui.bridge.guard import MOYIN_KEY, NodeRules
from moyin.render.comfyui.bridge.loaded_models import LoaderClasses, compute_loader_keys
from moyin.render.comfyui.bridge.tenants import wrap_execution, wrap_keys, wrap_output_data

MODELS: tuple[Any, ...] = (["a.safetensors", "default"], {})


def make_node_class(*outputs: str, is_output: bool = False, **inputs: Any) -> type:
    hidden = inputs.pop("hidden", None)
    types = {"required": inputs} | ({} if hidden is None else {"hidden": hidden})
    members = {
        "OUTPUT_NODE": is_output, "RETURN_TYPES": outputs, "INPUT_TYPES": classmethod(lambda _: types)
    }  # fmt: skip
    return type("Node", (), members)


class BrokenNode:
    @classmethod
    def INPUT_TYPES(cls) -> Any:
        raise OSError("no such folder")


ChangingLoader = make_node_class("MODEL", name=MODELS)
# The method by which a class decides itself whether ComfyUI executes a node again.
setattr(ChangingLoader, "IS_CHANGED", classmethod(lambda _, name: name))  # noqa: B010

CLASSES = {
    "Checkpoint": make_node_class("MODEL", "CLIP", "VAE", name=MODELS),
    "Lora": make_node_class("MODEL", model=("MODEL",), name=MODELS, strength=("FLOAT", {})),
    "Text": make_node_class("CONDITIONING", clip=("CLIP",), text=("STRING", {"multiline": True})),
    "Titled": make_node_class("MODEL", name=MODELS, title=("STRING", {})),
    "AllInOne": make_node_class("IMAGE", name=MODELS),
    "Seeded": make_node_class("MODEL", name=MODELS, hidden={"id": "UNIQUE_ID"}),
    "Save": make_node_class("MODEL", name=MODELS, is_output=True),
    "Broken": BrokenNode,
    "Changing": ChangingLoader,
}


class FakeKeySet:
    """A fake of ComfyUI's sets of cache keys."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.subcache_keys: dict[str, Any] = {}

    async def add_keys(self, node_ids: Any) -> None:
        for node_id in node_ids:
            if node_id != "missing":
                self.keys[node_id] = "signature"
                self.subcache_keys[node_id] = (node_id, "Text")


class FakeExecutor:
    """A fake of ComfyUI's ``PromptExecutor`` that executes every node and records its cache keys."""

    def __init__(self, cache_type: str = "CLASSIC") -> None:
        self.cache_type = SimpleNamespace(name=cache_type)
        self.caches = SimpleNamespace()
        self.executed: list[str] = []
        self.key_set = FakeKeySet()

    async def execute_async(self, prompt: Any, _id: Any, _extra: Any, *_: Any) -> Any:
        self.key_set = FakeKeySet()
        add_keys = wrap_keys(FakeKeySet.add_keys)
        await add_keys(self.key_set, [*prompt, "missing"])
        await add_keys(self.key_set, [*prompt])
        self.executed = []
        get_output_data = wrap_output_data(self._get_output_data)
        return [await get_output_data("id", node_id, None) for node_id in prompt]

    async def _get_output_data(self, _prompt_id: str, node_id: str, _object: Any) -> Any:
        self.executed.append(node_id)
        return [[node_id]], {}, False, False

    async def render(self, graph: Any, tenant: str | None) -> Any:
        extra_data = None if tenant is None else {MOYIN_KEY: {"tenant": tenant}}
        wrapped = wrap_execution(FakeExecutor.execute_async, CLASSES, NodeRules(CLASSES))
        return await wrapped(self, graph, "id", extra_data, [])


def make_graph(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"1": {"class_type": class_type, "inputs": {"name": "a.safetensors", **inputs}}}


def find_loaders(graph: Any) -> set[str]:
    return set(compute_loader_keys(graph, LoaderClasses(CLASSES, NodeRules(CLASSES))))


async def test_no_key_of_the_cache_is_that_of_another_tenant() -> None:
    executor = FakeExecutor()
    keys = []
    for tenant in ("ann", "ann", "bob", None):
        await executor.render(make_graph("Text"), tenant)
        assert executor.key_set.keys.keys() == executor.key_set.subcache_keys.keys() == {"1"}
        keys.append((executor.key_set.keys["1"], executor.key_set.subcache_keys["1"]))
    assert keys[0] == keys[1]
    assert len({key for key, _ in keys}) == len({key for _, key in keys}) == 3


async def test_a_model_is_loaded_once_for_two_tenants_and_other_nodes_are_executed_for_each() -> (
    None
):
    executor = FakeExecutor()
    graph = {
        **make_graph("Checkpoint"),
        "2": {"class_type": "Text", "inputs": {"clip": ["1", 1], "text": "a cat"}},
    }
    first = await executor.render(graph, "ann")
    assert executor.executed == ["1", "2"]
    assert await executor.render(graph, "bob") == first
    assert executor.executed == ["2"]


async def test_models_that_a_prompt_does_not_use_are_dropped() -> None:
    executor = FakeExecutor()
    await executor.render(make_graph("Checkpoint"), "ann")
    await executor.render({}, "bob")
    await executor.render(make_graph("Checkpoint"), "bob")
    assert executor.executed == ["1"]


async def test_no_model_is_kept_after_comfyui_freed_its_memory_or_without_a_cache() -> None:
    executor = FakeExecutor()
    await executor.render(make_graph("Checkpoint"), "ann")
    executor.caches = SimpleNamespace()
    await executor.render(make_graph("Checkpoint"), "bob")
    assert executor.executed == ["1"]
    for cache_type in ("NONE", "RAM_PRESSURE"):
        executor = FakeExecutor(cache_type)
        await executor.render(make_graph("Checkpoint"), "ann")
        await executor.render(make_graph("Checkpoint"), "bob")
        assert executor.executed == ["1"]


@pytest.mark.parametrize(
    "class_type", ["Titled", "AllInOne", "Seeded", "Save", "Broken", "Changing"]
)
def test_nodes_that_may_depend_on_a_tenant_are_no_loaders(class_type: str) -> None:
    assert find_loaders(make_graph(class_type, title="my secret")) == set()


def test_a_loader_after_another_is_one_and_after_any_other_node_is_none() -> None:
    lora = {
        "class_type": "Lora",
        "inputs": {"model": ["1", 0], "name": "a.safetensors", "strength": 1},
    }
    assert find_loaders({**make_graph("Checkpoint"), "2": lora}) == {"1", "2"}
    assert find_loaders({**make_graph("Text"), "2": lora}) == set()
    assert find_loaders({"2": lora}) == set()


def test_a_cycle_and_a_long_chain_have_no_keys() -> None:
    def chain(count: int) -> dict[str, Any]:
        return {
            str(n): {
                "class_type": "Lora", "inputs": {"model": [str(n + 1), 0], "name": "a.safetensors"}
            }
            for n in range(count)
        }  # fmt: skip

    assert find_loaders({**chain(2), "1": chain(1)["0"] | {"inputs": {"model": ["0", 0]}}}) == set()
    assert len(find_loaders({**chain(5000), "5000": make_graph("Checkpoint")["1"]})) < 5001


def test_other_inputs_have_other_keys() -> None:
    def compute_key(**inputs: Any) -> str:
        graph = make_graph("Checkpoint", **inputs)
        return compute_loader_keys(graph, LoaderClasses(CLASSES, NodeRules(CLASSES)))["1"]

    assert compute_key() == compute_key()
    assert len({compute_key(), compute_key(name="b.safetensors"), compute_key(device=1)}) == 3


def test_a_node_without_a_model_file_is_no_loader() -> None:
    assert find_loaders(make_graph("Checkpoint", name="default")) == set()
