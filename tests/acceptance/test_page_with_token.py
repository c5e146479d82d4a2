"""Tests that a page of another origin follows a render in a browser with only an event token."""

from __future__ import annotations

import json
import select
import shutil
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Request, sync_playwright

from tests.acceptance.clients_page import list_snippets
from tests.chaos.client import StackClient
from tests.stack import PAGE_ORIGIN, RunningStack

_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    # The page's host exists in the test only; the gateway is on this machine.
    "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",
)  # fmt: skip
_PATIENCE = 240
_DOCS = Path(__file__).parents[2] / "docs" / "jobs.md"
_HTML = "<!doctype html><title>A page</title><img id=picture alt=''><output id=status></output>"
_RECORDER = """
window.seen = {sse: [], ws: [], previews: 0, opened: 0, closed: null, sources: []};
new MutationObserver(() => seen.sources.push(picture.src))
  .observe(picture, {attributes: true, attributeFilter: ["src"]});
const types = ["queued", "running", "progress", "step", "succeeded", "failed", "cancelled"];
const source = new EventSource(`${gateway}/jobs/${job}/events?token=${token}`);
source.onopen = () => seen.opened++;
for (const type of types) source.addEventListener(type, event => seen.sse.push(event.lastEventId));
const url = `${gateway}/jobs/${job}/ws?previews=true&token=${token}`.replace("http", "ws");
new WebSocket(url).onmessage = first => {
  // Another socket goes on after the first event.
  first.target.close();
  seen.ws.push(JSON.parse(first.data).id);
  follow();
};
function follow() {
  const rest = new WebSocket(`${url}&after=${seen.ws.at(-1)}`);
  rest.onmessage = ({data}) => {
    const {id, type} = JSON.parse(data);
    if (type === "preview") seen.previews++; else seen.ws.push(id);
  };
  rest.onclose = ({code}) => code === 1006 ? setTimeout(follow, 200) : seen.closed = code;
}
"""


class BreakableRelay:
    """Forwards TCP connections to the gateway; `break_connections` breaks the open ones."""

    def __init__(self, gateway: str) -> None:
        self._address = (urlsplit(gateway).hostname or "", urlsplit(gateway).port or 0)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept_connections)]
        self._threads[0].start()

    def break_connections(self) -> None:
        """Break all open connections; new connections are forwarded as before."""
        for client_socket in tuple(self._open):
            with suppress(OSError):  # the browser may have closed it meanwhile
                client_socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._server.close()
        self.break_connections()
        for thread in self._threads[1:]:
            thread.join()

    def _accept_connections(self) -> None:
        with suppress(OSError):  # `close` ends the loop
            while True:
                client_socket, _ = self._server.accept()
                self._open.add(client_socket)
                self._threads.append(
                    threading.Thread(target=self._forward_bytes, args=(client_socket,))
                )
                self._threads[-1].start()

    def _forward_bytes(self, client_socket: socket.socket) -> None:
        """Copy bytes in both directions until either side closes."""
        with (
            client_socket,
            socket.create_connection(self._address) as server_socket,
            suppress(OSError),
        ):
            peer_of = {client_socket: server_socket, server_socket: client_socket}
            while True:
                for source in select.select([client_socket, server_socket], [], [])[0]:
                    received_bytes = source.recv(65_536)
                    if not received_bytes:
                        self._open.discard(client_socket)
                        return
                    peer_of[source].sendall(received_bytes)


@pytest.fixture
def relay(gateway: RunningStack) -> Iterator[BreakableRelay]:
    relay = BreakableRelay(gateway.url)
    yield relay
    relay.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is missing: run scripts/chromium.sh"
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "browser", executable_path=chromium, args=[*_FLAGS],
            timeout=_PATIENCE * 1000,
        )  # fmt: skip
        stack.callback(context.close)
        context.set_default_timeout(_PATIENCE * 1000)
        page = context.pages[0]
        page.route(f"{PAGE_ORIGIN}/**", lambda route: route.fulfill(
            body=_HTML, content_type="text/html"))  # fmt: skip
        page.goto(f"{PAGE_ORIGIN}/render")
        yield page


def test_a_page_follows_a_render_and_shows_it(
    gateway: RunningStack, relay: BreakableRelay, page: Page
) -> None:
    client = StackClient(gateway.url, gateway.api_key)
    job = client.submit({"kind": "render", "workflow": _make_previewing_graph()})
    token = _post(gateway, f"/jobs/{job}/token", {"expires_in": 900})["token"]
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))
    _, snippet = list_snippets(_DOCS)["page"]
    page.evaluate(
        "values => Object.assign(window, values)",
        {"gateway": relay.url, "job": job, "token": token},
    )
    page.add_script_tag(content=f"{{{_RECORDER}}}")
    page.add_script_tag(content=f"{{{snippet}}}")
    page.wait_for_function("seen.sse.length >= 2 && seen.ws.length >= 2 && seen.opened === 1")
    page.wait_for_function("picture.src.includes('/preview?') && picture.naturalWidth === 64")
    # The browser's EventSource resumes by itself; sockets are left to the page.
    relay.break_connections()
    page.wait_for_function("seen.opened === 2")
    page.wait_for_function("document.querySelector('#status').textContent === 'succeeded'")
    page.wait_for_function("seen.closed !== null && picture.naturalWidth === 256")
    page_record = page.evaluate("seen")
    ids = [event["id"] for event in _list_stored_events(gateway, job)]
    page.wait_for_function(f"seen.sse.length >= {len(ids)}")
    page_record = page.evaluate("seen")
    assert (page_record["sse"], page_record["ws"], page_record["closed"]) == (ids, ids, 1000)
    assert page_record["previews"] >= 1
    previews = [source for source in page_record["sources"] if "/preview?" in source]
    assert len(previews) >= 2 and len(set(previews)) == len(previews)
    for request in requests:
        assert "authorization" not in request.headers and "x-api-key" not in request.headers
        assert token not in request.headers.get("referer", "")
        assert gateway.api_key not in request.url


def _make_previewing_graph() -> dict[str, Any]:
    return {
        "1": {"class_type": "Previews", "inputs": {"count": 60}},
        "2": {"class_type": "EmptyImage", "inputs": {
            "width": 320, "height": 240, "batch_size": 1, "color": 0x3B0001}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "page"}},
    }  # fmt: skip


def _post(gateway: RunningStack, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {gateway.api_key}", "content-type": "application/json"}
    request = urllib.request.Request(
        gateway.url + path, json.dumps(body).encode(), headers=headers, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        response_body: dict[str, Any] = json.load(response)
        return response_body


def _list_stored_events(gateway: RunningStack, job: str) -> list[dict[str, str]]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    request = urllib.request.Request(f"{gateway.url}/jobs/{job}/events", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        lines = response.read().decode().splitlines()
    return [{"id": line.removeprefix("id: ")} for line in lines if line.startswith("id: ")]
