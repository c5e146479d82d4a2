"""Tests that open connections are closed when their key, session or scope ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from moyin.access.gatekeeper import context, disconnect, render_problem_details
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.access.gatekeeper.monitor import CredentialMonitor
from moyin.access.gatekeeper.observation import NoObserver
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.errors import ServiceUnavailable
from moyin.testing.fakes import StaticAuthenticator

ANN = Identity(owner="ann", key_id="k1", scopes=frozenset({"jobs:read", "text"}))
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
EVENT = b"data: 1\n\n"


class MonitoredApp:
    """A gatekeeper in front of an app that never ends by itself."""

    def __init__(self) -> None:
        self.keys = StaticAuthenticator({"good": ANN, "other": replace(ANN, key_id="k2")})
        self.headers = EVENTS
        self.piece = EVENT
        self.needs = "jobs:read"
        self.under_way = asyncio.Event()
        self.cancelled = 0
        self.gatekeeper = Gatekeeper(
            self._app,
            service="test",
            authenticator=self.keys,
            error_renderer=render_problem_details,
            max_body_bytes=10,
            observer=NoObserver(),
        )

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        context(scope).require(self.needs)
        try:
            await receive()
            if scope["type"] == "websocket":
                await send({"type": "websocket.accept"})
            elif scope["path"] != "/slow":
                await send({"type": "http.response.start", "status": 200, "headers": self.headers})
                await send({"type": "http.response.body", "body": self.piece, "more_body": True})
            self.under_way.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def open(
        self, path: str = "/", *, scope_type: str = "http", key: str = "good"
    ) -> OpenConnection:
        return OpenConnection(self, path, scope_type, key)


class OpenConnection:
    """An open connection to the app."""

    def __init__(self, app: MonitoredApp, path: str, scope_type: str, key: str) -> None:
        self.sent: list[Any] = []
        scope = {
            "type": scope_type, "path": path, "method": "GET", "query_string": b"",
            "headers": [(b"x-api-key", key.encode())],
        }  # fmt: skip
        first_messages: list[Any] = [{"type": "websocket.connect"} if scope_type == "websocket" else
                            {"type": "http.request", "body": b""}]  # fmt: skip

        async def receive() -> Any:
            if first_messages:
                return first_messages.pop()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            self.sent.append(message)

        self.task = asyncio.create_task(app.gatekeeper(scope, receive, send))

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.sent if m["type"] == "http.response.body")


@pytest.fixture
def monitored_app(monkeypatch: pytest.MonkeyPatch) -> MonitoredApp:
    monkeypatch.setattr(disconnect, "_GRACE_SECONDS", 0.0)
    return MonitoredApp()


async def wait_until_monitored(
    monitored_app: MonitoredApp, connection: OpenConnection
) -> OpenConnection:
    """Wait until the app serves the connection and the monitor watches it; return it."""
    await monitored_app.under_way.wait()
    while not monitored_app.gatekeeper.monitor._credentials:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return connection


async def test_a_websocket_is_closed_with_the_reason_when_its_key_ends(
    monitored_app: MonitoredApp,
) -> None:
    socket = await wait_until_monitored(monitored_app, monitored_app.open(scope_type="websocket"))
    await monitored_app.gatekeeper.monitor.recheck()
    assert not socket.task.done()
    del monitored_app.keys.identities["good"]
    await monitored_app.gatekeeper.monitor.recheck()
    await socket.task
    assert socket.sent[-1] == {
        "type": "websocket.close",
        "code": 1008,
        "reason": "invalid_api_key: the API key or the session of this connection has ended; authenticate again",
    }
    assert monitored_app.cancelled == 1
    assert not monitored_app.gatekeeper.monitor._credentials


async def test_a_stream_ends_with_an_error_event_when_its_key_ends(
    monitored_app: MonitoredApp,
) -> None:
    stream = await wait_until_monitored(monitored_app, monitored_app.open())
    del monitored_app.keys.identities["good"]
    await monitored_app.gatekeeper.monitor.recheck()
    await stream.task
    first_event, last_event = stream.body.removesuffix(b"\n\n").split(b"\n\n")
    name, data = last_event.split(b"\n")
    assert (first_event, name) == (b"data: 1", b"event: error")
    assert json.loads(data.removeprefix(b"data: "))["code"] == "invalid_api_key"
    assert stream.sent[-1]["more_body"] is False
    assert not stream.task.cancelled()


@pytest.mark.parametrize(
    "changed_identity",
    [
        replace(ANN, scopes=frozenset({"text"})),
        replace(ANN, limits=(Limit(subject="key:k1", concurrent_requests=0),)),
    ],
    ids=["scope", "limit"],
)
async def test_a_connection_ends_when_its_caller_may_no_longer_use_it(
    monitored_app: MonitoredApp, changed_identity: Identity
) -> None:
    stream = await wait_until_monitored(monitored_app, monitored_app.open())
    monitored_app.keys.identities["good"] = replace(ANN, scopes=ANN.scopes - {"text"})
    await monitored_app.gatekeeper.monitor.recheck()
    assert not stream.task.done()
    monitored_app.keys.identities["good"] = changed_identity
    await monitored_app.gatekeeper.monitor.recheck()
    await stream.task
    assert b"event: error" in stream.body


async def test_only_connections_of_ended_credentials_end(monitored_app: MonitoredApp) -> None:
    ended_connection, lasting_connection = (
        monitored_app.open(scope_type="websocket"),
        monitored_app.open(scope_type="websocket", key="other"),
    )
    while len(monitored_app.gatekeeper.monitor._credentials) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    del monitored_app.keys.identities["good"]
    await monitored_app.gatekeeper.monitor.recheck()
    await ended_connection.task
    assert not lasting_connection.task.done()
    lasting_connection.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lasting_connection.task


async def test_a_stream_in_the_middle_of_an_event_is_closed(monitored_app: MonitoredApp) -> None:
    monitored_app.piece = b"data: 1"
    stream = await wait_until_monitored(monitored_app, monitored_app.open())
    del monitored_app.keys.identities["good"]
    await monitored_app.gatekeeper.monitor.recheck()
    with pytest.raises(Exception, match="has ended"):
        await stream.task
    assert stream.body == b"data: 1"


async def test_a_response_of_known_length_is_completed(monitored_app: MonitoredApp) -> None:
    monitored_app.headers = [(b"Content-Length", b"100")]
    for path in ("/", "/slow"):
        connection = await wait_until_monitored(monitored_app, monitored_app.open(path))
        del monitored_app.keys.identities["good"]
        await monitored_app.gatekeeper.monitor.recheck()
        assert not connection.task.cancelling()
        connection.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connection.task
        monitored_app.keys.identities["good"] = ANN


class CountingKeys(StaticAuthenticator):
    """Records how many credentials each recheck gets; fails while ``is_unavailable`` is True."""

    def __init__(self) -> None:
        super().__init__({"good": ANN})
        self.recheck_sizes: list[int] = []
        self.is_unavailable = False

    async def recheck(self, credentials: Mapping[str, Identity]) -> Mapping[str, Identity]:
        self.recheck_sizes.append(len(credentials))
        if self.is_unavailable:
            raise ServiceUnavailable("the database is away")
        return await super().recheck(credentials)


class FakeConnection:
    """A fake connection that records that the monitor has ended it."""

    can_end = True
    ended = False

    def find_refusal(self, identity: Identity) -> None:
        return None

    def end(self, error: Exception) -> None:
        self.ended = True


async def test_a_thousand_connections_of_one_key_take_one_recheck() -> None:
    keys = CountingKeys()
    monitor = CredentialMonitor(keys, interval_seconds=3600)
    connections = [FakeConnection() for _ in range(1_000)]
    for connection in connections:
        monitor.add("good", ANN, connection)
    await monitor.recheck()
    assert keys.recheck_sizes == [1]
    keys.identities.clear()
    await monitor.recheck()
    assert all(connection.ended for connection in connections)


async def test_connections_continue_while_the_database_is_unavailable() -> None:
    keys, connection = CountingKeys(), FakeConnection()
    keys.is_unavailable = True
    monitor = CredentialMonitor(keys, interval_seconds=3600)
    monitor.add("gone", ANN, connection)
    await monitor.recheck()
    assert not connection.ended
    keys.is_unavailable = False
    await monitor.recheck()
    assert connection.ended


async def test_rechecks_repeat_and_survive_an_unexpected_error() -> None:
    class FailingOnceKeys(CountingKeys):
        async def recheck(self, credentials: Mapping[str, Identity]) -> Mapping[str, Identity]:
            self.recheck_sizes.append(len(credentials))
            if len(self.recheck_sizes) == 1:
                raise ZeroDivisionError
            second_recheck.set()
            return {}

    second_recheck = asyncio.Event()
    connection = FakeConnection()
    monitor = CredentialMonitor(FailingOnceKeys(), interval_seconds=0)
    monitor.add("good", ANN, connection)
    async with asyncio.timeout(10):
        await second_recheck.wait()
        while not connection.ended:  # noqa: ASYNC110
            await asyncio.sleep(0)
    monitor.discard("good", connection)


async def test_a_connection_of_a_service_token_is_not_monitored() -> None:
    monitor = CredentialMonitor(CountingKeys(), interval_seconds=3600)
    monitor.add("token", replace(ANN, service="jobs"), FakeConnection())
    assert not monitor._credentials
