"""Tests that users render templates, sweeps and graphs, and follow the results."""

from __future__ import annotations

import json
import struct
import uuid
import zlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Request, expect

from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.chaos.graphs import picture
from tests.editor_graphs import graph, make_simple, node
from tests.stack import RunningStack

# Has an input of every type. Its node `Busy` is one of tests/nodes.py.
_TEMPLATE: dict[str, Any] = {
    "inputs": {
        "name": {"type": "string", "title": "Name", "minLength": 1},
        "seconds": {"type": "number", "title": "Seconds", "minimum": 0},
        "size": {"type": "integer", "title": "Size", "minimum": 16, "maximum": 64},
        "fails": {"type": "boolean", "title": "Fails", "default": True},
        "folder": {"type": "string", "title": "Folder", "enum": ["day", "night"]},
    },
    "graph": {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": "${inputs.size}", "height": 64, "batch_size": 1, "color": 255},
        },
        "2": {
            "class_type": "Busy",
            "inputs": {
                "image": ["1", 0], "seconds": "${inputs.seconds}", "fails": "${inputs.fails}",
            },
        },
        "3": {
            "class_type": "SaveImage",
            "inputs": {
                "images": ["2", 0], "filename_prefix": "${inputs.folder}/${inputs.name}",
            },
        },
    },
}  # fmt: skip
GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 2003199},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "dropped"}},
}


@pytest.fixture
def template(gateway: RunningStack) -> Iterator[str]:
    """Store a template with an input of every type, and return its name."""
    name = f"types-{uuid.uuid4().hex[:8]}"
    template_path = gateway.data / "templates" / f"{name}.json"
    template_path.parent.mkdir(exist_ok=True)
    template_path.write_text(json.dumps({"name": name, "title": name, **_TEMPLATE}))
    yield name
    template_path.unlink()


def get_inputs(api: Api, job: str) -> dict[str, Any]:
    """Return the template's inputs with which a job was submitted."""
    [step] = api.get(f"/jobs/{job}")["submitted"]["steps"]
    inputs: dict[str, Any] = step["inputs"]
    return inputs


def open_form(console: ConsoleBrowser, gateway: RunningStack, project: str) -> Page:
    page = console.sign_in_with_key(gateway.api_key).open("/render").page
    page.get_by_role("combobox", name="Template").click()
    page.get_by_role("option", name="Colour swatch").click()
    page.get_by_label("Project").fill(project)
    return page


def wait_for_pictures(page: Page, count: int) -> None:
    pictures = page.get_by_role("list", name="Results").get_by_role("button")
    pictures.nth(count - 1).wait_for(timeout=240_000)
    assert pictures.count() == count


def render(page: Page, button: str, picture_count: int) -> str:
    """Press a button of the form, wait for the new job's pictures, and return the job's id."""
    job = submit(page, button)
    wait_for_pictures(page, picture_count)
    return job


def submit(page: Page, button: str) -> str:
    """Press a button of the form, and return the new job's id."""

    def is_submission(request: Request) -> bool:
        return (str(request.method), urlsplit(request.url).path) == ("POST", "/jobs")

    with page.expect_response(lambda response: is_submission(response.request)) as response:
        page.get_by_role("button", name=button).click()
    job: str = response.value.json()["id"]
    page.wait_for_url(f"**result={job}*")
    return job


def drop_file(page: Page, name: str, content: bytes, media_type: str = "application/json") -> None:
    """Drop a file on the form.

    Args:
        media_type: the file's media type.
    """
    build_transfer = """([name, bytes, type]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
        return transfer;
    }"""
    transfer = page.evaluate_handle(build_transfer, [name, list(content), media_type])
    drop_zone = page.get_by_text("Drop a graph or a picture")
    for event in ("dragenter", "dragover", "drop"):
        drop_zone.dispatch_event(event, {"dataTransfer": transfer})


