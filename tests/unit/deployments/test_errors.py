from __future__ import annotations

import json
from typing import Any

import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ServeErrorMiddleware
from deployments.middleware import new_cors_middleware

Answer = tuple[int, dict[str, str], bytes]
NOT_FOUND = "Path '/jobs' not found. Ping http://.../-/routes for available routes."


def make_serve_app(error_text: str, status: int, **headers: str) -> ASGIApp:
    """Return an app that responds as Ray Serve does to a request that it can't serve itself.

    Args:
        error_text: the text of Ray Serve's message.
        headers: headers of the response, with underscores in their names.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        extra_headers = [
            (name.replace("_", "-").encode(), v.encode()) for name, v in headers.items()
        ]
        for message in convert_object_to_asgi_messages(error_text, status, extra_headers):
            await send(message)

    return app


async def collect_messages(
    app: ASGIApp, path: str = "/jobs", scope_type: str = "http"
) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    scope = {
        "type": scope_type,
        "path": path,
        "method": "GET",
        "headers": [(b"x-request-id", b"r1")],
    }
    await ServeErrorMiddleware(app)(scope, receive, send)
    return messages


async def respond(app: ASGIApp, path: str = "/jobs") -> Answer:
    response_start, response_body = await collect_messages(app, path)
    headers = {name.decode(): value.decode() for name, value in response_start["headers"]}
    assert len(headers) == len(response_start["headers"])
    return response_start["status"], headers, response_body["body"]


@pytest.mark.parametrize(
    ("serve_status", "status", "code", "retry_after"),
    [
        (404, 503, "service_unavailable", "5"),
        (503, 503, "service_unavailable", "5"),
        (429, 503, "service_unavailable", "5"),
        (408, 504, "backend_timeout", "5"),
        (500, 500, "internal_error", None),
    ],
)
async def test_errors_of_serve_are_replaced_by_errors_of_moyin(
    serve_status: int, status: int, code: str, retry_after: str | None
) -> None:
    received_status, headers, body = await respond(make_serve_app(NOT_FOUND, serve_status))
    problem = json.loads(body)
    assert (received_status, problem["status"], problem["code"]) == (status, status, code)
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == problem["request_id"] == "r1"
    assert headers["content-length"] == str(len(body))
    assert headers.get("retry-after") == retry_after
    assert headers["x-content-type-options"] == "nosniff"
    assert "Ping" not in problem["detail"]


async def test_error_has_the_format_of_the_path() -> None:
    app = make_serve_app(NOT_FOUND, 404)
    members_by_path = {
        path: set(json.loads((await respond(app, path))[2]))
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/prompt", "/accounts/a")
    }
    assert members_by_path == {
        "/v1/chat/completions": {"error", "request_id"},
        "/v1/messages": {"type", "error", "request_id"},
        "/api/chat": {"error", "code", "request_id"},
        "/prompt": {"error", "node_errors", "code", "request_id"},
        "/accounts/a": {
            "type", "title", "status", "detail", "instance", "code", "request_id",
        },
    }  # fmt: skip


async def test_request_id_of_serve_is_kept() -> None:
    _, headers, body = await respond(make_serve_app("no", 503, x_request_id="from-serve"))
    assert headers["x-request-id"] == json.loads(body)["request_id"] == "from-serve"


async def test_missing_response_is_reported_as_a_lost_replica() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        return

    status, headers, body = await respond(app)
    assert (status, json.loads(body)["code"]) == (502, "worker_lost")
    assert headers["retry-after"] == "1"


async def test_exception_gets_a_response_and_reaches_the_server() -> None:
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("secret")

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {"type": "http", "path": "/jobs", "headers": []}
    with pytest.raises(ValueError, match="secret"):
        await ServeErrorMiddleware(app)(scope, _receive_disconnect, send)
    assert messages[0]["status"] == 500
    problem = json.loads(messages[1]["body"])
    assert problem["code"] == "internal_error" and "secret" not in str(problem)


@pytest.mark.parametrize(
    "response",
    [
        JSONResponse({"code": "job_not_found"}, 404),
        PlainTextResponse("an upstream's own error", 404),
        PlainTextResponse("fine", 200),
        Response(status_code=499),
    ],
)
async def test_response_of_an_app_is_not_changed(response: Response) -> None:
    status, headers, body = await respond(response)
    assert (status, body) == (response.status_code, response.body)
    assert headers.get("content-type") == response.headers.get("content-type")


async def test_stream_of_an_upstream_is_not_changed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain"), (b"date", b"today")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    assert [message.get("body") for message in await collect_messages(app)] == [None, b"a", b"b"]


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
async def test_endpoints_of_serve_are_not_changed(path: str) -> None:
    status, _, body = await respond(make_serve_app("No replicas are available yet.", 503), path)
    assert (status, body) == (503, b"No replicas are available yet.")


async def test_websocket_is_not_changed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close", "code": 1001})

    assert await collect_messages(app, scope_type="websocket") == [
        {"type": "websocket.close", "code": 1001}
    ]


async def test_configured_origin_may_read_the_error() -> None:
    [middleware] = new_cors_middleware("https://play.example")
    inner_app = ServeErrorMiddleware(make_serve_app(NOT_FOUND, 404))
    app: Any = middleware.cls(inner_app, *middleware.args, **middleware.kwargs)
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    origin_headers = [(b"origin", b"https://play.example")]
    await app(
        {"type": "http", "method": "GET", "path": "/jobs", "headers": origin_headers},
        _receive_disconnect,
        send,
    )
    assert (b"access-control-allow-origin", b"https://play.example") in messages[0]["headers"]


async def _receive_disconnect() -> Message:
    return {"type": "http.disconnect"}
