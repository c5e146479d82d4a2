"""Tests that users render templates, sweeps and graphs, and follow the results."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.chaos.graphs import picture
from tests.editor_graphs import graph, make_simple, node
from tests.stack import RunningStack

GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 2003199},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "dropped"}},
}


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


def png_with_graph(graph: dict[str, Any], keyword: bytes = b"prompt") -> bytes:
    """Return a PNG that contains its graph in ComfyUI's metadata.

    Args:
        keyword: ``prompt``, or ``workflow`` for the format of the editor.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
        + chunk(b"tEXt", b"Software\0test")
        + chunk(b"tEXt", keyword + b"\0" + json.dumps(graph).encode())
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
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
    values = page.get_by_role("combobox", name="Values")
    for value in ("2003199", "14911780"):
        values.fill(value)
        values.press("Enter")
    page.get_by_role("button", name="Vary another input").click()
    page.get_by_role("combobox", name="Input", exact=True).last.click()
    page.get_by_role("option", name="width").click()
    values.last.press_sequentially("64,96,")
    console.check_accessibility()
    console.screenshot("render-sweep")
    page.get_by_role("button", name="Render 4 variants").click()
    wait_for_pictures(page, 4)
    page.get_by_text("4 of 4 done").wait_for()
    console.check_accessibility()
    console.screenshot("render-results", also="ja")
    [job] = api.list_jobs()
    children = api.get(f"/jobs/{job['id']}")["children"]
    assert [child["inputs"] for child in children] == [
        {"seed": seed, "width": width} for seed in (2003199, 14911780) for width in (64, 96)
    ]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_seeds_count_up(console: ConsoleBrowser, gateway: RunningStack) -> None:
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


def test_an_earlier_job_fills_the_form(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = Api(gateway)
    job = api.render(template="swatch", inputs={"prompt": "again", "seed": 7, "width": 64})
    page = console.sign_in_with_key(gateway.api_key).open(f"/render?job={job['id']}").page
    page.get_by_text("Filled in from an earlier job.").wait_for()
    assert page.get_by_label("Caption").input_value() == "again"
    assert page.get_by_role("textbox", name="Seed").input_value() == "7"
    assert page.get_by_label("Project").input_value() == api.project


def test_a_picture_is_uploaded_for_an_input(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/render").page
    page.get_by_role("combobox", name="Template").click()
    page.get_by_role("option", name="Resize a picture").click()
    picture = {"name": "dot.png", "mimeType": "image/png", "buffer": png_with_graph({})}
    page.locator("input[type=file]").set_input_files([picture])
    page.get_by_role("img", name="The chosen picture").wait_for()
    page.get_by_label("width").fill("32")
    page.get_by_label("height").fill("32")
    page.get_by_label("Project").fill(api.project)
    page.get_by_role("button", name="Render 1 picture").click()
    wait_for_pictures(page, 1)
    assert len(api.list_files()) == 1


def test_graphs_come_from_files_and_pictures(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    # Graphs are converted once the pool has reported its nodes.
    Api(gateway).render(workflow=picture(0x6F2D00))
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/render").page
    page.get_by_text("Graph", exact=True).click()
    file = page.locator("input[type=file]")

    def drop(name: str, content: bytes, kind: str = "application/json") -> None:
        file.set_input_files([{"name": name, "mimeType": kind, "buffer": content}])

    drop("text.json", b"[]")
    page.get_by_text("The file is JSON, but no graph of ComfyUI.").wait_for()
    drop("plain.png", b"\x89PNG\r\n\x1a\n", "image/png")
    page.get_by_text("This PNG carries no graph.").wait_for()
    drop("half.json", json.dumps({"nodes": [{"id": 1}]}).encode())
    page.get_by_role("alert").filter(has_text="graph.nodes.0.type").wait_for()
    console.check_clean("status of 400")
    assert page.get_by_role("button", name="Render 1 picture").count() == 0
    missing = graph(
        [
            node(1, "NoSuchNode"),
            node(2, "UpscaleModelLoader", ["no-such-model.safetensors"]),
            node(3, "LoadImage", ["not-mine.png", "image"]),
        ],
        [],
    )
    drop("missing.json", json.dumps(missing).encode())
    page.get_by_text("missing.json: 3 nodes").wait_for()
    for text in ("NoSuchNode", "no-such-model.safetensors", "not-mine.png"):
        page.get_by_role("listitem").filter(has_text=text).wait_for()
    console.check_accessibility()
    console.screenshot("render-missing")
    drop("picture.png", png_with_graph(GRAPH), "image/png")
    page.get_by_text("picture.png: 2 nodes").wait_for()
    page.get_by_text("has every node and file of this graph.").wait_for()
    page.get_by_label("Project").fill(api.project)
    page.get_by_role("button", name="Render 1 picture").click()
    wait_for_pictures(page, 1)
    [job] = api.list_jobs()
    assert api.get(f"/jobs/{job['id']}/graph")["1"] == GRAPH["1"]


def test_graphs_that_the_editor_saved_are_rendered(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    # Graphs are converted once the pool has reported its nodes.
    Api(gateway).render(workflow=picture(0x6F2D00))
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/render").page
    page.get_by_text("Graph", exact=True).click()
    file = page.locator("input[type=file]")
    # A seed that JavaScript would round.
    saved = make_simple(0x6F2DA8)
    saved["nodes"].append(node(5, "PrimitiveInt", [2**60 + 1, "fixed"]))
    content = png_with_graph(saved, b"workflow")
    file.set_input_files([{"name": "saved.png", "mimeType": "image/png", "buffer": content}])
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
    rendered = api.get(f"/jobs/{job['id']}/graph")
    assert rendered["1"]["inputs"] == {
        "width": 48,
        "height": 32,
        "batch_size": 1,
        "color": 0x6F2DA8,
    }
    assert rendered["5"]["inputs"] == {"value": 2**60 + 1}
    assert rendered.keys() == {"1", "2", "5"}
