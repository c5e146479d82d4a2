"""Tests ComfyUI's official frontend, unchanged, in a real browser on a whole farm.

Two versions are tested: the one that comes with the installed ComfyUI, and a newer one.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocket, sync_playwright

from moyin.render.comfyui.install import ComfyUI
from moyin.stack.profile import read_profile
from tests.acceptance.comfyui_clients import install_clients
from tests.acceptance.other_frontend import other_frontend
from tests.chaos.client import StackClient
from tests.chaos.graphs import picture, sleepy
from tests.editor_graphs import MADE
from tests.stack import RunningStack

# Chromium asks its maker's servers for nothing; tests may run as root.
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_PATIENCE = 120
_colors = itertools.count(0x5C0000)
# Real workflows that the frontend converts in this test.
_MAX_TEMPLATES = 20
_OWN, _NEWER = "1.32.9", "1.58.1"
_VERSION = "window.__COMFYUI_FRONTEND_VERSION__"
_READY = "window.app?.graph && window.app.extensionManager && window.app.canvas"
# Loads a workflow as if it were dropped, and converts it as the button "Run" does.
_CONVERT = """async saved => {
  const quiet = {showMissingNodesDialog: false, showMissingModelsDialog: false};
  await window.app.loadGraphData(saved, true, false, null, quiet);
  return (await window.app.graphToPrompt()).output;
}"""
_SHOWN = "() => Object.values(window.app.nodeOutputs).flatMap(output => output.images ?? [])"
_PIXEL = """async ([image]) => {
  const answer = await fetch("/comfy/api/view?" + new URLSearchParams(image));
  const bitmap = await createImageBitmap(await answer.blob());
  const canvas = new OffscreenCanvas(1, 1);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return [...canvas.getContext("2d").getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""

# Of the tab, which shows progress.
_ICONS = """async () => Promise.all(
  [...document.querySelectorAll("link[rel*='icon']")].map(async ({href}) => {
    const answer = await fetch(href);
    return [new URL(href).pathname, answer.status, answer.headers.get("content-type")];
  }))"""


class FrontendPage:
    """A signed-in page; ``messages`` contains the messages that its WebSocket has received."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.messages: list[dict[str, Any]] = []
        page.on("websocket", self._listen_to_socket)

    def load_graph(self, graph: dict[str, Any]) -> None:
        self.page.evaluate("graph => window.app.loadApiJson(graph, 'test')", graph)

    def queue_graph(self) -> None:
        self.page.get_by_test_id("queue-button").first.click()

    def wait_for_message(self, message_type: str) -> None:
        """Wait until a WebSocket message of this type has been received."""
        for _ in range(_PATIENCE * 10):
            if any(message["type"] == message_type for message in self.messages):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(
            f"no message of type {message_type} among {[message['type'] for message in self.messages]}"
        )

    def _listen_to_socket(self, socket: WebSocket) -> None:
        socket.on("framereceived", self._store_message)

    def _store_message(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            self.messages.append(json.loads(frame))


@pytest.fixture(params=[_OWN, _NEWER])
def frontend(
    request: pytest.FixtureRequest, gateway: RunningStack, tmp_path: Path
) -> Iterator[FrontendPage]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is missing: run scripts/chromium.sh"
    # The page is served once some ComfyUI has said which nodes there are.
    stack_client = StackClient(gateway.url, gateway.api_key)
    job = stack_client.submit({"kind": "render", "workflow": picture(next(_colors))})
    stack_client.wait(job, {"succeeded"}, _PATIENCE)
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "browser", executable_path=chromium, args=[*_FLAGS],
            timeout=_PATIENCE * 1000,
        )  # fmt: skip
        stack.callback(context.close)
        context.set_default_timeout(_PATIENCE * 1000)
        # Else a newcomer is shown templates first.
        response = context.request.post(
            f"{gateway.url}/settings/Comfy.TutorialCompleted",
            data="true",
            headers={
                "authorization": f"Bearer {gateway.api_key}",
                "content-type": "application/json",
            },
        )
        assert response.ok, response.text()
        frontend = FrontendPage(context.pages[0])
        if request.param == _OWN:
            frontend.page.goto(f"{gateway.url}/comfy/")
            frontend.page.fill("#key", gateway.api_key)
            frontend.page.click("button")
        else:
            profile, files = (
                read_profile(gateway.layout.profile, {}),
                install_clients(tmp_path).frontend,
            )
            url = stack.enter_context(other_frontend(profile, files))
            frontend.page.goto(f"{url}/")
        frontend.page.wait_for_function(_READY)
        assert frontend.page.evaluate(_VERSION) == request.param
        yield frontend


def test_a_prompt_is_queued_watched_and_its_picture_shown(frontend: FrontendPage) -> None:
    assert frontend.page.evaluate("window.saidByANodePackage") == "hello"
    color = next(_colors)
    frontend.load_graph(picture(color))
    frontend.queue_graph()
    frontend.wait_for_message("execution_success")
    message_types = [message["type"] for message in frontend.messages]
    assert {"status", "execution_start", "progress_state", "executing", "executed"} <= set(
        message_types
    )
    frontend.page.wait_for_function(f"({_SHOWN})().length === 1")
    [(icon_path, *icon_response)] = frontend.page.evaluate(_ICONS)
    assert icon_response == [200, "image/png"], icon_path
    shown_images = frontend.page.evaluate(_SHOWN)
    assert frontend.page.evaluate(_PIXEL, shown_images) == [
        color >> 16,
        color >> 8 & 255,
        color & 255,
    ]


def test_a_running_prompt_is_cancelled(frontend: FrontendPage, gateway: RunningStack) -> None:
    frontend.load_graph(sleepy(60, next(_colors)))
    frontend.queue_graph()
    frontend.wait_for_message("executing")
    frontend.page.get_by_role("button", name="Cancel current run").first.click()
    frontend.wait_for_message("execution_interrupted")
    [prompt_id] = [
        m["data"]["prompt_id"] for m in frontend.messages if m["type"] == "execution_start"
    ]
    stack_client = StackClient(gateway.url, gateway.api_key)
    stack_client.wait(prompt_id, {"cancelled"}, _PATIENCE)


def find_templates(comfyui: ComfyUI) -> dict[str, dict[str, Any]]:
    """Return, by name, ComfyUI's examples that have subgraphs, or nodes that never run (reroutes)."""
    workflows = {}
    template_pattern = (
        "lib/python*/site-packages/comfyui_workflow_templates_media_*/templates/*.json"
    )
    for path in sorted(comfyui.python.parent.parent.glob(template_pattern)):
        workflow = json.loads(path.read_text())
        if not isinstance(workflow, dict) or "nodes" not in workflow:
            continue
        subgraphs = (workflow.get("definitions") or {}).get("subgraphs", [])
        nodes = [node for graph in (workflow, *subgraphs) for node in graph["nodes"]]
        if subgraphs or any(
            node["type"] in ("PrimitiveNode", "Reroute") or node.get("mode") for node in nodes
        ):
            workflows[path.stem] = workflow
    return workflows


@pytest.mark.parametrize("frontend", [_OWN], indirect=True)
def test_graphs_of_the_editor_are_converted_as_the_frontend_does(
    frontend: FrontendPage, gateway: RunningStack, comfyui: ComfyUI
) -> None:
    """Compare everything but titles, because the frontend translates the names of classes."""
    api = frontend.page.context.request
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    classes = api.get(f"{gateway.url}/object_info", headers=headers).json()
    templates = find_templates(comfyui)
    # Those with subgraphs first.
    chosen_names = sorted(templates, key=lambda name: "definitions" not in templates[name])
    workflows = {**{name: templates[name] for name in chosen_names[:_MAX_TEMPLATES]}, **MADE}
    assert len(workflows) == _MAX_TEMPLATES + len(MADE)
    for name, workflow in workflows.items():
        expected_nodes = frontend.page.evaluate(_CONVERT, workflow)
        response = api.post(
            f"{gateway.url}/graphs/convert", data={"graph": workflow}, headers=headers
        )
        assert response.ok, (name, response.text())
        conversion = response.json()
        assert conversion["graph"].keys() == expected_nodes.keys(), name
        for node_id, node in conversion["graph"].items():
            class_type = node["class_type"]
            inputs = expected_nodes[node_id]["inputs"]
            # Players of audio are inputs only in the page.
            compared_names = {
                key
                for key, value in inputs.items()
                if isinstance(value, list) or key in list_inputs(classes.get(class_type, {}))
            }
            assert node["inputs"] == {key: inputs[key] for key in compared_names}, (name, node_id)


def list_inputs(node_class: dict[str, Any]) -> set[str]:
    inputs = node_class.get("input", {})
    return {*inputs.get("required", {}), *inputs.get("optional", {})}
