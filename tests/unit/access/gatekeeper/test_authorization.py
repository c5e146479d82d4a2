"""Tests the authorization middleware in front of a small app."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from moyin.access.gatekeeper import RequestContext
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.access.gatekeeper.authorization import AuthorizationMiddleware, get_admission
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.errors import InsufficientScope, RateLimited

LIMIT = Limit(subject="key:k", requests_per_minute=2, usd_per_day=Decimal(1))


class TwoRequestMeter:
    """A meter that admits the first two requests and refuses all others.

    It records the arguments of admissions and settlements.
    """

    def __init__(self) -> None:
        self.admissions: list[list[Any]] = []
        self.settlements: list[list[Any]] = []

    async def run_admission_script(self, keys: list[str], arguments: list[Any]) -> Any:
        self.admissions.append(arguments)
        remaining_requests = 2 - len(self.admissions)
        return (
            [1, 2, remaining_requests, 60_000]
            if remaining_requests >= 0
            else [0, 0, b"requests", 60_000, 2]
        )

    def settle(self, admission: Any, keys: list[str], arguments: list[Any]) -> None:
        self.settlements.append(arguments)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    admission = get_admission(scope)
    if scope["path"] == "/priced" and admission is not None:
        await admission.reserve(Decimal("0.5"), 10)
        admission.record(Decimal("0.2"), 4)
    if scope["path"] == "/bug":
        raise ZeroDivisionError
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b""})


def make_middleware(meter: Any = None) -> AuthorizationMiddleware:
    return AuthorizationMiddleware(
        app,
        scope_of=lambda scope: "text" if scope["path"] == "/text" else None,
        meter=meter,
        priced_paths=frozenset({"/priced", "/cached"}),
    )


async def send_request(
    app: AuthorizationMiddleware, path: str, identity: Identity | None, scope_type: str = "http"
) -> Any:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    context = RequestContext(request_id="r", identity=identity)
    await app({"type": scope_type, "path": path, "moyin": context}, receive, send)
    return dict(messages[0]["headers"])


def make_identity(*scopes: str, limits: tuple[Limit, ...] = ()) -> Identity:
    return Identity(owner="o", key_id="k", scopes=frozenset(scopes), limits=limits)


@pytest.mark.parametrize("scope_type", ["http", "websocket"])
async def test_a_missing_scope_is_refused_and_named(scope_type: str) -> None:
    with pytest.raises(InsufficientScope) as exc_info:
        await send_request(make_middleware(), "/text", make_identity("jobs:read"), scope_type)
    assert exc_info.value.details == {"scope": "text"}
    for allowed_identity in (make_identity("text"), make_identity("*"), None):
        await send_request(make_middleware(), "/text", allowed_identity)
    await send_request(make_middleware(), "/elsewhere", make_identity())


async def test_callers_without_limits_are_not_counted() -> None:
    meter = TwoRequestMeter()
    for identity in (
        make_identity("*"),
        None,
        make_identity("*", limits=(Limit(subject="key:k", open_jobs=1),)),
    ):
        assert await send_request(make_middleware(meter), "/", identity) == {b"a": b"b"}
    assert meter.admissions == []


async def test_a_limited_request_is_counted_once_and_has_limit_headers() -> None:
    meter = TwoRequestMeter()
    identity = make_identity("*", limits=(LIMIT,))
    headers = await send_request(make_middleware(meter), "/", identity)
    assert (headers[b"ratelimit-limit"], headers[b"ratelimit-remaining"]) == (b"2", b"1")
    await send_request(make_middleware(meter), "/", identity)
    with pytest.raises(RateLimited):
        await send_request(make_middleware(meter), "/", identity)
    assert len(meter.admissions) == 3


async def test_a_priced_call_reserves_and_settles_its_cost() -> None:
    meter = TwoRequestMeter()
    await send_request(make_middleware(meter), "/priced", make_identity("*", limits=(LIMIT,)))
    assert [arguments[2] for arguments in meter.admissions] == [500_000_000]
    assert [arguments[1] for arguments in meter.settlements] == [200_000_000]


async def test_an_unpriced_response_on_a_priced_path_counts_as_a_request() -> None:
    meter = TwoRequestMeter()
    headers = await send_request(
        make_middleware(meter), "/cached", make_identity("*", limits=(LIMIT,))
    )
    assert headers[b"ratelimit-remaining"] == b"1"
    assert [arguments[2] for arguments in meter.admissions] == [0]


async def test_a_failed_app_releases_its_reservation() -> None:
    meter = TwoRequestMeter()
    with pytest.raises(ZeroDivisionError):
        await send_request(make_middleware(meter), "/bug", make_identity("*", limits=(LIMIT,)))
    assert len(meter.settlements) == 1
