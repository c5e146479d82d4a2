"""Tests what `Proxy` does before it forwards a request; no service is called."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from moyin.access.gatekeeper.context import RequestContext
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.errors import InsufficientScope, RateLimited
from moyin.proxy.engine import Proxy
from moyin.proxy.route import Route, RouteTable, Upstream

ROUTE = Route(
    name="slow",
    upstreams=(Upstream(url="http://127.0.0.1:9"),),
    prefix="/slow",
    limit=Limit(subject="route:slow", requests_per_minute=1, concurrent_requests=1),
    scopes=frozenset({"shots"}),
    respond_async=True,
)
ANN = Identity(owner="ann", key_id="k", scopes=frozenset({"shots"}))
JOB = Identity(owner="ann", key_id="k", scopes=frozenset({"shots"}), service="jobs")


class ExhaustedMeter:
    """A meter that rejects every request as over its limit."""

    async def admit(self, *_: Any, **__: Any) -> None:
        raise RateLimited("1 requests a minute are used up")


class FakeDeferral:
    """A fake deferral that returns a job for every call."""

    id = "j1"

    async def submit(self, *_: Any, **__: Any) -> tuple[Any, bool]:
        return self, True

    def is_called_by_job(self, identity: Identity) -> bool:
        return identity.service == "jobs"

    def render_job(self, job: Any) -> dict[str, Any]:
        return {"id": job.id}


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    fakes: Any = {"meter": ExhaustedMeter(), "deferral": FakeDeferral()}
    proxy = Proxy(signing_key=b"s", **fakes)
    proxy.configure(RouteTable([ROUTE]))
    await proxy.start()
    yield proxy
    await proxy.close()


async def call_route(proxy: Proxy, identity: Identity) -> int:
    """Call the route and return the response's status."""
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/slow/x", "raw_path": b"/slow/x",
        "query_string": b"", "headers": [], "client": ("127.0.0.1", 1), "scheme": "http",
        "moyin": RequestContext(request_id="r", identity=identity),
    }  # fmt: skip
    await proxy(scope, receive, send)
    status: int = messages[0]["status"]
    return status


async def test_a_deferred_call_counts_against_limits_when_the_job_makes_it(proxy: Proxy) -> None:
    assert await call_route(proxy, ANN) == 202
    with pytest.raises(RateLimited):
        await call_route(proxy, JOB)


async def test_a_call_without_the_routes_scopes_is_not_deferred(proxy: Proxy) -> None:
    with pytest.raises(InsufficientScope):
        await call_route(proxy, Identity(owner="ann", key_id="k", scopes=frozenset()))
