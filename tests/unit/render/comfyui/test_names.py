"""Which inputs name files, and which values may stand there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.render.comfyui.bridge import names
from moyin.render.comfyui.bridge.names import (
    CHOICE,
    DATA,
    FILE,
    FOLDER,
    LINE,
    PREFIX,
    TEXT,
    WIDGET,
    Rule,
    escapes,
    may_hold,
    refusals,
    rules_of,
)
from moyin.render.protocol.graph import INPUT_FOLDER

OWN = f"moyin/{'a' * 64}.png"
OUTSIDE = [
    "/etc/passwd",
    "../x.png",
    "a/../../x",
    "..",
    "..\\x",
    "\\\\server\\share",
    "C:\\x",
    "c:/x",
    "~/x",
    "~root/x",
    "file:///etc/passwd",
    "http://10.0.0.1/x.png",
    "%2e%2e/x",
    "%2Fetc",
    "%252e%252e%252fx",
    "\uff0fetc/passwd",
    "\u2025/x",
    "\u2215etc",
    "\u200b/etc",
    " /etc",
    "x\0.png",
    "x%00.png",
    "x.png [output]",
    "x.png[temp]",
    "x.png [INPUT] ",
]


def is_own(text: str) -> bool:
    return text == OWN


def rules(node: Mapping[str, Any], kind: str = "Some") -> dict[str, str]:
    return {name: rule.kind for name, rule in rules_of(kind, node).items()}


def node(writes: bool = False, outputs: tuple[str, ...] = ("IMAGE",), **inputs: Any) -> Any:
    return {"input": {"required": inputs}, "output": list(outputs), "output_node": writes}


def test_the_folder_is_the_one_that_names_are_given_in() -> None:
    assert names.INPUT_FOLDER == INPUT_FOLDER


def test_inputs_are_told_apart_by_how_comfyui_describes_them() -> None:
    assert rules(
        node(
            image=[["a.png"], {"image_upload": True}],
            audio=["COMBO", {"options": [], "audio_upload": True}],
            remote=["COMBO", {"image_upload": True, "remote": {"route": "/x"}}],
            camera=["WEBCAM", {}],
            ckpt_name=[["a.safetensors"]],
            text=["STRING", {"multiline": True}],
            layers=["STRING", {"default": "7, 8"}],
            steps=["INT", {}],
            model=["MODEL"],
        )
    ) == {
        "image": FILE,
        "audio": FILE,
        "remote": FILE,
        "camera": WIDGET,
        "ckpt_name": CHOICE,
        "text": TEXT,
        "layers": LINE,
        "model": DATA,
    }


@pytest.mark.parametrize(
    ("name", "loading", "saving"),
    [
        ("filename_prefix", PREFIX, PREFIX),
        ("prefix", LINE, PREFIX),
        ("folder_name", FOLDER, PREFIX),
        ("outputDir", FOLDER, PREFIX),
        ("file_path", FILE, PREFIX),
        ("imagePath", FILE, PREFIX),
        ("file_format", LINE, LINE),
        ("profile", LINE, LINE),
    ],
)
def test_what_a_text_names_is_told_by_its_name(name: str, loading: str, saving: str) -> None:
    spec = {name: ["STRING", {}]}
    assert rules(node(**spec)) == {name: loading}
    assert rules(node(writes=True, **spec)) == {name: saving}


def test_a_node_that_makes_texts_of_texts_takes_any() -> None:
    found = rules(node(outputs=("STRING",), prefix=["STRING", {}], path=["STRING", {}]))
    assert found == {"prefix": TEXT, "path": FILE}


def test_stock_inputs_that_are_not_described_as_files_are_known() -> None:
    latent = node(latent=[["x.latent"]])
    assert (rules(latent, "LoadLatent"), rules(latent)) == ({"latent": FILE}, {"latent": CHOICE})


@pytest.mark.parametrize("text", OUTSIDE)
def test_what_leads_outside_is_refused_however_it_is_written(text: str) -> None:
    assert escapes(text)
    for kind in (FILE, FOLDER, WIDGET, PREFIX, CHOICE):
        assert not may_hold(Rule(kind), text, is_own)
        assert not may_hold(Rule(kind), {"__value__": [{"deep": text}]}, is_own)
    assert may_hold(Rule(TEXT), text, is_own)
    if not text.startswith("http"):
        assert not may_hold(Rule(LINE), text, is_own)


@pytest.mark.parametrize(
    "text",
    [
        "ComfyUI",
        "shots/%date:yyyy-MM-dd%/x",
        "%year%-%month%-%day%",
        "a..b",
        "v1.2",
        "1:2",
        "r&d 50%",
        "猫/夜",
        "...",
    ],
)
def test_an_ordinary_name_leads_nowhere_else(text: str) -> None:
    assert not escapes(text)
    assert may_hold(Rule(PREFIX), text, is_own)


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert may_hold(Rule(PREFIX), text, is_own) is not escapes(text)
    assert may_hold(Rule(FILE), f"{text}.png", is_own) is False


def test_files_are_loaded_by_the_names_that_we_gave_them_alone() -> None:
    others = [f"moyin/{'b' * 64}.png", f"./moyin/{'b' * 64}.png", f"Moyin//{'b' * 64}.png", "moyin"]
    for kind in (FILE, FOLDER, WIDGET, CHOICE, LINE):
        assert may_hold(Rule(kind), OWN, is_own)
        for name in others:
            assert not may_hold(Rule(kind, frozenset({"x"})), name, is_own)
    assert not may_hold(Rule(FILE), "example.png", is_own)
    assert may_hold(Rule(FILE), "", is_own), "nothing is chosen"


def test_a_choice_is_one_of_its_list_or_comfyuis_to_judge() -> None:
    spec = node(folder=["COMBO", {"options": ["/models/a", "moyin", "b"]}])
    rule = rules_of("Some", spec)["folder"]
    assert may_hold(rule, "/models/a", is_own)
    assert may_hold(rule, "gone.safetensors", is_own)
    assert not may_hold(rule, "/models/b", is_own)
    assert not may_hold(rule, "moyin", is_own)


def test_a_line_may_be_a_sentence_a_sign_or_an_address() -> None:
    for text in ("/", "/imagine a cat", "see ../x or so", "https://example.com/a"):
        assert may_hold(Rule(LINE), text, is_own)


def test_a_widget_may_hold_words_and_files_of_ones_own() -> None:
    value = {"image": OWN, "recording": "", "camera_info": {"type": "perspective", "fov": 35}}
    assert may_hold(Rule(WIDGET), value, is_own)
    assert not may_hold(Rule(WIDGET), {**value, "mask": "threed/scene.png"}, is_own)


def test_a_graph_is_refused_by_node_and_input() -> None:
    known = {
        "LoadImage": rules_of("LoadImage", node(image=[[], {"image_upload": True}])),
        "SaveImage": rules_of("SaveImage", node(writes=True, filename_prefix=["STRING", {}])),
    }
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "/etc/passwd"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": ["9", 0]}},
        "3": {"class_type": "LoadImage", "inputs": {"image": OWN, "upload": "image"}},
        "4": {"class_type": "SaveImage", "inputs": {"filename_prefix": ["9", 0]}},
        "5": {"class_type": "SaveImage", "inputs": {"filename_prefix": "../x"}},
        "6": {"class_type": "Unknown", "inputs": {"a": "/etc/passwd", "b": "said / done", "c": 1}},
        "7": {"class_type": "SaveImage"},
        "8": {"class_type": "LoadImage", "inputs": {"image.more": "x.png"}},
    }
    found = [(one.node, one.input) for one in refusals(graph, lambda k: known.get(k, {}), is_own)]
    assert found == [
        ("1", "image"),
        ("2", "image"),
        ("5", "filename_prefix"),
        ("6", "a"),
        ("8", "image.more"),
    ]


def test_a_value_may_lie_very_deep() -> None:
    value: Any = "/etc/passwd"
    for _ in range(5_000):
        value = [value]
    assert not may_hold(Rule(LINE), value, is_own)
