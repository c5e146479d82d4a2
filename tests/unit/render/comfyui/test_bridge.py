"""What runs inside ComfyUI, on stand-ins for the parts of it that it touches."""

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
    Executor,
    beats,
    by_prompt,
    cap_memory,
    free_inputs,
    in_time,
    leave_startup_to_rest,
    standing,
    verdict,
    volatile_classes,
    with_origin,
)

PROMPTS = [f"{number:08d}-0000-0000-0000-000000000000" for number in (1, 2)]


class Queue:
    """ComfyUI's PromptQueue: an executor that takes flags, or does not."""

    def __init__(self, *, deaf: int = 0, running: bool = False) -> None:
        self.currently_running = {0: "prompt"} if running else {}
        self._deaf = deaf
        self._flags: dict[str, bool] = {}

    def set_flag(self, name: str, value: bool) -> None:
        self._flags[name] = value
        self._deaf -= 1
        if self._deaf < 0:
            self._flags = {}

    def get_flags(self, reset: bool) -> dict[str, bool]:
        assert not reset
        return self._flags


async def test_an_executor_that_missed_a_wake_up_is_woken_again() -> None:
    assert await beats(Queue(deaf=3), 1)
    assert await beats(Queue(deaf=10**6, running=True), 1)
    assert not await beats(Queue(deaf=10**6), 0.1)


def test_the_executors_thread_is_missed_only_when_it_was_there() -> None:
    executor = Executor()
    assert executor.runs(), "perhaps it has another name"
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="Thread-7 (prompt_worker)")
    thread.start()
    assert executor.runs()
    stop.set()
    thread.join()
    assert not executor.runs()


async def test_a_verdict_is_what_post_prompt_would_answer() -> None:
    async def validate(prompt_id: str, prompt: Any, targets: None) -> Any:
        if prompt == "bad":
            return False, {"type": "invalid_prompt"}, [], {"1": "why"}
        return True, None, ["2"], {}

    bad = await verdict(validate, {"prompt": "bad"})
    assert bad == (400, {"error": {"type": "invalid_prompt"}, "node_errors": {"1": "why"}})
    good = await verdict(validate, {"prompt": "good", "prompt_id": "x"})
    assert good == (200, {"prompt_id": "x", "node_errors": {}, "outputs": ["2"]})
    status, body = await verdict(validate, {})
    assert (status, body["error"]["type"]) == (400, "no_prompt")


class Plain:
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


class Careful(Plain):
    @classmethod
    def VALIDATE_INPUTS(cls, text: str) -> bool:
        return bool(text)


class Broken:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        raise RuntimeError("its folder is gone")


def test_inputs_of_which_only_type_and_range_are_checked_are_told() -> None:
    given = {
        "seed": 1,
        "text": "x",
        "model": "a",
        "image": ["2", 0],
        "on": True,
        "odd": 1.0,
        "?": 1,
    }
    classes = {kind.__name__: kind for kind in (Plain, Careful, Broken)}
    graph: dict[str, Any] = {name: {"class_type": name, "inputs": given} for name in classes}
    graph["unknown"] = {"class_type": "Unknown"}
    graph["bare"] = {"class_type": "Plain"}
    assert free_inputs(graph, classes) == {
        "Plain": {
            "seed": ["INT", 0, 9],
            "text": ["STRING", None, None],
            "on": ["BOOLEAN", None, None],
        }
    }


def test_a_prompt_is_looked_at_and_what_has_been_read_is_dropped() -> None:
    ended = {"prompt": [0, "b", {"1": {}}], "outputs": {"2": {}}, "status": None}
    queue = SimpleNamespace(
        mutex=threading.RLock(),
        history={"a": {"outputs": {}}, "b": ended},
        currently_running={7: (0, "c", {})},
        queue=[(1, "d", {})],
    )
    assert standing(queue, {"prompt_id": "a"}) == {"queued": False, "entry": {"outputs": {}}}
    seen = standing(queue, {"prompt_id": "b", "forget": ["a", "never seen"]})
    assert seen == {"queued": False, "entry": {"outputs": {"2": {}}, "status": None}}
    assert standing(queue, {"prompt_id": "a"}) == {"queued": False, "entry": None}
    assert [standing(queue, {"prompt_id": p})["queued"] for p in "cde"] == [True, True, False]
    assert "prompt" in ended, "others may look as well"


@pytest.mark.parametrize(
    ("context", "prefix"), [(None, "a/b"), (SimpleNamespace(prompt_id="id"), "id/a/b")]
)
def test_files_of_a_running_prompt_go_into_its_folder(context: Any, prefix: str) -> None:
    def original(filename_prefix: str, output_dir: str, width: int = 0) -> Any:
        return filename_prefix, output_dir, width

    wrapped = by_prompt(original, lambda: context)
    assert wrapped("a/b", "/out", width=5) == (prefix, "/out", 5)
    assert wrapped(filename_prefix="a/b", output_dir="/out") == (prefix, "/out", 0)


@pytest.mark.parametrize("prefix", ["../x", "/out/other/x", "a/../../x", "..\\x", "x [temp]"])
def test_a_prompts_files_stay_in_its_folder(prefix: str) -> None:
    wrapped = by_prompt(lambda *_: None, lambda: SimpleNamespace(prompt_id=PROMPTS[0]))
    with pytest.raises(ValueError, match="filename_prefix"):
        wrapped(prefix, "/out")


class Prompts:
    """What ComfyUI does with a prompt whose node tells of files."""

    def __init__(self, folder: Path) -> None:
        self.sent: list[Any] = []
        self._send_sync = with_origin(
            lambda *told: self.sent.append(told), lambda kind: str(folder / kind)
        )

    def tell(self, prompt_id: str, output: Any) -> None:
        self._send_sync("executed", {"output": output, "prompt_id": prompt_id}, "client")


