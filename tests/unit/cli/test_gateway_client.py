from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from moyin.cli.chat import stream_answer
from moyin.cli.following import follow, save_artifacts
from moyin.cli.gateway_client import Door, Event, Refused
from moyin.errors import StackError
from moyin.stack.profile import Profile

Stub = tuple[Door, dict[str, Any]]


def _job(status: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {"id": "j1", "status": status, "artifacts": [], "error": None, **more}


async def _events(request: web.Request, *frames: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for frame in frames:
        await response.write(frame.encode())
    return response


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"code": "job_not_found", "detail": "no job"}, "job_not_found", "no job"),
        ({"error": {"code": "model_not_found", "message": "no"}}, "model_not_found", "no"),
        ({"error": {"type": "not_found_error", "message": "no"}}, "not_found_error", "no"),
        ({"error": "plain"}, "http_404", "plain"),
    ],
)
async def test_every_shape_of_error_gives_its_code(
    stub: Stub, body: Any, code: str, message: str
) -> None:
    door, handlers = stub

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response(body, status=404)

    handlers["/x"] = refuse
    with pytest.raises(Refused) as failure:
        await door.call("GET", "/x")
    assert (failure.value.answer_code, failure.value.message) == (code, message)


async def test_a_refused_graph_names_its_nodes(stub: Stub) -> None:
    door, handlers = stub
    error = {"message": "Value not in list", "details": "color: -1"}

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response(
            {"code": "invalid_graph", "detail": "bad", "node_errors": {"3": {"errors": [error]}}},
            status=400,
        )

    handlers["/jobs"] = refuse
    with pytest.raises(Refused, match="bad; node 3: Value not in list color: -1"):
        await door.call("POST", "/jobs", {})


async def test_nobody_there_is_one_line() -> None:
    async with Door(Profile(url="http://127.0.0.1:1", api_key="")) as door:
        with pytest.raises(StackError, match=r"nobody answers at http://127.0.0.1:1"):
            await door.call("GET", "/jobs")


def test_an_event_has_its_lines_joined_and_its_comment_apart() -> None:
    event = Event(b'id: 7\nevent: progress\ndata: {"value":\ndata: 1}\n\n')
    assert (event.id, event.type, event.data) == ("7", "progress", {"value": 1})
    assert Event(b": x-moyin-cost-usd=0.1\n\n").comment == "x-moyin-cost-usd=0.1"


async def test_an_answer_streams_and_ends_with_its_cost(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    door, handlers = stub

    async def answer(request: web.Request) -> web.StreamResponse:
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

    handlers["/v1/chat/completions"] = answer
    told = await stream_answer(door, "hi", model="auto")
    assert told.text == "Hello"
    assert told.summary() == "local · small · $0.25"
    assert told.request_id == "r1"
    assert capsys.readouterr().out == "Hello"


async def test_an_error_within_a_stream_is_an_error(stub: Stub) -> None:
    door, handlers = stub

    async def answer(request: web.Request) -> web.StreamResponse:
        return await _events(
            request, 'data: {"error":{"code":"stream_interrupted","message":"gone"}}\n\n'
        )

    handlers["/v1/chat/completions"] = answer
    with pytest.raises(Refused, match="gone"):
        await stream_answer(door, "hi", model="auto")


async def test_following_goes_on_after_a_broken_connection_where_it_was(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.cli.following._RECONNECT_SECONDS", 0)
    door, handlers = stub
    asked: list[str | None] = []

    async def events(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("last-event-id"))
        if len(asked) == 1:
            response = await _events(
                request, 'id: 1-0\nevent: progress\ndata: {"value":1,"max":2}\n\n'
            )
            assert request.transport is not None
            request.transport.abort()
            return response
        if len(asked) == 2:
            return web.json_response({"code": "overloaded", "detail": ""}, status=503)
        return await _events(request, "id: 2-0\nevent: succeeded\ndata: {}\n\n")

    async def show(_: web.Request) -> web.Response:
        return web.json_response(_job())

    handlers["/jobs/j1/events"] = events
    handlers["/jobs/j1"] = show
    assert (await follow(door, "j1"))["status"] == "succeeded"
    assert asked == [None, "1-0", "1-0"]


async def test_an_unknown_job_is_not_waited_for(stub: Stub) -> None:
    door, handlers = stub

    async def events(_: web.Request) -> web.Response:
        return web.json_response({"code": "job_not_found", "detail": "no"}, status=404)

    handlers["/jobs/j1/events"] = events
    with pytest.raises(Refused):
        await follow(door, "j1")


async def test_pictures_never_replace_files_nor_leave_the_folder(
    stub: Stub, tmp_path: Path
) -> None:
    door, handlers = stub

    async def picture(_: web.Request) -> web.Response:
        return web.Response(body=b"png")

    handlers["/artifacts/a"] = picture
    job = _job(
        artifacts=[
            {"url": "/artifacts/a", "name": "x.png"},
            {"url": "/artifacts/a", "name": "x.png"},
            {"url": "/artifacts/a", "name": "../../etc/passwd"},
        ]
    )
    saved = await save_artifacts(door, job, tmp_path / "out")
    assert [path.name for path in saved] == ["x.png", "x-1.png", "_.._etc_passwd"]
    assert all(path.parent == tmp_path / "out" for path in saved)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in saved
    )
