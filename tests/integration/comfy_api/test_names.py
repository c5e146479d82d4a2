"""Tests that no ComfyUI node accepts a forbidden name of a file or folder.

The nodes are those that the farm's ComfyUI lists, so new nodes are tested as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from PIL import Image

from tests.chaos.graphs import picture
from tests.integration.comfy_api.test_native_api import (
    ComfyClient,
    build_inverting_graph,
    comfy,
    comfyui_up,
    foreign_comfy,
)
from tests.stack import RunningStack

__all__ = ["comfy", "comfyui_up", "foreign_comfy"]

_CANARY = (7, 201, 93)
_TIMEOUT_SECONDS = 120
_TEXTS = ("STRING", "COMBO")
_SCALARS = ("INT", "FLOAT", "BOOLEAN")
_FINAL = ("succeeded", "failed", "cancelled")
_colors = itertools.count(0x5D0000)
# What a text that is no name may hold.
_PROSE = "/imagine a cat, e.g. and/or ../a dog [output], 50%2f50, ~5 cm, C:\\ and so on"


@dataclass(frozen=True)
class OutsideFiles:
    """A folder outside of ComfyUI's with the file ``existing_path``, but without ``missing_path``."""

    folder: Path

    @property
    def existing_path(self) -> str:
        return str(self.folder / "canary.png")

    @property
    def missing_path(self) -> str:
        return str(self.folder / "nobody.png")

    def read_contents(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def outside_files(tmp_path: Path) -> Iterator[OutsideFiles]:
    folder = tmp_path / "outside"
    folder.mkdir()
    Image.new("RGB", (8, 8), _CANARY).save(folder / "canary.png")
    (folder / "canary.txt").write_text("the canary sings")
    files = OutsideFiles(folder)
    contents_before = files.read_contents()
    yield files
    assert files.read_contents() == contents_before, "something was written, changed or removed"


@pytest.fixture
async def nodes(gateway: RunningStack, comfy: ComfyClient) -> dict[str, Any]:
    """Return the descriptions of all nodes of the pool's ComfyUI, as cached by the gateway."""
    await comfy.get("/object_info")
    file_name = hashlib.sha256(b"default").hexdigest()[:16]
    # Its first line is the version of the pool.
    cached_info = (
        (gateway.data / "comfyui/nodes" / f"{file_name}.json").read_bytes().partition(b"\n")[2]
    )
    descriptions: dict[str, Any] = json.loads(cached_info)
    assert {"LoadImage", "SaveImage", "CLIPTextEncode", "LoadVideo"} <= descriptions.keys()
    return descriptions


@pytest.fixture
async def foreign_names(foreign_comfy: ComfyClient) -> list[tuple[str, str]]:
    """Return pairs of names: of another tenant's file, and of a file that does not exist."""
    color = next(_colors)
    file = BytesIO()
    Image.new("RGB", (8, 8), (color >> 16, color >> 8 & 255, color & 255)).save(file, "PNG")
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", file.getvalue(), filename="theirs.png", content_type="image/png")
    form.add_field("subfolder", "theirset")
    async with foreign_comfy.session.post("/upload/image", data=form) as response:
        assert response.status == 200
    async with foreign_comfy.session.post(
        "/artifacts", data=file.getvalue(), headers={"content-type": "image/png"}
    ) as response:
        artifact_id = (await response.json())["id"]
    history_entry = await foreign_comfy.wait_until_finished(
        await foreign_comfy.queue_prompt(picture(next(_colors)))
    )
    [picture_file] = history_entry["outputs"]["2"]["images"]
    output_name = f"{picture_file['subfolder']}/{picture_file['filename']}"
    sha256 = hashlib.sha256(file.getvalue()).hexdigest()
    return [
        ("theirset/theirs.png", "theirset/nobodys.png"),
        ("theirset", "nobodys"),
        (f"artifact:{artifact_id}", f"artifact:art_{uuid.uuid4().hex}"),
        (f"{output_name} [output]", f"{uuid.uuid4()}/{picture_file['filename']} [output]"),
        (f"moyin/{sha256}.png", f"moyin/{sha256[::-1]}.png"),
        (f"./MOYIN//{sha256}.png", f"./MOYIN//{sha256[::-1]}.png"),
        ("moyin", "moyin/nobodys"),
    ]


def list_spellings(outside_files: OutsideFiles, root: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs of names: of a file outside ComfyUI's folder, and of a file that does not exist.

    Both names of a pair are spelled in the same way, for example percent-encoded.

    Args:
        root: ComfyUI's folder.
    """
    existing_file, missing_file = outside_files.existing_path, outside_files.missing_path
    pairs = [
        (existing_file, missing_file),
        (str(outside_files.folder), f"{outside_files.folder}-gone"),
        ("/etc/passwd", "/etc/nope"),
    ]
    pairs.append(
        (
            os.path.relpath(existing_file, root / "input"),
            os.path.relpath(missing_file, root / "input"),
        )
    )
    yield from pairs
    for spell_path in (
        lambda path: path.replace("/", "\\"),
        lambda path: quote(path, safe=""),
        lambda path: quote(quote(path, safe=""), safe=""),
        lambda path: path.replace("/", "\uff0f"),
        lambda path: f"file://{path}",
        lambda path: f"{path}\0.png",
        lambda path: f"x/../{path}",
        lambda path: f"{path} [input]",
        lambda path: f"{path} [output]",
        lambda path: f"{path}[temp]",
    ):
        for existing_path, missing_path in (pairs[0], pairs[3]):
            yield spell_path(existing_path), spell_path(missing_path)


def list_inputs(node: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    for kind in ("required", "optional", "hidden"):
        for name, spec in (node["input"].get(kind) or {}).items():
            if isinstance(spec, list) and spec:
                yield name, spec


def takes_text(spec: list[Any]) -> bool:
    """Return True if the input is a text, or an object of the frontend that contains texts."""
    return isinstance(spec[0], list) or spec[0] in _TEXTS or spec[0] in ("WEBCAM", "LOAD_3D")


def is_prose(spec: list[Any], node: Mapping[str, Any]) -> bool:
    """Return True if the input is a multi-line text, or the node converts texts to texts."""
    options = spec[1] if len(spec) > 1 else {}
    returns_text = node["output"] and set(node["output"]) <= {"STRING", "INT", "FLOAT", "BOOLEAN"}
    return spec[0] == "STRING" and bool(returns_text or options.get("multiline"))


def fill_inputs(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the node's inputs, except for inputs that need models."""
    values: dict[str, Any] = {}
    for name, spec in list_inputs(node):
        options = spec[1] if len(spec) > 1 else {}
        if isinstance(spec[0], list) or spec[0] == "COMBO":
            choices = spec[0] if isinstance(spec[0], list) else options.get("options") or []
            values[name] = choices[0] if choices else ""
        elif spec[0] in _SCALARS:
            values[name] = options.get("default", 0)
        elif spec[0] == "STRING":
            values[name] = options.get("default") or ""
        elif spec[0] == "IMAGE":
            values[name] = ["image", 0]
    return values


def build_graph(
    attacked_nodes: Mapping[str, tuple[str, dict[str, Any]]], nodes: Any
) -> dict[str, Any]:
    """Return a graph of the given nodes, in which ComfyUI validates all of them.

    ComfyUI validates only nodes on which an output node depends. So each node that is none gets a
    preview, which is an output node.

    Args:
        attacked_nodes: the class and the inputs of each node, by its id.
        nodes: ComfyUI's descriptions of the classes.
    """
    graph = {"image": picture(next(_colors))["1"]}
    for node_id, (node_class, inputs) in attacked_nodes.items():
        graph[node_id] = {"class_type": node_class, "inputs": inputs}
        if not nodes[node_class]["output_node"] and nodes[node_class]["output"]:
            preview = {"class_type": "PreviewAny", "inputs": {"source": [node_id, 0]}}
            graph[f"{node_id} seen"] = preview
    return graph


def reduce_response(response_body: Any, *tested_values: str) -> Any:
    """Return a response without its request id, with the tested values replaced by ``…``."""
    text = json.dumps(response_body, sort_keys=True, ensure_ascii=False)
    text = re.sub(r'"request_id": "[^"]*"', '"request_id": "…"', text)
    for value in tested_values:
        text = text.replace(json.dumps(value, ensure_ascii=False)[1:-1], "…")
    return json.loads(text)


async def queue_graph(comfy: ComfyClient, graph: Any, *tested_values: str) -> tuple[int, Any]:
    status, response_body = await comfy.post("/prompt", {"prompt": graph, "client_id": comfy.id})
    return status, reduce_response(response_body, *tested_values)


def find_comfyui_folder(gateway: RunningStack) -> Path:
    """Return the base folder of the running ComfyUI, not one that an ended pool has left."""
    run_folder = gateway.data / "comfyui" / "run" / "comfyui-default-0"
    [folder] = {path.parent for path in run_folder.rglob("custom_nodes") if path.is_dir()}
    return folder


async def test_no_node_input_accepts_files_of_others(
    gateway: RunningStack,
    comfy: ComfyClient,
    nodes: dict[str, Any],
    outside_files: OutsideFiles,
    foreign_names: list[tuple[str, str]],
) -> None:
    offered_nodes = await comfy.get("/object_info")
    name_inputs: list[Any] = []
    prose_inputs: list[Any] = []
    for node_class in offered_nodes:
        for input_name, spec in list_inputs(nodes[node_class]):
            if takes_text(spec):
                (prose_inputs if is_prose(spec, nodes[node_class]) else name_inputs).append(
                    (node_class, input_name)
                )
    assert ("LoadImage", "image") in name_inputs and ("SaveImage", "filename_prefix") in name_inputs
    name_pairs = [*list_spellings(outside_files, find_comfyui_folder(gateway)), *foreign_names]
    foreign_file_names = {value for pair in foreign_names for value in pair}

    async def queue_with_value(value: Any) -> tuple[int, Any]:
        attacked_nodes = {
            f"{node_class}.{input_name}": (
                node_class,
                {**fill_inputs(nodes[node_class]), input_name: value},
            )
            for node_class, input_name in name_inputs
        }
        return await queue_graph(comfy, build_graph(attacked_nodes, nodes), str(value))

    for pair in name_pairs:
        (status, existing_response), (_, missing_response) = await asyncio.gather(
            *map(queue_with_value, pair)
        )
        assert existing_response == missing_response, pair[0]
        expected_code = "invalid_graph" if "\0" in pair[0] else "input_not_found"
        assert (status, existing_response["code"]) == (400, expected_code), existing_response
        refused_inputs = set(existing_response["node_errors"])
        upload_inputs = {
            f"{node_class}.{input_name}"
            for node_class, input_name in name_inputs
            if _is_upload_input(nodes[node_class], input_name)
        }
        assert upload_inputs <= refused_inputs, pair[0]
        # Names that lead nowhere else are for ComfyUI to judge, which has no such file either.
        if pair[0] not in foreign_file_names:
            assert refused_inputs == {
                f"{node_class}.{input_name}" for node_class, input_name in name_inputs
            }, pair[0]

    # Within an object or a list it is the same.
    for wrap_text in (
        lambda text: {"image": text, "mask": text},
        lambda text: {"__value__": [text]},
    ):
        status, response_body = await queue_with_value(wrap_text(outside_files.existing_path))
        assert (status, len(response_body["node_errors"])) == (400, len(name_inputs))


def _is_upload_input(node: Mapping[str, Any], name: str) -> bool:
    """Return True if ComfyUI describes the input as one with an upload button."""
    [spec] = [spec for key, spec in list_inputs(node) if key == name]
    options = spec[1] if len(spec) > 1 else {}
    return any(key.endswith("_upload") for key in options)


async def test_text_input_accepts_any_text(
    comfy: ComfyClient, nodes: dict[str, Any], outside_files: OutsideFiles
) -> None:
    """Nodes accept the path of a file in every text input, and do not read the file."""
    offered_nodes = await comfy.get("/object_info")
    prose_inputs = [
        (node_class, input_name)
        for node_class in offered_nodes
        for input_name, spec in list_inputs(nodes[node_class])
        if is_prose(spec, nodes[node_class])
    ]
    assert ("CLIPTextEncode", "text") in prose_inputs
    runnable_inputs = [
        (node_class, input_name)
        for node_class, input_name in prose_inputs
        if fill_inputs(nodes[node_class]).keys()
        >= (nodes[node_class]["input"].get("required") or {}).keys()
        and nodes[node_class]["python_module"].startswith(("nodes", "comfy_extras"))
    ]
    assert ("PrimitiveString", "value") in runnable_inputs

    async def run_with_value(value: str) -> Any:
        attacked_nodes = {
            f"{node_class}.{input_name}": (
                node_class,
                {**fill_inputs(nodes[node_class]), input_name: value},
            )
            for node_class, input_name in runnable_inputs
            if "egex" not in node_class
        }
        prompt_id = await comfy.queue_prompt(build_graph(attacked_nodes, nodes))
        history_entry = await comfy.wait_until_finished(prompt_id)
        assert history_entry["status"]["status_str"] == "success", history_entry["status"][
            "messages"
        ][-1]
        return history_entry["outputs"]

    existing_outputs = await run_with_value(outside_files.existing_path)
    missing_outputs = await run_with_value(outside_files.missing_path)
    assert existing_outputs.keys() == missing_outputs.keys()
    assert "canary sings" not in json.dumps(existing_outputs)
    await run_with_value(_PROSE)


async def test_node_classes_for_the_workers_disk_are_not_listed(
    comfy: ComfyClient, nodes: dict[str, Any]
) -> None:
    offered_nodes = await comfy.get("/object_info")
    denied_nodes = nodes.keys() - offered_nodes.keys()
    assert {
        "LoadImageDataSetFromFolder",
        "SaveImageTextDataSetToFolder",
        "CheckpointSave",
    } <= denied_nodes
    assert "moyin" not in json.dumps(offered_nodes).replace("moyin_bridge", "")
    for node_class in denied_nodes:
        assert await comfy.get(f"/object_info/{node_class}") == {}
        status, response_body = await queue_graph(
            comfy, build_graph({"n": (node_class, fill_inputs(nodes[node_class]))}, nodes)
        )
        assert (status, response_body["code"]) == (400, "node_not_allowed")
        assert response_body["node_errors"]["n"]["class_type"] == node_class
        assert node_class in response_body["node_errors"]["n"]["errors"][0]["details"]


def _build_render_job(graph: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "render", "workflow": graph}


def _build_pipeline(graph: Mapping[str, Any]) -> dict[str, Any]:
    first_step = {"kind": "render", "workflow": picture(next(_colors))}
    return {"kind": "pipeline", "steps": [first_step, _build_render_job(graph)]}


def _build_sweep(graph: dict[str, Any]) -> dict[str, Any]:
    name = graph["1"]["inputs"]["image"]
    plain_graph = {**graph, "1": {"class_type": "LoadImage", "inputs": {"image": ""}}}
    return {
        **_build_render_job(plain_graph),
        "batch": {"sweep": {"workflow.1.inputs.image": ["", "", name]}},
    }


@pytest.mark.parametrize(
    ("path", "build_body", "status", "field"),
    [
        ("/jobs", _build_render_job, 400, "workflow.1.inputs.image"),
        ("/jobs", _build_pipeline, 400, "steps.1.workflow.1.inputs.image"),
        ("/jobs", _build_sweep, 400, "workflow.1.inputs.image"),
        ("/api/v2/jobs", lambda graph: {"workflow": graph}, 422, "workflow.1.inputs.image"),
    ],
)
async def test_every_api_treats_foreign_objects_as_missing(
    comfy: ComfyClient,
    outside_files: OutsideFiles,
    foreign_names: list[tuple[str, str]],
    path: str,
    build_body: Any,
    status: int,
    field: str,
) -> None:
    for name_pair in [(outside_files.existing_path, outside_files.missing_path), *foreign_names]:
        responses = []
        for file_name in name_pair:
            response_status, response_body = await comfy.post(
                path, build_body(build_inverting_graph(file_name))
            )
            assert response_status == status, response_body
            responses.append(reduce_response(response_body, file_name))
        assert responses[0] == responses[1], name_pair
        error = responses[0] if "code" in responses[0] else responses[0]["error"]["details"]
        assert (error["code"], error["field"]) == ("input_not_found", field)
        assert error["node_errors"].keys() == {"1"}


async def _run_failing_job(comfy: ComfyClient, body: Any, *tested_values: str) -> Any:
    """Run a job that must fail, and return its error, with the tested values replaced by ``…``."""
    status, job = await comfy.post("/jobs", body)
    assert status == 202, job
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        while job["status"] not in _FINAL:
            await asyncio.sleep(0.1)
            job = await comfy.get(f"/jobs/{job['id']}")
    assert job["status"] == "failed", job
    return reduce_response(job["error"], *tested_values)


async def test_output_of_an_earlier_step_cannot_name_a_file(
    comfy: ComfyClient, outside_files: OutsideFiles
) -> None:
    """A name from a step's output is checked when the next step begins, as it is not known earlier."""

    def build_body(value: str) -> dict[str, Any]:
        text_graph = {
            "1": {"class_type": "PrimitiveString", "inputs": {"value": value}},
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        }
        graph = build_inverting_graph("${steps.0.body.outputs.2.text.0}")
        return {
            "kind": "pipeline",
            "steps": [_build_render_job(text_graph), _build_render_job(graph)],
        }

    existing_error = await _run_failing_job(
        comfy, build_body(outside_files.existing_path), outside_files.existing_path
    )
    missing_error = await _run_failing_job(
        comfy, build_body(outside_files.missing_path), outside_files.missing_path
    )
    assert existing_error == missing_error
    assert "you have no file" in json.dumps(existing_error)


def _build_linking_graph(
    node_class: str, input_name: str, text: str, extra_inputs: Mapping[str, Any]
) -> dict[str, Any]:
    graph = {
        "1": {"class_type": "Says", "inputs": {"text": text}},
        "2": {"class_type": node_class, "inputs": {**extra_inputs, input_name: ["1", 0]}},
        "image": picture(next(_colors))["1"],
    }
    if node_class.startswith("Load"):
        graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    return graph


async def test_linked_texts_cannot_name_files(
    gateway: RunningStack, comfy: ComfyClient, outside_files: OutsideFiles
) -> None:
    for node_class, input_name in (
        ("LoadImage", "image"),
        ("LoadImageOutput", "image"),
        ("LoadLatent", "latent"),
    ):
        extra_inputs: dict[str, Any] = {}
        status, response_body = await comfy.post(
            "/prompt",
            {
                "prompt": _build_linking_graph(
                    node_class, input_name, outside_files.existing_path, extra_inputs
                )
            },
        )
        assert (status, response_body["code"]) == (400, "input_not_found"), response_body
        assert response_body["node_errors"].keys() == {"2"}
    # Where a node writes may be made of texts, but it leads out of the prompt's folder for nobody.
    inputs = {"images": ["image", 0]}
    foreign_prefix = f"../{uuid.uuid4()}/x"
    for prefix in (
        foreign_prefix,
        str(outside_files.folder / "x"),
        str(outside_files.folder / "gone" / "x"),
    ):
        graph = _build_linking_graph("SaveImage", "filename_prefix", prefix, inputs)
        error = await _run_failing_job(comfy, _build_render_job(graph), prefix)
        assert "a relative name" in error["message"]
    graph = _build_linking_graph("SaveImage", "filename_prefix", "fine/x", inputs)
    history_entry = await comfy.wait_until_finished(await comfy.queue_prompt(graph))
    assert history_entry["outputs"]["2"]["images"][0]["subfolder"].endswith("/fine")


async def test_node_cannot_expand_into_forbidden_nodes(
    comfy: ComfyClient, outside_files: OutsideFiles
) -> None:
    """Which nodes it expands into is known only when it is executed; then the render must fail."""

    def build_expanding_graph(node_class: str, inputs_of_node: Mapping[str, Any]) -> dict[str, Any]:
        inputs = {"kind": node_class, "values": json.dumps(inputs_of_node)}
        return {
            "1": {"class_type": "Expands", "inputs": inputs},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }

    errors = [
        await _run_failing_job(
            comfy, _build_render_job(build_expanding_graph("LoadImage", {"image": value})), value
        )
        for value in (outside_files.existing_path, outside_files.missing_path)
    ]
    assert errors[0] == errors[1]
    assert "you have no file" in errors[0]["message"]
    error = await _run_failing_job(
        comfy,
        _build_render_job(build_expanding_graph("LoadImageDataSetFromFolder", {"folder": "moyin"})),
    )
    assert "not allow nodes of the class LoadImageDataSetFromFolder" in error["message"]


async def test_symbolic_link_that_a_node_creates_cannot_be_named(
    comfy: ComfyClient, outside_files: OutsideFiles
) -> None:
    name = f"{uuid.uuid4().hex}.png"
    target_hex = outside_files.existing_path.encode().hex()
    linking_graph = {"1": {"class_type": "Links", "inputs": {"text": name, "target": target_hex}}}
    await comfy.wait_until_finished(await comfy.queue_prompt(linking_graph))
    for value in (name, f"{name} [output]", f"{uuid.uuid4().hex}.png"):
        status, response_body = await queue_graph(comfy, build_inverting_graph(value), value)
        assert (status, response_body["code"]) == (400, "input_not_found")


@pytest.fixture
async def own_file_name(comfy: ComfyClient) -> str:
    name = f"own {uuid.uuid4().hex}.png"
    file = BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "PNG")
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", file.getvalue(), filename=name, content_type="image/png")
    async with comfy.session.post("/upload/image", data=form) as response:
        assert response.status == 200
    return name


async def test_the_callers_own_files_are_loaded(comfy: ComfyClient, own_file_name: str) -> None:
    history_entry = await comfy.wait_until_finished(
        await comfy.queue_prompt(build_inverting_graph(own_file_name))
    )
    [picture_file] = history_entry["outputs"]["3"]["images"]
    for name in (
        f"{own_file_name} [input]",
        f"{picture_file['subfolder']}/{picture_file['filename']} [output]",
    ):
        second_entry = await comfy.wait_until_finished(
            await comfy.queue_prompt(build_inverting_graph(name))
        )
        assert second_entry["status"]["status_str"] == "success"
