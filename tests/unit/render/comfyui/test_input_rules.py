"""Tests which inputs name files, and which values they may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.render.comfyui.bridge import input_rules
from moyin.render.comfyui.bridge.input_rules import (
    CHOICE,
    DATA,
    FILE,
    FOLDER,
    LINE,
    PREFIX,
    TEXT,
    WIDGET,
    Rule,
    allows_value,
    derive_rules,
    find_refusals,
    leads_outside,
)
from moyin.render.protocol.graph import INPUT_FOLDER

OWN_FILE_NAME = f"moyin/{'a' * 64}.png"
OUTSIDE_PATHS = [
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
    return text == OWN_FILE_NAME


def derive_kinds(node: Mapping[str, Any], node_class: str = "Some") -> dict[str, str]:
    return {name: rule.kind for name, rule in derive_rules(node_class, node).items()}


def make_node(is_output: bool = False, outputs: tuple[str, ...] = ("IMAGE",), **inputs: Any) -> Any:
    return {"input": {"required": inputs}, "output": list(outputs), "output_node": is_output}


def test_input_folder_is_the_same_in_both_modules() -> None:
    assert input_rules.INPUT_FOLDER == INPUT_FOLDER


def test_kind_of_an_input_follows_from_its_description() -> None:
    assert derive_kinds(
        make_node(
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
    ("name", "kind_when_loading", "kind_when_saving"),
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
def test_kind_of_a_text_input_follows_from_its_name(
    name: str, kind_when_loading: str, kind_when_saving: str
) -> None:
    inputs: dict[str, Any] = {name: ["STRING", {}]}
    assert derive_kinds(make_node(**inputs)) == {name: kind_when_loading}
    assert derive_kinds(make_node(is_output=True, **inputs)) == {name: kind_when_saving}


def test_node_with_text_output_accepts_any_text() -> None:
    kinds = derive_kinds(make_node(outputs=("STRING",), prefix=["STRING", {}], path=["STRING", {}]))
    assert kinds == {"prefix": TEXT, "path": FILE}


def test_stock_inputs_without_a_description_are_files() -> None:
    latent_node = make_node(latent=[["x.latent"]])
    assert (derive_kinds(latent_node, "LoadLatent"), derive_kinds(latent_node)) == (
        {"latent": FILE},
        {"latent": CHOICE},
    )


@pytest.mark.parametrize("text", OUTSIDE_PATHS)
def test_path_that_leads_outside_is_refused_in_every_encoding(text: str) -> None:
    assert leads_outside(text)
    for kind in (FILE, FOLDER, WIDGET, PREFIX, CHOICE):
        assert not allows_value(Rule(kind), text, is_own)
        assert not allows_value(Rule(kind), {"__value__": [{"deep": text}]}, is_own)
    assert allows_value(Rule(TEXT), text, is_own)
    if not text.startswith("http"):
        assert not allows_value(Rule(LINE), text, is_own)


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
def test_ordinary_names_are_allowed(text: str) -> None:
    assert not leads_outside(text)
    assert allows_value(Rule(PREFIX), text, is_own)


@given(st.text())
def test_any_text_can_be_checked(text: str) -> None:
    assert allows_value(Rule(PREFIX), text, is_own) is not leads_outside(text)
    assert allows_value(Rule(FILE), f"{text}.png", is_own) is False


def test_only_own_file_names_are_allowed() -> None:
    foreign_names = [
        f"moyin/{'b' * 64}.png",
        f"./moyin/{'b' * 64}.png",
        f"Moyin//{'b' * 64}.png",
        "moyin",
    ]
    for kind in (FILE, FOLDER, WIDGET, CHOICE, LINE):
        assert allows_value(Rule(kind), OWN_FILE_NAME, is_own)
        for name in foreign_names:
            assert not allows_value(Rule(kind, frozenset({"x"})), name, is_own)
    assert not allows_value(Rule(FILE), "example.png", is_own)
    assert allows_value(Rule(FILE), "", is_own), "nothing is chosen"


def test_listed_choice_may_be_a_path() -> None:
    node = make_node(folder=["COMBO", {"options": ["/models/a", "moyin", "b"]}])
    rule = derive_rules("Some", node)["folder"]
    assert allows_value(rule, "/models/a", is_own)
    assert allows_value(rule, "gone.safetensors", is_own)
    assert not allows_value(rule, "/models/b", is_own)
    assert not allows_value(rule, "moyin", is_own)


def test_line_may_be_a_sentence_a_slash_or_an_address() -> None:
    for text in ("/", "/imagine a cat", "see ../x or so", "https://example.com/a"):
        assert allows_value(Rule(LINE), text, is_own)


def test_widget_may_hold_words_and_own_files() -> None:
    value = {
        "image": OWN_FILE_NAME,
        "recording": "",
        "camera_info": {"type": "perspective", "fov": 35},
    }
    assert allows_value(Rule(WIDGET), value, is_own)
    assert not allows_value(Rule(WIDGET), {**value, "mask": "threed/scene.png"}, is_own)


def test_refusals_name_node_and_input() -> None:
    rules_by_class = {
        "LoadImage": derive_rules("LoadImage", make_node(image=[[], {"image_upload": True}])),
        "SaveImage": derive_rules(
            "SaveImage", make_node(is_output=True, filename_prefix=["STRING", {}])
        ),
    }
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "/etc/passwd"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": ["9", 0]}},
        "3": {"class_type": "LoadImage", "inputs": {"image": OWN_FILE_NAME, "upload": "image"}},
        "4": {"class_type": "SaveImage", "inputs": {"filename_prefix": ["9", 0]}},
        "5": {"class_type": "SaveImage", "inputs": {"filename_prefix": "../x"}},
        "6": {"class_type": "Unknown", "inputs": {"a": "/etc/passwd", "b": "said / done", "c": 1}},
        "7": {"class_type": "SaveImage"},
        "8": {"class_type": "LoadImage", "inputs": {"image.more": "x.png"}},
    }
    refused_inputs = [
        (refusal.node, refusal.input)
        for refusal in find_refusals(graph, lambda k: rules_by_class.get(k, {}), is_own)
    ]
    assert refused_inputs == [
        ("1", "image"),
        ("2", "image"),
        ("5", "filename_prefix"),
        ("6", "a"),
        ("8", "image.more"),
    ]


def test_deeply_nested_value_is_checked() -> None:
    value: Any = "/etc/passwd"
    for _ in range(5_000):
        value = [value]
    assert not allows_value(Rule(LINE), value, is_own)
