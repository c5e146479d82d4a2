from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from deployments.headers import SecurityHeaders, cors

PAGE = "https://play.example"


async def answer(_: Request) -> PlainTextResponse:
    return PlainTextResponse("a", headers={"X-Frame-Options": "SAMEORIGIN"})


def client(origins: str) -> TestClient:
    app = Starlette(routes=[Route("/", answer, methods=["POST"])], middleware=cors(origins))
    return TestClient(SecurityHeaders(app))


def preflight(client: TestClient, origin: str) -> Any:
    asked = {"origin": origin, "access-control-request-method": "POST",
             "access-control-request-headers": "authorization"}  # fmt: skip
    return client.options("/", headers=asked)


def test_pages_of_a_named_origin_may_call_and_read() -> None:
    asked = preflight(client(f"{PAGE}, https://other.example"), PAGE)
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert asked.headers["access-control-allow-headers"] == "authorization"
    told = client(PAGE).post("/", headers={"origin": PAGE})
    assert told.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in told.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in told.headers


def test_pages_of_others_may_not() -> None:
    assert preflight(client(PAGE), "https://evil.example").status_code == 400
    told = client(PAGE).post("/", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in told.headers
    assert cors("") == []


def test_answers_carry_security_headers_and_keep_their_own() -> None:
    told = client("").post("/")
    assert told.headers["x-content-type-options"] == "nosniff"
    assert told.headers.get_list("x-frame-options") == ["SAMEORIGIN"]