def make_png_with_graph(graph: dict[str, Any], keyword: bytes = b"prompt") -> bytes:
    """Return a PNG that contains its graph in ComfyUI's metadata.

    Args:
        keyword: ``prompt``, or ``workflow`` for the format of the editor.
    """

    def make_chunk(chunk_type: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + chunk_type
            + data
            + struct.pack(">I", zlib.crc32(chunk_type + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + make_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
        + make_chunk(b"tEXt", b"Software\0test")
        + make_chunk(b"tEXt", keyword + b"\0" + json.dumps(graph).encode())
        + make_chunk(b"IDAT", zlib.compress(b"\0\0"))
        + make_chunk(b"IEND", b"")
    )


def test_a_sweep_is_rendered_to_a_contact_sheet(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    page = open_form(console, gateway, api.project)
    page.get_by_role("button", name="Render 1 picture").click()
    page.get_by_text("Fill this in.").wait_for()
    page.get_by_label("Caption").fill("sea")
    console.check_accessibility()
    page.get_by_text("Sweep", exact=True).click()
    page.get_by_role("combobox", name="Input", exact=True).click()
    page.get_by_role("option", name="Seed").click()
    values_field = page.get_by_role("combobox", name="Values")
    for seed_text in ("2003199", "14911780"):
        values_field.fill(seed_text)
        values_field.press("Enter")
    page.get_by_role("button", name="Vary another input").click()
    page.get_by_role("combobox", name="Input", exact=True).last.click()
    page.get_by_role("option", name="width").click()
    values_field.last.press_sequentially("64,96,")
    console.check_accessibility()
    console.screenshot("render-sweep")
    page.get_by_role("button", name="Render 4 variants").click()
    wait_for_pictures(page, 4)
    page.get_by_text("4 of 4 done").wait_for()
    console.check_accessibility()
    console.screenshot("render-results", also_in="ja")
    [job] = api.list_jobs()
    children = api.get(f"/jobs/{job['id']}")["children"]
    assert [child["inputs"] for child in children] == [
        {"seed": seed, "width": width} for seed in (2003199, 14911780) for width in (64, 96)
    ]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_each_variant_gets_the_next_seed(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = Api(gateway)
    page = open_form(console, gateway, api.project)
    page.get_by_label("Caption").fill("two seeds")
    page.get_by_text("Seeds", exact=True).click()
    page.get_by_label("Number of seeds").fill("2")
    page.get_by_role("button", name="Render 2 variants").click()
    wait_for_pictures(page, 2)
    [job] = api.list_jobs()
    assert [child["inputs"] for child in api.get(f"/jobs/{job['id']}")["children"]] == [
        {"seed": 14911780},
        {"seed": 14911781},
    ]


def test_an_earlier_job_is_run_again_with_changes(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    job = api.render(template="swatch", inputs={"prompt": "again", "seed": 7, "width": 64})
    page = console.sign_in_with_key(gateway.api_key).open(f"/jobs/{job['id']}").page
    # The farm's renders have no price.
    priced_jobs = {"jobs": [{**job, "cost_usd": 0.25}], "next_cursor": None}
    page.route("**/jobs?template=*", lambda route: route.fulfill(json=priced_jobs))
    request_region = page.get_by_role("region", name="Request")
    expect(request_region).to_contain_text("promptagainseed7width64")
    page.get_by_role("link", name="Run again with changes").click()
    page.get_by_text("Filled in from an earlier job.").wait_for()
    assert page.get_by_label("Caption").input_value() == "again"
    assert page.get_by_role("textbox", name="Seed").input_value() == "7"
    assert page.get_by_label("Project").input_value() == api.project
    page.get_by_text("about $0.25 in all · by this template").wait_for()
    page.unroute("**/jobs?template=*")
    page.get_by_label("width").fill("72")
    console.check_accessibility()
    second_job = render(page, "Render 1 picture", 1)
    inputs = {"prompt": "again", "seed": 7, "width": 72, "height": 512}
    assert get_inputs(api, second_job) == inputs
    assert api.get(f"/jobs/{second_job}/graph")["colour"]["inputs"]["width"] == 72

    console.open(f"/gallery?project={api.project}")
    page.get_by_role("button", name="Open").first.click()
    page.get_by_role("link", name="Render again with changes").click()
    page.get_by_text("Filled in from an earlier job.").wait_for()
    page.get_by_role("textbox", name="Seed").fill("8")
    third_job = render(page, "Render 1 picture", 1)
    assert get_inputs(api, third_job) == {**inputs, "seed": 8}
    assert [listed_job["id"] for listed_job in api.list_jobs()] == [
        third_job,
        second_job,
        job["id"],
    ]


def test_a_form_has_controls_for_all_types_and_options(
    console: ConsoleBrowser, gateway: RunningStack, template: str
) -> None:
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/render").page
    page.get_by_role("combobox", name="Template").click()
    page.get_by_role("option", name=template).click()
    page.get_by_role("textbox", name="Name").fill("all types")
    page.get_by_role("textbox", name="Seconds").fill("0.5")
    page.get_by_role("textbox", name="Size").fill("48")
    page.get_by_role("switch", name="Fails").uncheck()
    page.get_by_role("combobox", name="Folder").click()
    page.get_by_role("option", name="night").click()
    page.get_by_label("Project").fill(api.project)
    pool = page.get_by_role("textbox", name="Pool")
    pool.fill("Not a pool")
    page.get_by_text("Lower-case letters, digits and hyphens.").wait_for()
    expect(page.get_by_role("button", name="Render 1 picture")).to_be_disabled()
    pool.fill("default")
    page.get_by_role("combobox", name="Priority").click()
    page.get_by_role("option", name="last").click()
    deadline = page.get_by_label("Deadline")
    deadline.fill("2001-01-01T00:00")
    page.get_by_text("The deadline has passed.").wait_for()
    console.check_accessibility()
    tomorrow = (datetime.now() + timedelta(days=1)).replace(second=0, microsecond=0)
    deadline.fill(tomorrow.isoformat(timespec="minutes"))
    page.get_by_role("switch", name="result from the cache").uncheck()
    console.check_accessibility()
    job = api.get(f"/jobs/{render(page, 'Render 1 picture', 1)}")
    [step] = job["submitted"]["steps"]
    assert step["inputs"] == {
        "name": "all types", "seconds": 0.5, "size": 48, "fails": False, "folder": "night",
    }  # fmt: skip
    assert (step["template"], step["pool"], step["cache"]) == (template, "default", False)
    assert datetime.fromisoformat(job["submitted"]["deadline"]) == tomorrow.astimezone()
    assert (job["priority"], job["metadata"]) == (5, {"project": api.project})

    page.get_by_text("Sweep", exact=True).click()
    page.get_by_role("combobox", name="Input", exact=True).click()
    page.get_by_role("option", name="Fails").click()
    values_field = page.get_by_role("combobox", name="Values")
    for value in ("false", "true"):
        values_field.fill(value)
        values_field.press("Enter")
    page.get_by_role("button", name="Vary another input").click()
    page.get_by_role("combobox", name="Input", exact=True).last.click()
    page.get_by_role("option", name="Folder").click()
    for value in ("day", "night"):
        values_field.last.fill(value)
        values_field.last.press("Enter")
    page.get_by_role("button", name="Render 4 variants").wait_for()
    console.check_accessibility()
    page.get_by_role("button", name="Do not vary Folder").click()
    page.get_by_role("textbox", name="Seconds").fill("100")
    batch = submit(page, "Render 2 variants")
    page.get_by_role("button", name="Cancel the job").click()
    dialog = page.get_by_role("dialog", name="Cancel the job")
    console.check_accessibility()
    dialog.get_by_role("button", name="Cancel the job").click()
    page.get_by_text("cancelled", exact=True).first.wait_for()
    expect(page.get_by_role("button", name="Cancel the job")).to_have_count(0)
    job = api.get(f"/jobs/{batch}")
    assert job["status"] == "cancelled"
    assert [child["inputs"] for child in job["children"]] == [{"fails": False}, {"fails": True}]


def test_a_picture_is_uploaded_for_an_input(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/render").page
    page.get_by_role("combobox", name="Template").click()
    page.get_by_role("option", name="Resize a picture").click()
    picture = {"name": "dot.png", "mimeType": "image/png", "buffer": make_png_with_graph({})}
    page.locator("input[type=file]").set_input_files([picture])
    page.get_by_role("img", name="The chosen picture").wait_for()
    page.get_by_label("width").fill("32")
    page.get_by_label("height").fill("32")
    page.get_by_label("Project").fill(api.project)
    page.get_by_role("button", name="Render 1 picture").click()
    wait_for_pictures(page, 1)
    uploaded_address = page.get_by_role("img", name="The chosen picture").get_attribute("src")
    assert uploaded_address is not None
    assert len(api.list_files()) == 1
    page.get_by_role("link", name="Open the job").click()
    request_region = page.get_by_role("region", name="Request")
    expect(request_region.get_by_role("link")).to_have_attribute(
        "href", uploaded_address.partition("?")[0]
    )


def test_graphs_come_from_files_and_pictures(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    # Graphs are converted once the pool has reported its nodes.
    Api(gateway).render(workflow=picture(0x6F2D00))
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/render").page
    page.get_by_text("Graph", exact=True).click()
    list_file = {"name": "text.json", "mimeType": "application/json", "buffer": b"[]"}
    page.locator("input[type=file]").set_input_files([list_file])
    page.get_by_text("The file is JSON, but no graph of ComfyUI.").wait_for()
    drop_file(page, "plain.png", b"\x89PNG\r\n\x1a\n", "image/png")
    page.get_by_text("This PNG carries no graph.").wait_for()
    drop_file(page, "half.json", json.dumps({"nodes": [{"id": 1}]}).encode())
    page.get_by_role("alert").filter(has_text="graph.nodes.0.type").wait_for()
    console.check_clean("status of 400")
    assert page.get_by_role("button", name="Render 1 picture").count() == 0
    graph_with_missing = graph(
        [
            node(1, "NoSuchNode"),
            node(2, "UpscaleModelLoader", ["no-such-model.safetensors"]),
            node(3, "LoadImage", ["not-mine.png", "image"]),
        ],
        [],
    )
    drop_file(page, "missing.json", json.dumps(graph_with_missing).encode())
    page.get_by_text("missing.json: 3 nodes").wait_for()
    for missing_name in ("NoSuchNode", "no-such-model.safetensors", "not-mine.png"):
        page.get_by_role("listitem").filter(has_text=missing_name).wait_for()
    console.check_accessibility()
    console.screenshot("render-missing")
    graph_with_unknown_node = {**GRAPH, "3": {"class_type": "NoSuchNode", "inputs": {}}}
    drop_file(page, "broken.json", json.dumps(graph_with_unknown_node).encode())
    page.get_by_text("broken.json: 3 nodes").wait_for()
    page.get_by_text("Kinds of nodes that it does not have, or that you may not use:").wait_for()
    drop_file(page, "picture.png", make_png_with_graph(GRAPH), "image/png")
    page.get_by_text("picture.png: 2 nodes").wait_for()
    page.get_by_text("has every node and file of this graph.").wait_for()
    page.get_by_text("time and cost are unknown until it has been rendered").wait_for()
    page.get_by_label("Project").fill(api.project)
    job = render(page, "Render 1 picture", 1)
    assert api.get(f"/jobs/{job}/graph")["1"] == GRAPH["1"]


def test_a_graph_names_missing_files_and_is_varied(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/render").page
    page.get_by_text("Graph", exact=True).click()
    loader_node = {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "none.safetensors"},
    }
    preview_node = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    drop_file(page, "model.json", json.dumps({"3": loader_node, "4": preview_node}).encode())
    page.get_by_text("Model files and choices that it does not have:").wait_for()
    missing_file = page.get_by_role("listitem").filter(has_text="none.safetensors")
    expect(missing_file).to_have_text("CheckpointLoaderSimple (3) · ckpt_name: none.safetensors")
    # What the server says of the node.
    page.get_by_role("button", name="Render 1 picture").click()
    refused_node = page.get_by_role("listitem").filter(has_text="Value not in list")
    expect(refused_node).to_contain_text("CheckpointLoaderSimple (3)")
    console.check_accessibility()
    console.check_clean("400")

    noise_node = {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}}
    drop_file(
        page, "seeds.json", json.dumps({**GRAPH, "3": noise_node, "4": preview_node}).encode()
    )
    page.get_by_text("has every node and file of this graph.").wait_for()
    page.get_by_label("Project").fill(api.project)
    page.get_by_text("Seeds", exact=True).click()
    page.get_by_label("Number of seeds").fill("2")
    job = render(page, "Render 2 variants", 2)
    graphs = [api.get(f"/jobs/{job}/graph", step=step) for step in range(2)]
    assert [graph["3"]["inputs"]["noise_seed"] for graph in graphs] == [7, 8]
    page.get_by_text("Sweep", exact=True).click()
    page.get_by_role("combobox", name="Input", exact=True).click()
    page.get_by_role("option", name="EmptyImage (1) · color: 2003199").click()
    values_field = page.get_by_role("combobox", name="Values")
    values_field.press_sequentially("255,65280,")
    console.check_accessibility()
    job = render(page, "Render 2 variants", 2)
    children = api.get(f"/jobs/{job}")["children"]
    assert [child["inputs"] for child in children] == [
        {"workflow.1.inputs.color": 255}, {"workflow.1.inputs.color": 65280},
    ]  # fmt: skip


def test_graphs_that_the_editor_saved_are_rendered(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    # Graphs are converted once the pool has reported its nodes.
    Api(gateway).render(workflow=picture(0x6F2D00))
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/render").page
    page.get_by_text("Graph", exact=True).click()
    file_input = page.locator("input[type=file]")
    # A seed that JavaScript would round.
    saved_graph = make_simple(0x6F2DA8)
    saved_graph["nodes"].append(node(5, "PrimitiveInt", [2**60 + 1, "fixed"]))
    content = make_png_with_graph(saved_graph, b"workflow")
    file_input.set_input_files([{"name": "saved.png", "mimeType": "image/png", "buffer": content}])
    page.get_by_text("saved.png: 3 nodes").wait_for()
    page.get_by_text("has every node and file of this graph.").wait_for()
    page.get_by_role("listitem").filter(has_text="Muted: Look (3)").wait_for()
    page.get_by_role("listitem").filter(has_text="Notes: 1").wait_for()
    console.check_accessibility()
    console.screenshot("render-editor-graph")
    page.get_by_label("Project").fill(api.project)
    page.get_by_role("button", name="Render 1 picture").click()
    wait_for_pictures(page, 1)
    [job] = api.list_jobs()
    rendered_graph = api.get(f"/jobs/{job['id']}/graph")
    assert rendered_graph["1"]["inputs"] == {
        "width": 48,
        "height": 32,
        "batch_size": 1,
        "color": 0x6F2DA8,
    }
    assert rendered_graph["5"]["inputs"] == {"value": 2**60 + 1}
    assert rendered_graph.keys() == {"1", "2", "5"}
