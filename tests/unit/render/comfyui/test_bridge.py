"""Tests the bridge with fakes of the parts of ComfyUI that it uses."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moyin.render.comfyui.bridge.bridge import (
    ExecutorThread,
    find_unchecked_inputs,
    find_volatile_classes,
    freeze_startup_objects,
    is_executor_responsive,
    limit_gpu_memory,
    read_prompt_state,
    validate_graph,
    wrap_file_check,
    wrap_save_path,
    wrap_send,
)

PROMPTS = [f"{number:08d}-0000-0000-0000-000000000000" for number in (1, 2)]


class FakePromptQueue:
    """A fake PromptQueue of ComfyUI.

    Its executor thread clears a flag when it sees it; it does not see the first
    ``ignored_count`` flags.
    """

    def __init__(self, *, ignored_count: int = 0, is_running: bool = False) -> None:
        self.currently_running = {0: "prompt"} if is_running else {}
        self._ignored = ignored_count
        self._flags: dict[str, bool] = {}

    def set_flag(self, name: str, value: bool) -> None:
        self._flags[name] = value
        self._ignored -= 1
        if self._ignored < 0:
            self._flags = {}

    def get_flags(self, reset: bool) -> dict[str, bool]:
        assert not reset
        return self._flags


async def test_executor_that_misses_a_flag_gets_another() -> None:
    assert await is_executor_responsive(FakePromptQueue(ignored_count=3), 1)
    assert await is_executor_responsive(FakePromptQueue(ignored_count=10**6, is_running=True), 1)
    assert not await is_executor_responsive(FakePromptQueue(ignored_count=10**6), 0.1)


def test_executor_thread_is_dead_only_after_it_was_seen() -> None:
    executor = ExecutorThread()
    assert executor.is_alive(), "its thread may have another name"
    may_end = threading.Event()
    thread = threading.Thread(target=may_end.wait, name="Thread-7 (prompt_worker)")
    thread.start()
    assert executor.is_alive()
    may_end.set()
    thread.join()
    assert not executor.is_alive()


async def test_validation_responds_as_post_prompt_does() -> None:
    async def validate(prompt_id: str, prompt: Any, targets: None) -> Any:
        if prompt == "bad":
            return False, {"type": "invalid_prompt"}, [], {"1": "why"}
        return True, None, ["2"], {}

    invalid_response = await validate_graph(validate, {"prompt": "bad"})
    assert invalid_response == (
        400,
        {"error": {"type": "invalid_prompt"}, "node_errors": {"1": "why"}},
    )
    valid_response = await validate_graph(validate, {"prompt": "good", "prompt_id": "x"})
    assert valid_response == (200, {"prompt_id": "x", "node_errors": {}, "outputs": ["2"]})
    status, body = await validate_graph(validate, {})
    assert (status, body["error"]["type"]) == (400, "no_prompt")


class PlainNode:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seed": ("INT", {"min": 0, "max": 9}),
                "text": ("STRING", {"multiline": True}),
                "model": (["a", "b"],),
                "image": ("IMAGE",),
            },
            "optional": {"on": ("BOOLEAN",), "odd": ("FLOAT", {"min": "low"})},
        }


class ValidatingNode(PlainNode):
    @classmethod
    def VALIDATE_INPUTS(cls, text: str) -> bool:
        return bool(text)


class BrokenNode:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        raise RuntimeError("the prompt's folder is gone")


def test_inputs_with_only_type_and_range_checks_are_listed() -> None:
    inputs = {
        "seed": 1,
        "text": "x",
        "model": "a",
        "image": ["2", 0],
        "on": True,
        "odd": 1.0,
        "?": 1,
    }
    classes_by_name = {
        node_type.__name__: node_type for node_type in (PlainNode, ValidatingNode, BrokenNode)
    }
    graph: dict[str, Any] = {
        name: {"class_type": name, "inputs": inputs} for name in classes_by_name
    }
    graph["unknown"] = {"class_type": "Unknown"}
    graph["bare"] = {"class_type": "PlainNode"}
    assert find_unchecked_inputs(graph, classes_by_name) == {
        "PlainNode": {
            "seed": ["INT", 0, 9],
            "text": ["STRING", None, None],
            "on": ["BOOLEAN", None, None],
        }
    }


def test_prompt_state_drops_entries_that_were_read() -> None:
    ended_entry: dict[str, Any] = {
        "prompt": [0, "b", {"1": {}}],
        "outputs": {"2": {}},
        "status": None,
    }
    queue = SimpleNamespace(
        mutex=threading.RLock(),
        history={"a": {"outputs": {}}, "b": ended_entry},
        currently_running={7: (0, "c", {})},
        queue=[(1, "d", {})],
    )
    assert read_prompt_state(queue, {"prompt_id": "a"}) == {
        "queued": False,
        "entry": {"outputs": {}},
    }
    prompt_state = read_prompt_state(queue, {"prompt_id": "b", "forget": ["a", "unknown"]})
    assert prompt_state == {"queued": False, "entry": {"outputs": {"2": {}}, "status": None}}
    assert read_prompt_state(queue, {"prompt_id": "a"}) == {"queued": False, "entry": None}
    assert [read_prompt_state(queue, {"prompt_id": p})["queued"] for p in "cde"] == [
        True,
        True,
        False,
    ]
    assert "prompt" in ended_entry, "the history itself is unchanged"


@pytest.mark.parametrize(
    ("context", "expected_prefix"), [(None, "a/b"), (SimpleNamespace(prompt_id="id"), "id/a/b")]
)
def test_files_of_a_prompt_go_into_its_folder(context: Any, expected_prefix: str) -> None:
    def save_path(filename_prefix: str, output_dir: str, width: int = 0) -> Any:
        return filename_prefix, output_dir, width

    wrapped_save_path = wrap_save_path(save_path, lambda: context)
    assert wrapped_save_path("a/b", "/out", width=5) == (expected_prefix, "/out", 5)
    assert wrapped_save_path(filename_prefix="a/b", output_dir="/out") == (
        expected_prefix,
        "/out",
        0,
    )


@pytest.mark.parametrize("prefix", ["../x", "/out/other/x", "a/../../x", "..\\x", "x [temp]"])
def test_files_of_a_prompt_stay_in_its_folder(prefix: str) -> None:
    wrapped_save_path = wrap_save_path(
        lambda *_: None, lambda: SimpleNamespace(prompt_id=PROMPTS[0])
    )
    with pytest.raises(ValueError, match="filename_prefix"):
        wrapped_save_path(prefix, "/out")


class EventSender:
    """Sends the events of a prompt in which a node reports files."""

    def __init__(self, folder: Path) -> None:
        self.sent: list[Any] = []
        self._send_sync = wrap_send(
            lambda *event: self.sent.append(event), lambda kind: str(folder / kind)
        )

    def report(self, prompt_id: str, output: Any) -> None:
        self._send_sync("executed", {"output": output, "prompt_id": prompt_id}, "client")


def test_file_named_by_a_node_is_reported_in_its_prompts_folder(tmp_path: Path) -> None:
    sender, folder = EventSender(tmp_path), tmp_path / "output"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "latest.png").touch()
    # A node may report the same object every time.
    named_file = {"filename": "latest.png", "subfolder": "sub", "type": "output", "format": "png"}
    for prompt_id in PROMPTS:
        output = {"images": [named_file], "text": ["a word"]}
        sender.report(prompt_id, output)
        reported_file = {**named_file, "subfolder": f"{prompt_id}/sub"}
        assert output == {"images": [reported_file], "text": ["a word"]}
        assert sender.sent[-1] == (
            "executed", {"output": output, "prompt_id": prompt_id}, "client",
        )  # fmt: skip
    assert named_file["subfolder"] == "sub"


@pytest.mark.parametrize("subfolder", ["{folder}/sub", "./sub", "sub/", "other/../sub"])
def test_reported_folder_is_normalised(tmp_path: Path, subfolder: str) -> None:
    sender, folder = EventSender(tmp_path), tmp_path / "output"
    for name in ("sub", "other"):
        (folder / name).mkdir(parents=True)
    (folder / "sub" / "a.png").write_text("made")
    reported_folder = subfolder.format(folder=folder)
    output = {"images": [{"filename": "a.png", "subfolder": reported_folder, "type": "output"}]}
    sender.report(PROMPTS[0], output)
    assert output["images"][0]["subfolder"] == f"{PROMPTS[0]}/sub"


def test_absolute_path_in_the_prompts_folder_is_normalised(tmp_path: Path) -> None:
    sender, folder = EventSender(tmp_path), tmp_path / "output" / PROMPTS[0]
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    named_file = {"filename": "a.png", "subfolder": str(folder), "type": "output"}
    sender.report(PROMPTS[0], output := {"images": [named_file]})
    assert output == {"images": [{**named_file, "subfolder": PROMPTS[0]}]}


def test_other_reported_items_are_unchanged(tmp_path: Path) -> None:
    sender, folder = EventSender(tmp_path), tmp_path / "output"
    [first_prompt, second_prompt] = PROMPTS
    (folder / first_prompt).mkdir(parents=True)
    for path in (folder / first_prompt / "a.png", folder / "a.png", tmp_path / "a.png"):
        path.touch()
    reported_items = [
        {"filename": "a.png", "subfolder": first_prompt, "type": "output"},
        {"filename": "a.png", "subfolder": "", "type": "input"},
        {"filename": "a.png", "subfolder": "..", "type": "output"},
        {"filename": "b.png", "subfolder": "", "type": "output"},
        {"filename": "", "type": "temp"},
        {"filename": "\0", "type": "temp"},
        "a word",
    ]
    for output in ({"images": [*reported_items], "flag": True}, None):
        sender.report(second_prompt, output)
    assert [event[1]["output"] for event in sender.sent] == [
        {"images": reported_items, "flag": True},
        None,
    ]


def test_own_input_files_count_as_existing() -> None:
    file_exists = wrap_file_check(lambda name: name == "there.png")
    own_name = f"moyin/{'a' * 64}"
    assert all(
        file_exists(name)
        for name in ("there.png", own_name, f"{own_name}.png", f"{own_name}.png [input]")
    )
    other_names = ("away.png", f"moyin/{'a' * 63}", f"{own_name}/../x", f"x/{own_name}", 7)
    assert not any(file_exists(name) for name in other_names)


async def test_startup_objects_are_frozen() -> None:
    try:
        gc.unfreeze()
        await freeze_startup_objects(None)
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


class FakeCuda:
    """A fake GPU with 1000 bytes, of which this process has reserved some."""

    def __init__(self, reserved_bytes: int) -> None:
        self.reserved = reserved_bytes
        self.fraction = 1.0

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.fraction = fraction

    def get_device_properties(self, _: int) -> Any:
        return SimpleNamespace(total_memory=1000)

    def memory_reserved(self, _: Any) -> int:
        return self.reserved


@pytest.mark.parametrize(
    ("free_bytes", "reserved_bytes", "cached_bytes", "expected_bytes"),
    [
        (900, 100, 40, 340),  # the share leaves 300, and 40 reserved bytes are unused
        (900, 400, 0, 0),  # the share is used up
        (50, 100, 0, 50),  # other processes use the rest of the GPU
    ],
)
def test_memory_is_capped_and_comfyui_plans_with_the_cap(
    monkeypatch: pytest.MonkeyPatch,
    free_bytes: int,
    reserved_bytes: int,
    cached_bytes: int,
    expected_bytes: int,
) -> None:
    cuda = FakeCuda(reserved_bytes)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    model_management = SimpleNamespace(get_free_memory=lambda dev, too: (free_bytes, cached_bytes))
    limit_gpu_memory(0.4, model_management)
    assert cuda.fraction == 0.4
    device = SimpleNamespace(type="cuda")
    assert model_management.get_free_memory(device) == expected_bytes
    assert model_management.get_free_memory(device, torch_free_too=True) == (
        expected_bytes,
        cached_bytes,
    )
    assert model_management.get_free_memory(SimpleNamespace(type="cpu")) == free_bytes


def test_memory_is_not_capped_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    model_management = SimpleNamespace(get_free_memory=asyncio.sleep)
    limit_gpu_memory(0.5, model_management)
    assert model_management.get_free_memory is asyncio.sleep


def test_custom_nodes_with_a_change_check_are_volatile() -> None:
    class PlainNode:
        pass

    class CheckedNode(PlainNode):
        IS_CHANGED = classmethod(lambda cls: "hash of a file")

    class ExtraNode(CheckedNode):
        RELATIVE_PYTHON_MODULE = "comfy_extras.nodes_audio"

    class ClockNode(CheckedNode):
        RELATIVE_PYTHON_MODULE = "custom_nodes.clock"

    class NewClockNode:
        RELATIVE_PYTHON_MODULE = "custom_nodes.clock"
        fingerprint_inputs = classmethod(lambda cls: "")

    class QuietNode:
        RELATIVE_PYTHON_MODULE = "custom_nodes.quiet"

    nodes = {
        node_type.__name__: node_type
        for node_type in (PlainNode, CheckedNode, ExtraNode, ClockNode, NewClockNode, QuietNode)
    }
    assert find_volatile_classes(nodes) == ["ClockNode", "NewClockNode"]
