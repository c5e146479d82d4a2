from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.paths import HostPathFilter
from moyin.render.protocol.wire import EventMessage

HOME = Path("/opt/studio/venv/lib/python3.11/site-packages/comfyui_source")


@pytest.fixture
def paths(tmp_path: Path) -> HostPathFilter:
    options = ComfyOptions(
        home=HOME,
        python=Path("/opt/studio/venv/bin/python"),
        folder=Path("/srv/moyin/render/comfyui/run/default-0"),
        models=Path("/mnt/nas/Modelle für alle"),
        custom_nodes=(Path("/opt/packs/fancy-nodes"),),
    )
    return HostPathFilter.create_for_process(options)


@pytest.mark.parametrize(
    ("text", "shown_text"),
    [
        (f'File "{HOME}/nodes.py", line 7, in load', 'File "<comfyui>/nodes.py", line 7, in load'),
        (f"{HOME}/comfy/model.py:12", "<comfyui>/comfy/model.py:12"),
        (
            "/opt/studio/venv/lib/python3.11/site-packages/torch/x.py",
            "<python>/lib/python3.11/site-packages/torch/x.py",
        ),
        ("/srv/moyin/render/comfyui/run/default-0/base/input/moyin/a.png", "<input>/moyin/a.png"),
        ("/srv/moyin/render/comfyui/run/default-0/base/models/x", "<models>/x"),
        ("/srv/moyin/render/comfyui/run/default-0/comfyui.db", "<folder>/comfyui.db"),
        ("/opt/packs/fancy-nodes/a.py", "<custom_nodes>/fancy-nodes/a.py"),
        (
            "/srv/moyin/render/comfyui/run/default-0/base/custom_nodes/b/a.py",
            "<custom_nodes>/b/a.py",
        ),
        ("'/mnt/nas/Modelle für alle/vae/x.pt'", "'<models>/vae/x.pt'"),
        (
            "sqlite:////srv/moyin/render/comfyui/run/default-0/comfyui.db",
            "sqlite:///<folder>/comfyui.db",
        ),
    ],
)
def test_known_folders_get_stable_names(paths: HostPathFilter, text: str, shown_text: str) -> None:
    assert paths.hide_known(text) == shown_text
    assert paths.hide(text) == shown_text


@pytest.mark.parametrize(
    ("text", "shown_text"),
    [
        ("cannot open /etc/shadow", "cannot open <path>"),
        (
            "[Errno 2] No such file: '/srv/ann/My Pictures/a.png'",
            "[Errno 2] No such file: '<path>'",
        ),
        ("(/tmp/x.txt, /proc/self/environ)", "(<path>, <path>)"),
        ("file:///srv/ann/x", "file:///<path>"),
        ("a=/srv/moyin/render/comfyui/run/default-01/x", "a=<path>"),
        ("/opt/studio/venv2/bin/python", "<path>"),
        ("/dev/shm", "<path>"),
        ('File "/usr/lib/python3.11/json/decoder.py", line 3', 'File "<path>", line 3'),
    ],
)
def test_other_absolute_paths_are_hidden_in_errors(
    paths: HostPathFilter, text: str, shown_text: str
) -> None:
    assert paths.hide(text) == shown_text


@pytest.mark.parametrize(
    "text",
    [
        "and/or", "1/2", "http://tmp/x", "https://host.example/srv/ann", "</etc>", "/imagine a cat",
        "dataset/etc/x.png", "./tmp/x", "a picture of /etceteras", "50 %/tmpl",
    ],
)  # fmt: skip
def test_texts_that_are_not_paths_are_unchanged(paths: HostPathFilter, text: str) -> None:
    assert paths.hide(text) == text


def test_paths_in_json_are_hidden_in_every_encoding(paths: HostPathFilter) -> None:
    body = {"a": [f"{HOME}/x", {"/mnt/nas/Modelle für alle": 1}], "b": "/etc/passwd"}
    for ascii_only in (True, False):
        encoded_body = json.dumps(body, ensure_ascii=ascii_only).encode()
        assert json.loads(paths.hide_known_in_body(encoded_body)) == {
            "a": ["<comfyui>/x", {"<models>": 1}],
            "b": "/etc/passwd",
        }
        assert json.loads(paths.hide_in_body(encoded_body))["b"] == "<path>"
    assert paths.hide_in_body(b"\xff/etc/passwd") == b"\xff/etc/passwd"


ERROR = {
    "exception_message": "cannot open /etc/shadow",
    "traceback": [f'  File "{HOME}/execution.py", line 1\n', '  File "/usr/lib/x.py"\n'],
    "current_inputs": {"image": [f"{HOME}/a.png"]},
}
SHOWN_ERROR = {
    "exception_message": "cannot open <path>",
    "traceback": ['  File "<comfyui>/execution.py", line 1\n', '  File "<path>"\n'],
    "current_inputs": {"image": ["<comfyui>/a.png"]},
}


def test_error_hides_all_paths_and_output_only_known_folders(
    paths: HostPathFilter,
) -> None:
    assert paths.hide_in_event(EventMessage(type="execution_error", data=ERROR)).data == SHOWN_ERROR
    output = {"text": [f"{HOME}/a", "/etc/motd says hello"]}
    shown_output = paths.hide_in_event(EventMessage(type="executed", data={"output": output})).data[
        "output"
    ]
    assert shown_output == {"text": ["<comfyui>/a", "/etc/motd says hello"]}


def test_history_entry_hides_paths_in_errors(paths: HostPathFilter) -> None:
    entry: dict[str, Any] = {
        "outputs": {"1": {"text": ["/etc/motd"]}},
        "status": {"messages": [["execution_start", {}], ["execution_error", ERROR]]},
    }
    shown_entry = paths.hide_in_state({"queued": False, "entry": entry})["entry"]
    assert shown_entry["status"]["messages"] == [
        ["execution_start", {}],
        ["execution_error", SHOWN_ERROR],
    ]
    assert shown_entry["outputs"] == {"1": {"text": ["/etc/motd"]}}
    malformed_states: list[Any] = [
        {"queued": True, "entry": None},
        None,
        [],
        {"entry": {"status": 3}},
    ]
    for malformed_state in malformed_states:
        assert paths.hide_in_state(malformed_state) == malformed_state


def test_text_frame_hides_paths_and_picture_is_unchanged(paths: HostPathFilter) -> None:
    text_frame = struct.pack(">II", 3, 2) + b"12" + f"from {HOME}/x".encode()
    assert paths.hide_in_frame(text_frame) == struct.pack(">II", 3, 2) + b"12from <comfyui>/x"
    picture_frame = struct.pack(">II", 1, 2) + str(HOME).encode()
    assert paths.hide_in_frame(picture_frame) == picture_frame
    assert paths.hide_in_frame(b"\0\0\0\3") == b"\0\0\0\3"
