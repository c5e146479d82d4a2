from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from deployments.middleware import new_cors_middleware

PAGE = "https://play.example"


async def respond(_: Request) -> PlainTextResponse:
    return PlainTextResponse("a")


def make_client(origins: str) -> TestClient:
    app = Starlette(
        routes=[Route("/", respond, methods=["POST"])], middleware=new_cors_middleware(origins)
    )
    return TestClient(app)


def send_preflight(client: TestClient, origin: str) -> Any:
    headers = {"origin": origin, "access-control-request-method": "POST",
               "access-control-request-headers": "authorization"}  # fmt: skip
    return client.options("/", headers=headers)


def test_configured_origin_may_call_and_read() -> None:
    preflight_response = send_preflight(make_client(f"{PAGE}, https://other.example"), PAGE)
    assert preflight_response.headers["access-control-allow-origin"] == PAGE
    assert preflight_response.headers["access-control-allow-headers"] == "authorization"
    response = make_client(PAGE).post("/", headers={"origin": PAGE})
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers


def test_other_origins_may_not_call() -> None:
    assert send_preflight(make_client(PAGE), "https://evil.example").status_code == 400
    response = make_client(PAGE).post("/", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers
    assert new_cors_middleware("") == []