def test_a_file_that_a_node_has_named_is_its_prompts_own(tmp_path: Path) -> None:
    prompts, folder = Prompts(tmp_path), tmp_path / "output"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "latest.png").touch()
    # A node may tell of it by the same object every time.
    item = {"filename": "latest.png", "subfolder": "sub", "type": "output", "format": "png"}
    for prompt_id in PROMPTS:
        output = {"images": [item], "text": ["a word"]}
        prompts.tell(prompt_id, output)
        told = {**item, "subfolder": f"{prompt_id}/sub"}
        assert output == {"images": [told], "text": ["a word"]}
        assert prompts.sent[-1] == (
            "executed", {"output": output, "prompt_id": prompt_id}, "client",
        )  # fmt: skip
    assert item["subfolder"] == "sub"


@pytest.mark.parametrize("subfolder", ["{folder}/sub", "./sub", "sub/", "other/../sub"])
def test_however_a_node_writes_its_folder_it_is_told_of_plainly(
    tmp_path: Path, subfolder: str
) -> None:
    prompts, folder = Prompts(tmp_path), tmp_path / "output"
    for name in ("sub", "other"):
        (folder / name).mkdir(parents=True)
    (folder / "sub" / "a.png").write_text("made")
    told = subfolder.format(folder=folder)
    output = {"images": [{"filename": "a.png", "subfolder": told, "type": "output"}]}
    prompts.tell(PROMPTS[0], output)
    assert output["images"][0]["subfolder"] == f"{PROMPTS[0]}/sub"


def test_the_whole_path_of_a_file_in_its_prompts_folder_is_told_of_plainly(tmp_path: Path) -> None:
    prompts, folder = Prompts(tmp_path), tmp_path / "output" / PROMPTS[0]
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    item = {"filename": "a.png", "subfolder": str(folder), "type": "output"}
    prompts.tell(PROMPTS[0], output := {"images": [item]})
    assert output == {"images": [{**item, "subfolder": PROMPTS[0]}]}


def test_what_a_node_tells_of_else_stays_as_it_is(tmp_path: Path) -> None:
    prompts, folder = Prompts(tmp_path), tmp_path / "output"
    [first, second] = PROMPTS
    (folder / first).mkdir(parents=True)
    for path in (folder / first / "a.png", folder / "a.png", tmp_path / "a.png"):
        path.touch()
    items = [
        {"filename": "a.png", "subfolder": first, "type": "output"},
        {"filename": "a.png", "subfolder": "", "type": "input"},
        {"filename": "a.png", "subfolder": "..", "type": "output"},
        {"filename": "b.png", "subfolder": "", "type": "output"},
        {"filename": "", "type": "temp"},
        {"filename": "\0", "type": "temp"},
        "a word",
    ]
    for output in ({"images": [*items], "flag": True}, None):
        prompts.tell(second, output)
    assert [told[1]["output"] for told in prompts.sent] == [{"images": items, "flag": True}, None]


def test_input_files_that_come_with_the_prompt_count_as_there() -> None:
    there = in_time(lambda name: name == "there.png")
    ours = f"moyin/{'a' * 64}"
    assert all(there(name) for name in ("there.png", ours, f"{ours}.png", f"{ours}.png [input]"))
    others = ("away.png", f"moyin/{'a' * 63}", f"{ours}/../x", f"x/{ours}", 7)
    assert not any(there(name) for name in others)


async def test_what_is_there_is_left_out_of_collections() -> None:
    try:
        gc.unfreeze()
        await leave_startup_to_rest(None)
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


class Cuda:
    """A card of 1000 bytes, on which this process has reserved some."""

    def __init__(self, reserved: int) -> None:
        self.reserved = reserved
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
    ("free", "reserved", "cached", "expected"),
    [
        (900, 100, 40, 340),  # the share leaves 300, and 40 of what we have are unused
        (900, 400, 0, 0),  # the share is used up
        (50, 100, 0, 50),  # others have filled the card
    ],
)
def test_memory_is_capped_and_comfyui_knows(
    monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, cached: int, expected: int
) -> None:
    cuda = Cuda(reserved)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    management = SimpleNamespace(get_free_memory=lambda dev, too: (free, cached))
    cap_memory(0.4, management)
    assert cuda.fraction == 0.4
    device = SimpleNamespace(type="cuda")
    assert management.get_free_memory(device) == expected
    assert management.get_free_memory(device, torch_free_too=True) == (expected, cached)
    assert management.get_free_memory(SimpleNamespace(type="cpu")) == free


def test_without_a_card_nothing_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    management = SimpleNamespace(get_free_memory=asyncio.sleep)
    cap_memory(0.5, management)
    assert management.get_free_memory is asyncio.sleep


def test_nodes_that_decide_whether_they_have_changed_are_named() -> None:
    class Plain:
        pass

    class Loads(Plain):
        IS_CHANGED = classmethod(lambda cls: "hash of a file")

    class Extra(Loads):
        RELATIVE_PYTHON_MODULE = "comfy_extras.nodes_audio"

    class Clock(Loads):
        RELATIVE_PYTHON_MODULE = "custom_nodes.clock"

    class NewClock:
        RELATIVE_PYTHON_MODULE = "custom_nodes.clock"
        fingerprint_inputs = classmethod(lambda cls: "")

    class Quiet:
        RELATIVE_PYTHON_MODULE = "custom_nodes.quiet"

    nodes = {kind.__name__: kind for kind in (Plain, Loads, Extra, Clock, NewClock, Quiet)}
    assert volatile_classes(nodes) == ["Clock", "NewClock"]
