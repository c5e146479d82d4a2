from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from moyin.cli.chat import stream_answer
from moyin.cli.following import follow_job, save_artifacts
from moyin.client.errors import RequestRefused
from moyin.client.gateway import GatewayClient
from moyin.errors import JobNotFound

StubGateway = tuple[GatewayClient, dict[str, Any]]


def _make_job(status: str = "succeeded", **kwargs: Any) -> dict[str, Any]:
    return {"id": "j1", "status": status, "artifacts": [], "error": None, **kwargs}


async def _send_events(request: web.Request, *frames: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for frame in frames:
        await response.write(frame.encode())
    return response


async def test_answer_streams_and_ends_with_its_cost(
    stub_gateway: StubGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway, handlers = stub_gateway

    async def respond(request: web.Request) -> web.StreamResponse:
        assert (await request.json())["model"] == "auto"
        response = web.StreamResponse(
            headers={"x-moyin-backend": "local", "x-moyin-model": "small", "x-request-id": "r1"}
        )
        await response.prepare(request)
        for piece in ("Hel", "lo"):
            chunk = json.dumps({"choices": [{"delta": {"content": piece}}]})
            await response.write(f"data: {chunk}\n\n".encode())
        await response.write(b"data: [DONE]\n\n: x-moyin-cost-usd=0.25\n\n")
        return response

    handlers["/v1/chat/completions"] = respond
    answer = await stream_answer(gateway, "hi", model="auto")
    assert answer.text == "Hello"
    assert answer.format_summary() == "local · small · $0.25"
    assert answer.request_id == "r1"
    assert capsys.readouterr().out == "Hello"


async def test_error_in_a_stream_is_raised(stub_gateway: StubGateway) -> None:
    gateway, handlers = stub_gateway

    async def respond(request: web.Request) -> web.StreamResponse:
        return await _send_events(
            request, 'data: {"error":{"code":"stream_interrupted","message":"gone"}}\n\n'
        )

    handlers["/v1/chat/completions"] = respond
    with pytest.raises(RequestRefused, match="gone"):
        await stream_answer(gateway, "hi", model="auto")


async def test_following_resumes_after_a_broken_connection(
    stub_gateway: StubGateway,
) -> None:
    gateway, handlers = stub_gateway
    last_event_ids: list[str | None] = []

    async def stream_events(request: web.Request) -> web.StreamResponse:
        last_event_ids.append(request.headers.get("last-event-id"))
        if len(last_event_ids) == 1:
            response = await _send_events(
                request, 'id: 1-0\nevent: progress\ndata: {"value":1,"max":2}\n\n'
            )
            assert request.transport is not None
            request.transport.abort()
            return response
        if len(last_event_ids) == 2:
            return web.json_response({"code": "overloaded", "detail": ""}, status=503)
        return await _send_events(
            request, f"id: 2-0\nevent: succeeded\ndata: {json.dumps(_make_job())}\n\n"
        )

    handlers["/jobs/j1/events"] = stream_events
    assert await follow_job(gateway, "j1") == _make_job()
    assert last_event_ids == [None, "1-0", "1-0"]


async def test_following_an_unknown_job_ends_at_once(stub_gateway: StubGateway) -> None:
    gateway, handlers = stub_gateway

    async def report_unknown_job(_: web.Request) -> web.Response:
        return web.json_response({"code": "job_not_found", "detail": "no"}, status=404)

    handlers["/jobs/j1/events"] = report_unknown_job
    with pytest.raises(JobNotFound):
        await follow_job(gateway, "j1")


async def test_artifacts_never_overwrite_files_or_leave_the_folder(
    stub_gateway: StubGateway, tmp_path: Path
) -> None:
    gateway, handlers = stub_gateway

    async def send_picture(_: web.Request) -> web.Response:
        return web.Response(body=b"png")

    handlers["/artifacts/a"] = send_picture
    job = _make_job(
        artifacts=[
            {"url": "/artifacts/a", "name": "x.png"},
            {"url": "/artifacts/a", "name": "x.png"},
            {"url": "/artifacts/a", "name": "../../etc/passwd"},
        ]
    )
    saved_paths = await save_artifacts(gateway, job, tmp_path / "out")
    assert [path.name for path in saved_paths] == ["x.png", "x-1.png", "_.._etc_passwd"]
    assert all(path.parent == tmp_path / "out" for path in saved_paths)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in saved_paths
    )
