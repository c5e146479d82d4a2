from __future__ import annotations

import json
from typing import Any

import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.headers import cors
from deployments.outage import OutageErrors

Answer = tuple[int, dict[str, str], bytes]
NOT_FOUND = "Path '/jobs' not found. Ping http://.../-/routes for available routes."


def serve_answers(text: str, status: int, **headers: str) -> ASGIApp:
    """Answers as Ray Serve's own code does, by its own function."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        extra = [(name.replace("_", "-").encode(), v.encode()) for name, v in headers.items()]
        for message in convert_object_to_asgi_messages(text, status, extra):
            await send(message)

    return app


async def requested(app: ASGIApp, path: str = "/jobs", kind: str = "http") -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    scope = {"type": kind, "path": path, "method": "GET", "headers": [(b"x-request-id", b"r1")]}
    await OutageErrors(app)(scope, receive, send)
    return sent


async def answered(app: ASGIApp, path: str = "/jobs") -> Answer:
    start, body = await requested(app, path)
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(headers) == len(start["headers"])
    return start["status"], headers, body["body"]


@pytest.mark.parametrize(
    "serves, status, code, retry_after",
    [
        (404, 503, "service_unavailable", "5"),
        (503, 503, "service_unavailable", "5"),
        (429, 503, "service_unavailable", "5"),
        (408, 504, "backend_timeout", "5"),
        (500, 500, "internal_error", None),
    ],
)
async def test_serves_own_errors_become_ours(
    serves: int, status: int, code: str, retry_after: str | None
) -> None:
    told, headers, body = await answered(serve_answers(NOT_FOUND, serves))
    problem = json.loads(body)
    assert (told, problem["status"], problem["code"]) == (status, status, code)
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == problem["request_id"] == "r1"
    assert headers["content-length"] == str(len(body))
    assert headers.get("retry-after") == retry_after
    assert headers["x-content-type-options"] == "nosniff"
    assert "Ping" not in problem["detail"]


async def test_the_path_tells_the_shape() -> None:
    app = serve_answers(NOT_FOUND, 404)
    members = {
        path: set(json.loads((await answered(app, path))[2]))
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/prompt", "/accounts/a")
    }
    assert members == {
        "/v1/chat/completions": {"error", "request_id"},
        "/v1/messages": {"type", "error", "request_id"},
        "/api/chat": {"error", "code", "request_id"},
        "/prompt": {"error", "node_errors", "code", "request_id"},
        "/accounts/a": {
            "type", "title", "status", "detail", "instance", "code", "request_id",
        },
    }  # fmt: skip


async def test_the_id_that_serve_gave_is_kept() -> None:
    _, headers, body = await answered(serve_answers("no", 503, x_request_id="serves"))
    assert headers["x-request-id"] == json.loads(body)["request_id"] == "serves"


async def test_no_response_at_all_is_a_lost_replica() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        return

    status, headers, body = await answered(app)
    assert (status, json.loads(body)["code"]) == (502, "worker_lost")
    assert headers["retry-after"] == "1"


async def test_an_exception_is_answered_and_goes_on_to_the_server() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("secret")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/jobs", "headers": []}
    with pytest.raises(ValueError, match="secret"):
        await OutageErrors(app)(scope, _nothing, send)
    assert sent[0]["status"] == 500
    problem = json.loads(sent[1]["body"])
    assert problem["code"] == "internal_error" and "secret" not in str(problem)


@pytest.mark.parametrize(
    "response",
    [
        JSONResponse({"code": "job_not_found"}, 404),
        PlainTextResponse("an upstream's own words", 404),
        PlainTextResponse("fine", 200),
        Response(status_code=499),
    ],
)
async def test_what_an_app_answers_passes(response: Response) -> None:
    status, headers, body = await answered(response)
    assert (status, body) == (response.status_code, response.body)
    assert headers.get("content-type") == response.headers.get("content-type")


async def test_a_stream_of_an_upstream_passes() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain"), (b"date", b"today")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    assert [message.get("body") for message in await requested(app)] == [None, b"a", b"b"]


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
async def test_serves_own_endpoints_pass(path: str) -> None:
    status, _, body = await answered(serve_answers("No replicas are available yet.", 503), path)
    assert (status, body) == (503, b"No replicas are available yet.")


async def test_websockets_pass() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close", "code": 1001})

    assert await requested(app, kind="websocket") == [{"type": "websocket.close", "code": 1001}]


async def test_pages_of_named_origins_may_read_it() -> None:
    [middleware] = cors("https://play.example")
    inside = OutageErrors(serve_answers(NOT_FOUND, 404))
    app: Any = middleware.cls(inside, *middleware.args, **middleware.kwargs)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    origin = [(b"origin", b"https://play.example")]
    await app({"type": "http", "method": "GET", "path": "/jobs", "headers": origin}, _nothing, send)
    assert (b"access-control-allow-origin", b"https://play.example") in sent[0]["headers"]


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
