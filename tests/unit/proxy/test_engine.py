"""What becomes of a request before it is passed on; no service is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from moyin.access.gatekeeper.context import RequestContext
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.errors import InsufficientScope, RateLimited
from moyin.proxy import Proxy
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


class UsedUp:
    """A meter whose minute is over before it began."""

    async def admit(self, *_: Any, **__: Any) -> None:
        raise RateLimited("1 requests a minute are used up")


class Accepting:
    """Makes no jobs, and says that it did."""

    id = "j1"

    async def submit(self, *_: Any, **__: Any) -> tuple[Any, bool]:
        return self, True

    def is_job(self, identity: Identity) -> bool:
        return identity.service == "jobs"

    def described(self, job: Any) -> dict[str, Any]:
        return {"id": job.id}


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    parts: Any = {"meter": UsedUp(), "deferral": Accepting()}
    proxy = Proxy(signing_key=b"s", **parts)
    proxy.configure(RouteTable([ROUTE]))
    await proxy.start()
    yield proxy
    await proxy.close()


async def called(proxy: Proxy, identity: Identity) -> int:
    """The status of a call."""
    told: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        told.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/slow/x", "raw_path": b"/slow/x",
        "query_string": b"", "headers": [], "client": ("127.0.0.1", 1), "scheme": "http",
        "moyin": RequestContext(request_id="r", identity=identity),
    }  # fmt: skip
    await proxy(scope, receive, send)
    status: int = told[0]["status"]
    return status


async def test_a_call_that_becomes_a_job_is_counted_when_the_job_makes_it(proxy: Proxy) -> None:
    assert await called(proxy, ANN) == 202
    with pytest.raises(RateLimited):
        await called(proxy, JOB)


async def test_no_job_is_made_of_what_the_caller_may_not_do(proxy: Proxy) -> None:
    with pytest.raises(InsufficientScope):
        await called(proxy, Identity(owner="ann", key_id="k", scopes=frozenset()))
