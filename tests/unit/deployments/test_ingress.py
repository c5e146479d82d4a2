from __future__ import annotations

import json
from socket import gaierror
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from deployments.ingress import SecurityHeadersMiddleware, new_fastapi
from moyin.access.gatekeeper import render_problem_details
from moyin.access.gatekeeper.asgi import Message
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.access.gatekeeper.observation import NoObserver
from moyin.testing.fakes import StaticAuthenticator


async def respond_with_error(error: Exception) -> tuple[int, dict[bytes, bytes], Any]:
    """Return status, headers and body of the response to a request whose route raises ``error``."""
    app = new_fastapi("test", errors=render_problem_details, description="")

    @app.get("/x")
    async def fail() -> None:
        raise error

    gatekeeper = Gatekeeper(
        app,
        service="test",
        authenticator=StaticAuthenticator({}),
        error_renderer=render_problem_details,
        max_body_bytes=1,
        observer=NoObserver(),
        public_paths=frozenset({"/x"}),
    )
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    scope = {
        "type": "http", "method": "GET", "path": "/x", "raw_path": b"/x", "query_string": b"",
        "headers": [(b"host", b"gateway")], "scheme": "http", "http_version": "1.1",
    }  # fmt: skip
    await gatekeeper(scope, receive, send)
    response_start, response_body = messages
    return (
        response_start["status"],
        dict(response_start["headers"]),
        json.loads(response_body["body"]),
    )


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("a mistake of ours"), 500, "internal_error"),
        (OperationalError("SELECT 1", None, Exception()), 503, "service_unavailable"),
        (ConnectionRefusedError(111, "Connect call failed"), 503, "service_unavailable"),
        (gaierror(-2, "Name or service not known"), 503, "service_unavailable"),
        # asyncio raises this for a host with several addresses.
        (OSError("Multiple exceptions: [Errno 111] a, [Errno 111] b"), 503, "service_unavailable"),
        (OSError(28, "No space left on device"), 500, "internal_error"),
    ],
)
async def test_unexpected_exception_becomes_a_problem_document(
    error: Exception, status: int, code: str
) -> None:
    received_status, headers, body = await respond_with_error(error)
    assert (received_status, body["code"]) == (status, code)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert body["request_id"].encode() == headers[b"x-request-id"]
    assert "mistake" not in body["detail"]


def test_response_gets_security_headers_and_keeps_its_own() -> None:
    page = PlainTextResponse("a", headers={"X-Frame-Options": "SAMEORIGIN"})
    response = TestClient(SecurityHeadersMiddleware(page)).get("/")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers.get_list("x-frame-options") == ["SAMEORIGIN"]


def test_refusal_of_a_nul_character_has_security_headers() -> None:
    app = new_fastapi("test", errors=render_problem_details, description="")
    gatekeeper = Gatekeeper(
        app,
        service="test",
        authenticator=StaticAuthenticator({}),
        error_renderer=render_problem_details,
        max_body_bytes=1,
        observer=NoObserver(),
        public_paths=lambda scope: True,
    )
    response = TestClient(gatekeeper).get("/a%00b")
    assert response.status_code == 404
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
