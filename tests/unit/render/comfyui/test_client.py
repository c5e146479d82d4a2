"""Tests the limits on responses of a ComfyUI whose nodes may be hostile."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from moyin.errors import BackendError, InvalidGraph, MoyinError, RenderFailed, ServiceUnavailable
from moyin.render.comfyui.client import ComfyClient
from moyin.render.comfyui.paths import HostPathFilter
from moyin.render.comfyui.untrusted_json import MalformedResponse


async def test_prompt_with_too_large_outputs_fails_and_is_dropped(
    tmp_path: Path,
) -> None:
    requests: list[Any] = []

    async def serve_prompt_state(request: web.Request) -> web.Response:
        requests.append(await request.json())
        output_text = "x" * (9 * 1024 * 1024 if requests[-1]["prompt_id"] == "huge" else 1024)
        status = {"status_str": "success", "completed": True}
        entry = {"outputs": {"1": {"text": [output_text]}}, "status": status}
        return web.json_response({"queued": False, "entry": entry})

    app = web.Application()
    app.router.add_post("/moyin/look", serve_prompt_state)
    runner = web.AppRunner(app)
    await runner.setup()
    address = str(tmp_path / "comfyui.sock")
    await web.UnixSite(runner, address).start()
    async with ComfyClient(address, "c", HostPathFilter({})) as client:
        with pytest.raises(RenderFailed, match="exceed the limit of 8,388,608 bytes") as exc_info:
            await client.get_prompt_state("huge")
        assert not exc_info.value.retryable
        assert (await client.get_prompt_state("small")).entry is not None
    await runner.cleanup()
    assert requests == [
        {"prompt_id": "huge", "forget": []},
        {"prompt_id": "small", "forget": ["huge"]},
    ]


@asynccontextmanager
async def run_client(
    folder: Path, respond: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[ComfyClient]:
    """Yield the client of a server that answers every request by ``respond``."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "comfyui.sock")).start()
    async with ComfyClient(str(folder / "comfyui.sock"), "c", HostPathFilter({})) as client:
        yield client
    await runner.cleanup()


BODIES = [
    b"", b"null", b"[]", b"1", b'"text"', b"{}", b"{", b"\xff", b'{"error": []}', b"[[1]]",
    b'{"queued": 1}', b'{"prompt_id": "p", "number": "x"}', b'{"prompt_id": "other", "number": 1}',
    b'{"devices": [{"type": "cuda", "vram_total": -1}]}',
    b'{"devices": [{"type": "cuda", "vram_total": ' + b"9" * 300 + b"}]}",
    b'{"queued": false, "entry": {"outputs": {"1": []}, "status": {}}}',
    b'{"queued": false, "entry": {"status": {"messages": [["a"]]}}}',
    b"[" * 700 + b"]" * 700, b"[" * 100_000, b"9" * 5000, b"[" + b"1," * 1_000_001 + b"1]",
]  # fmt: skip


@pytest.mark.parametrize("status", [200, 302, 400, 404, 500, 503])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:40]))
async def test_any_answer_raises_no_other_error_than_those_of_moyin(
    tmp_path: Path, body: bytes, status: int
) -> None:
    async def respond(_: web.Request) -> web.Response:
        headers = {"location": "http://127.0.0.1/elsewhere"}
        return web.Response(
            body=body, status=status, content_type="application/json", headers=headers
        )

    async with run_client(tmp_path, respond) as client:
        for call in (
            lambda: client.submit("p", {}),
            lambda: client.validate({}),
            lambda: client.get_prompt_state("p"),
            lambda: client.interrupt("p"),
            lambda: client.unload_models(),
            lambda: client.get("/object_info"),
            lambda: client.get("/extensions/a/a.json"),
            lambda: client.list_volatile_classes(),
            lambda: client.read_total_memory(),
            lambda: client.is_executor_alive(),
        ):
            with suppress(MoyinError):
                await call()


async def test_deep_errors_of_a_graph_do_not_make_comfyui_malformed(tmp_path: Path) -> None:
    """ComfyUI repeats invalid values of a graph, which its sender may have nested deeply."""

    async def respond(_: web.Request) -> web.Response:
        body = b'{"error": ' + b"[" * 150 + b"]" * 150 + b"}"
        return web.Response(body=body, status=400)

    async with run_client(tmp_path, respond) as client:
        with pytest.raises(InvalidGraph, match="description of the graph's errors is too large"):
            await client.submit("p", {})
        with pytest.raises(InvalidGraph, match="description of the graph's errors is too large"):
            await client.validate({})


async def test_unreadable_answer_about_a_queued_prompt_is_malformed(tmp_path: Path) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.json_response({"prompt_id": "another", "number": 1})

    async with run_client(tmp_path, respond) as client:
        with pytest.raises(MalformedResponse, match="queued the prompt under another id"):
            await client.submit("p", {})


@pytest.mark.parametrize(
    ("body", "media_type", "rule"),
    [
        (b"\x89PNG" + bytes(32 * 1024**2), "image/png", "33,554,432 bytes"),
        (b"[" + b"1," * 2_000_001 + b"1]", "application/json", "2,000,000 values"),
        (b"[" * 150 + b"]" * 150, "application/json", "100 levels"),
    ],
    ids=["bytes", "values", "depth"],
)
async def test_large_response_to_a_tenants_get_is_not_malformed(
    tmp_path: Path, body: bytes, media_type: str, rule: str
) -> None:
    """`MalformedResponse` would have the process replaced, also for others."""

    async def respond(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=media_type)

    async with run_client(tmp_path, respond) as client:
        with pytest.raises(BackendError, match=rule):
            await client.get("/object_info")


@pytest.mark.parametrize(("value_count", "is_aside"), [(10, False), (60_000, True)])
async def test_paths_in_large_responses_are_hidden_beside_the_event_loop(
    tmp_path: Path, value_count: int, is_aside: bool
) -> None:
    threads: set[bool] = set()

    class RecordingFilter(HostPathFilter):
        def hide_known(self, text: str) -> str:
            threads.add(threading.current_thread() is not threading.main_thread())
            return super().hide_known(text)

    async def respond(_: web.Request) -> web.Response:
        error = {"message": "no", "details": ["/root/secret"] * value_count}
        return web.json_response({"error": error}, status=400)

    async with run_client(tmp_path, respond) as client:
        client._paths = RecordingFilter({Path("/root/folder"): "<folder>"})
        assert (await client.validate({}))["error"]["details"] == ["<path>"] * value_count
        with pytest.raises(InvalidGraph) as exc_info:
            await client.submit("p", {})
    assert exc_info.value.details["error"]["details"] == ["<path>"] * value_count
    assert threads == {is_aside}


async def test_compressed_answers_cookies_and_redirects_are_not_used(tmp_path: Path) -> None:
    requests: list[web.Request] = []

    async def respond(request: web.Request) -> web.Response:
        requests.append(request)
        if request.path == "/redirect":
            raise web.HTTPFound("/elsewhere")
        bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
        return web.Response(
            body=bomb,
            content_type="application/json",
            headers={"content-encoding": "gzip", "set-cookie": "a=b"},
        )

    async with run_client(tmp_path, respond) as client:
        for path in ("/a", "/b"):
            with pytest.raises(MalformedResponse, match="not JSON in UTF-8"):
                await client.get(path)
        with pytest.raises(MoyinError, match="unexpected status 302"):
            await client.get("/redirect")
    assert [request.path for request in requests] == ["/a", "/b", "/redirect"]
    assert all("cookie" not in request.headers for request in requests)
    assert {request.headers["accept-encoding"] for request in requests} == {"identity"}


async def test_only_few_requests_wait_for_a_process_that_does_not_answer(tmp_path: Path) -> None:
    open_count = most_open = 0
    is_over = asyncio.Event()

    async def respond(_: web.Request) -> web.Response:
        nonlocal open_count, most_open
        open_count += 1
        most_open = max(most_open, open_count)
        await is_over.wait()
        open_count -= 1
        return web.json_response({})

    async with run_client(tmp_path, respond) as client:
        tasks = [asyncio.create_task(client.get(f"/{number}")) for number in range(52)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailable, match="48 requests wait"):
            await client.get("/one-too-many")
        is_over.set()
        assert await asyncio.gather(*tasks) == [b"{}"] * 52
        assert await client.get("/later") == b"{}"
    assert most_open <= 4
