"""Tests the gatekeeper in front of a small ASGI app, called as a server would."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from moyin.access.gatekeeper import (
    RequestContext,
    body,
    context,
    disconnect,
    render_problem_details,
    replica_memory,
)
from moyin.access.gatekeeper.asgi import ASGIApp, Receive, Scope, Send
from moyin.access.gatekeeper.credential_finder import CredentialFinder
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.access.gatekeeper.observation import Observation, format_access_line
from moyin.access.gatekeeper.tokens import create_file_link
from moyin.domain.identity import Identity
from moyin.errors import InsufficientScope, InvalidRequest, MissingKey, MoyinError
from moyin.testing.fakes import StaticAuthenticator

LIMIT = 10


def make_authenticator() -> StaticAuthenticator:
    event_identity = Identity(owner="ada", key_id="k1", job="j")
    other_identity = Identity(owner="bob", key_id="k2")
    return StaticAuthenticator(
        {
            "good": Identity(owner="ada", key_id="k1"),
            "other": other_identity,
            "event": event_identity,
        }
    )


class RecordingObserver:
    """An observer that records every observation."""

    def __init__(self) -> None:
        self.all: list[Observation] = []

    @property
    def summaries(self) -> list[tuple[str, str, int]]:
        return [
            (observation.service, observation.method, observation.status)
            for observation in self.all
        ]

    def observe(self, observation: Observation) -> None:
        self.all.append(observation)


def find_owner(scope: Scope) -> str:
    request_context = context(scope)
    return request_context.reader.owner if scope["path"] == "/job/read" else request_context.owner


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with the owner and the size of the body.

    On the path ``/known`` the app raises one of Moyin's errors, on ``/bug`` an unexpected one.
    """
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": find_owner(scope)})
        return
    if scope["path"] == "/known":
        raise InvalidRequest("size must be positive", field="size", details={"hint": 1})
    if scope["path"] == "/bug":
        raise ZeroDivisionError("secret detail")
    size, has_more = 0, True
    while has_more:
        message = await receive()
        size += len(message.get("body", b""))
        has_more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size, "more_body": True})
    if scope["path"] == "/late":
        raise MoyinError("too late")
    owner = find_owner(scope) if scope["path"] != "/open" else "nobody"
    await send({"type": "http.response.body", "body": owner.encode()})


class GatekeeperClient:
    """Calls the gatekeeper as a server would."""

    def __init__(self) -> None:
        self.metrics = RecordingObserver()
        self.app = Gatekeeper(
            echo,
            service="echo",
            authenticator=make_authenticator(),
            error_renderer=render_problem_details,
            max_body_bytes=LIMIT,
            observer=self.metrics,
            public_paths=frozenset({"/open"}),
            credential_finder=CredentialFinder(
                is_proxied=lambda scope: scope["path"] == "/",
                may_use_cookie=lambda scope: scope["path"] == "/job/read",
                may_use_event_token=lambda scope: scope["path"] in ("/job", "/job/read"),
            ),
        )

    async def call(
        self,
        path: str = "/",
        *,
        scope_type: str = "http",
        headers: dict[str, str] | None = None,
        chunks: tuple[bytes, ...] = (b"",),
        query: bytes = b"",
    ) -> tuple[int, dict[str, str], bytes, list[Any]]:
        scope: Scope = {
            "type": scope_type,
            "path": path,
            "query_string": query,
            "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
        }
        if scope_type == "http":
            scope["method"] = "POST"
        pending_messages: list[Any] = [
            {"type": "http.request", "body": c, "more_body": i < len(chunks) - 1}
            for i, c in enumerate(chunks)
        ]
        if scope_type == "websocket":
            pending_messages = [{"type": "websocket.connect"}]
        messages: list[Any] = []

        async def receive() -> Any:
            return pending_messages.pop(0)

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        response_start = next((m for m in messages if m["type"] == "http.response.start"), None)
        body = b"".join(m.get("body", b"") for m in messages if m["type"] == "http.response.body")
        response_headers = (
            {k.decode(): v.decode() for k, v in response_start["headers"]} if response_start else {}
        )
        return (response_start["status"] if response_start else 0), response_headers, body, messages


@pytest.fixture
def client() -> GatekeeperClient:
    return GatekeeperClient()


BEARER = {"authorization": "Bearer good"}


@pytest.mark.parametrize(
    "headers", [BEARER, {"x-api-key": "good"}, {"authorization": "bearer good"}]
)
async def test_a_valid_key_is_accepted(client: GatekeeperClient, headers: dict[str, str]) -> None:
    status, response_headers, body, _ = await client.call(headers=headers, chunks=(b"abc", b"de"))
    assert (status, body) == (200, b"5ada")
    assert len(response_headers["x-request-id"]) == 32
    assert client.metrics.summaries == [("echo", "POST", 200)]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Basic good"}, "missing_api_key"),
        ({"authorization": "Bearer "}, "missing_api_key"),
        ({"x-api-key": "bad"}, "invalid_api_key"),
    ],
)
async def test_a_missing_or_wrong_key_gets_status_401(
    client: GatekeeperClient, headers: dict[str, str], code: str
) -> None:
    status, response_headers, body, _ = await client.call(headers=headers)
    problem = json.loads(body)
    assert (status, problem["status"], problem["code"]) == (401, 401, code)
    assert response_headers["content-type"] == "application/problem+json"
    assert response_headers["www-authenticate"].startswith("Bearer")
    assert problem["request_id"] == response_headers["x-request-id"]


async def test_large_bodies_of_a_tenant_are_bounded_while_they_are_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_memory, "_UNCOUNTED_BYTES", 1)
    monkeypatch.setattr(replica_memory, "_TOTAL_BYTES", 0)
    client = GatekeeperClient()
    # A tenant may always send two bodies of the largest size: 20 bytes here.
    body = (b"a" * 7,)
    for _ in range(5):
        status, _, _, _ = await client.call(headers=BEARER, chunks=body)
        assert status == 200
    client.app._body_memory.add("ada", 15)
    status, response_headers, response_body, _ = await client.call(headers=BEARER, chunks=body)
    assert (status, json.loads(response_body)["code"]) == (429, "overloaded")
    assert response_headers["retry-after"] == "1"
    other = {"authorization": "Bearer other"}
    assert (await client.call(headers=other, chunks=body))[0] == 200


async def test_public_paths_need_no_key_and_have_no_owner(client: GatekeeperClient) -> None:
    status, _, body, _ = await client.call("/open")
    assert (status, body) == (200, b"0nobody")
    with pytest.raises(MissingKey):
        _ = RequestContext(request_id="r", identity=None).owner


async def test_a_valid_request_id_is_kept(client: GatekeeperClient) -> None:
    _, response_headers, _, _ = await client.call(headers={**BEARER, "x-request-id": "shot-12.a"})
    assert response_headers["x-request-id"] == "shot-12.a"
    _, response_headers, _, _ = await client.call(headers={**BEARER, "x-request-id": "a b\n"})
    assert response_headers["x-request-id"] != "a b\n"


async def test_a_declared_body_over_the_limit_is_refused_without_reading_it(
    client: GatekeeperClient,
) -> None:
    status, _, body, _ = await client.call(headers={**BEARER, "content-length": "11"})
    assert (status, json.loads(body)["code"]) == (413, "body_too_large")
    assert json.loads(body)["max_body_bytes"] == LIMIT


async def test_a_streamed_body_over_the_limit_is_refused(client: GatekeeperClient) -> None:
    status, _, body, _ = await client.call(headers=BEARER, chunks=(b"123456", b"123456", b"1"))
    assert (status, json.loads(body)["code"]) == (413, "body_too_large")
    status, _, body, _ = await client.call(headers=BEARER, chunks=(b"12345", b"12345"))
    assert (status, body) == (200, b"10ada")


async def test_an_invalid_content_length_is_refused_with_its_field(
    client: GatekeeperClient,
) -> None:
    status, _, body, _ = await client.call(headers={**BEARER, "content-length": "-1"})
    assert (status, json.loads(body)["field"]) == (400, "Content-Length")


async def test_errors_of_the_app_are_rendered(client: GatekeeperClient) -> None:
    status, _, body, _ = await client.call("/known", headers=BEARER)
    problem = json.loads(body)
    assert status == 400
    assert problem["code"] == "invalid_request"
    assert (problem["field"], problem["hint"], problem["instance"]) == ("size", 1, "/known")


async def test_an_unhandled_error_is_only_logged(
    client: GatekeeperClient, caplog: pytest.LogCaptureFixture
) -> None:
    status, _, body, _ = await client.call("/bug", headers=BEARER)
    assert (status, json.loads(body)["code"]) == (500, "internal_error")
    assert b"secret detail" not in body
    assert "secret detail" in caplog.text


async def test_an_error_after_the_first_byte_closes_the_connection(
    client: GatekeeperClient,
) -> None:
    with pytest.raises(MoyinError, match="too late"):
        await client.call("/late", headers=BEARER)
    assert client.metrics.summaries == [("echo", "POST", 200)]


async def test_a_websocket_may_have_its_key_in_the_query(client: GatekeeperClient) -> None:
    *_, messages = await client.call(scope_type="websocket", query=b"api_key=good")
    assert [m["type"] for m in messages] == ["websocket.accept", "websocket.send"]
    assert messages[1]["text"] == "ada"


async def test_a_websocket_without_a_key_is_closed_with_the_reason(
    client: GatekeeperClient,
) -> None:
    *_, messages = await client.call(scope_type="websocket", query=b"api_key=bad")
    assert [m["type"] for m in messages] == ["websocket.accept", "websocket.close"]
    assert (messages[1]["code"], messages[1]["reason"][:15]) == (1008, "invalid_api_key")


async def test_a_key_in_the_query_is_for_websockets_only(client: GatekeeperClient) -> None:
    status, *_ = await client.call(query=b"api_key=good")
    assert status == 401


@pytest.mark.parametrize("scope_type", ["http", "websocket"])
@pytest.mark.parametrize("cookie", ["other", "bad"])
async def test_event_token_has_precedence_over_the_cookie(cookie: str, scope_type: str) -> None:
    """A request with a cookie and an event token is authenticated by the token.

    Browsers add the console's cookie even to requests of other pages of the same site.
    """
    client = GatekeeperClient()
    headers = {
        "cookie": f"moyin_session={cookie}",
        "origin": "https://studio.example",
        "sec-fetch-site": "same-site",
    }
    status, _, body, messages = await client.call(
        "/job/read", scope_type=scope_type, headers=headers, query=b"token=event"
    )
    if scope_type == "http":
        assert (status, body) == (200, b"0ada")
    else:
        assert messages[-1] == {"type": "websocket.send", "text": "ada"}
    # Without a token, the cookie counts, and only for the gateway's own pages.
    status, _, body, _ = await client.call("/job/read", headers=headers)
    assert (status, json.loads(body)["code"]) == (403, "cross_site_request")


async def test_an_event_token_is_accepted_in_the_query_of_its_paths_only(
    client: GatekeeperClient,
) -> None:
    """An event token is valid only in the query of paths for event tokens, and only as ``token``.

    A holder of such a token may only read, so a route that may write refuses the token.
    """
    with pytest.raises(InsufficientScope):
        await client.call("/job", query=b"token=event")
    for path, query in (
        ("/known", b"token=event"),
        ("/job", b"api_key=event"),
        ("/job", b"token=good"),
    ):
        status, *_ = await client.call(path, query=query)
        assert status == 401, (path, query)
    status, _, body, _ = await client.call("/job", headers=BEARER, query=b"token=other")
    assert (status, body[-3:]) == (200, b"ada"), "a key counts before a token"


async def test_the_access_log_has_caller_and_request_but_no_secret(
    client: GatekeeperClient,
) -> None:
    await client.call("/known", headers=BEARER, query=b"api_key=good")
    [access_entry] = client.metrics.all
    line = format_access_line(access_entry)
    log_entry = json.loads(line)
    assert (log_entry["owner"], log_entry["key"], log_entry["status"]) == ("ada", "k1", 400)
    assert (log_entry["path"], log_entry["code"]) == ("/known", "invalid_request")
    assert "good" not in line


async def test_the_access_log_has_no_token_of_a_file_link(client: GatekeeperClient) -> None:
    link = create_file_link(b"0" * 32, "ada", "art_1", "a.png", 60)
    await client.call(link, headers=BEARER)
    [access_entry] = client.metrics.all
    assert link.split("/")[3] not in format_access_line(access_entry)
    assert json.loads(format_access_line(access_entry))["path"].startswith("/artifacts/signed/eyJ")


class HangingApp:
    """An app that never responds, and records its cancellation."""

    def __init__(self) -> None:
        self.is_working = asyncio.Event()
        self.cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        self.is_working.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def wrap_in_gatekeeper(app: ASGIApp, metrics: RecordingObserver) -> Gatekeeper:
    return Gatekeeper(
        app,
        service="hang",
        authenticator=make_authenticator(),
        error_renderer=render_problem_details,
        max_body_bytes=LIMIT,
        observer=metrics,
    )


async def test_a_disconnect_cancels_the_request() -> None:
    app, metrics = HangingApp(), RecordingObserver()
    has_disconnected = asyncio.Event()
    pending_messages: list[Any] = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
    ]

    async def receive() -> Any:
        if pending_messages:
            return pending_messages.pop(0)
        await has_disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        raise AssertionError("a response was sent to a disconnected client")

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(b"x-api-key", b"good")],
    }
    serving_task = asyncio.create_task(wrap_in_gatekeeper(app, metrics)(scope, receive, send))
    await app.is_working.wait()
    await asyncio.sleep(0.3)
    assert not app.cancelled
    has_disconnected.set()
    async with asyncio.timeout(1):
        await serving_task
    assert app.cancelled
    assert metrics.summaries == [("hang", "POST", 499)]


async def test_requests_in_progress_of_a_tenant_are_bounded() -> None:
    app, metrics = HangingApp(), RecordingObserver()
    client = GatekeeperClient()
    client.app = Gatekeeper(
        app, service="hang", authenticator=make_authenticator(), error_renderer=render_problem_details,
        max_body_bytes=LIMIT, observer=metrics, public_paths=frozenset({"/open"}), max_in_progress=1,
    )  # fmt: skip
    hanging_tasks = [asyncio.create_task(client.call(headers={"x-api-key": "good"}))]
    await app.is_working.wait()
    status, headers, answer, _ = await client.call(headers={"x-api-key": "good"})
    problem = json.loads(answer)
    assert (status, problem["code"], problem["max_in_progress"]) == (429, "overloaded", 1)
    assert headers["retry-after"] == "5"
    for path, sent_headers in (("/", {"x-api-key": "other"}), ("/open", {}), ("/open", {})):
        app.is_working.clear()
        hanging_tasks.append(asyncio.create_task(client.call(path, headers=sent_headers)))
        await app.is_working.wait()
    for task in hanging_tasks:
        task.cancel()
    await asyncio.gather(*hanging_tasks, return_exceptions=True)
    app.is_working.clear()
    next_task = asyncio.create_task(client.call(headers={"x-api-key": "good"}))
    async with asyncio.timeout(10):
        await app.is_working.wait()
    next_task.cancel()
    await asyncio.gather(next_task, return_exceptions=True)


async def test_a_cancellation_by_the_server_is_not_swallowed() -> None:
    app, metrics = HangingApp(), RecordingObserver()
    client = GatekeeperClient()
    client.app = wrap_in_gatekeeper(app, metrics)
    task = asyncio.create_task(client.call(headers=BEARER))
    await app.is_working.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert metrics.summaries == [("hang", "POST", 499)]


@pytest.mark.parametrize("piece_count", [1, 1_000_000], ids=["it stops", "it comes in pieces"])
async def test_a_body_that_is_too_slow_ends_the_request(
    monkeypatch: pytest.MonkeyPatch, piece_count: int
) -> None:
    monkeypatch.setattr(disconnect, "_GRACE_SECONDS", 0.01)
    monkeypatch.setattr(disconnect, "_BODY_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(disconnect, "_BODY_BYTES_PER_SECOND", 1e6)
    messages: list[Any] = []

    async def receive() -> Any:
        nonlocal piece_count
        if not piece_count:
            await asyncio.Event().wait()
        piece_count -= 1
        await asyncio.sleep(0.02)
        return {
            "type": "http.request",
            "body": b"a" if piece_count % 100 == 0 else b"",
            "more_body": True,
        }

    async def send(message: Any) -> None:
        messages.append(message)

    gatekeeper = wrap_in_gatekeeper(echo, RecordingObserver())
    await asyncio.wait_for(gatekeeper(make_post_scope(), receive, send), 30)
    assert (messages[0]["status"], json.loads(messages[1]["body"])["code"]) == (
        408,
        "body_too_slow",
    )
    assert (b"connection", b"close") in messages[0]["headers"]


async def test_an_app_that_reads_slowly_does_not_end_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disconnect, "_GRACE_SECONDS", 0.01)
    monkeypatch.setattr(disconnect, "_BODY_PAUSE_SECONDS", 0.05)
    pieces, messages = [b"a", b"b", b"c"], list[Any]()

    async def receive() -> Any:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def slow_app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(3):
            await receive()
            await asyncio.sleep(0.15)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        messages.append(message)

    await asyncio.wait_for(
        wrap_in_gatekeeper(slow_app, RecordingObserver())(make_post_scope(), receive, send), 30
    )
    assert messages[0]["status"] == 200


def make_post_scope() -> Scope:
    return {"type": "http", "method": "POST", "path": "/", "headers": [(b"x-api-key", b"good")]}


async def test_the_app_does_not_see_a_query_key() -> None:
    seen_scopes: list[Scope] = []
    recorder = RecordingObserver()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen_scopes.append(scope)
        await echo(scope, receive, send)

    client = GatekeeperClient()
    client.app = Gatekeeper(
        app, service="s", authenticator=make_authenticator(), error_renderer=render_problem_details, max_body_bytes=LIMIT,
        observer=recorder,
        credential_finder=CredentialFinder(may_use_query=lambda scope: scope["path"] == "/view"),
    )  # fmt: skip
    status, _, _, messages = await client.call("/view", query=b"a=1&api_key=good")
    assert status == 200
    assert [scope["query_string"] for scope in seen_scopes] == [b"a=1"]
    rejected_status, _, body, _ = await client.call("/view", query=b"a=1&api_key=nogood")
    assert rejected_status == 401
    all_output = f"{messages} {body!r} {[format_access_line(item) for item in recorder.all]}"
    assert "good" not in all_output.replace("no", "")
    assert (await client.call("/other", query=b"api_key=good"))[0] == 401


class HalfSentRequest:
    """A request whose body stops after some parts, as a server delivers it."""

    def __init__(self, path: str, part_count: int = 1, **headers: str) -> None:
        self.scope: Scope = {
            "type": "http", "path": path, "method": "POST", "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), value.encode())
                        for name, value in {"content_length": "9", **headers}.items()],
        }  # fmt: skip
        self.remaining_parts = part_count
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if self.remaining_parts == 0:
            await asyncio.Event().wait()
        self.remaining_parts -= 1
        return {"type": "http.request", "body": b"abc", "more_body": True}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def outcome(self) -> tuple[int, bool]:
        """Return the status, and True if the connection closes after the response."""
        [response_start] = [m for m in self.sent if m["type"] == "http.response.start"]
        connection_headers = [v for k, v in response_start["headers"] if k == b"connection"]
        assert connection_headers in ([], [b"close"])
        return response_start["status"], bool(connection_headers)


async def respond_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x_api_key": "bad"}, 401),
        ({"x_api_key": "good", "content_length": "99"}, 413),
        ({"x_api_key": "good"}, 200),
    ],
)
async def test_a_response_does_not_wait_for_a_missing_body(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], status: int
) -> None:
    monkeypatch.setattr(body, "_DRAIN_SECONDS", 0.01)
    request = HalfSentRequest("/", 1, **headers)
    await wrap_in_gatekeeper(respond_at_once, RecordingObserver())(
        request.scope, request.receive, request.send
    )
    assert request.outcome == (status, True)


@pytest.mark.parametrize("headers", [{}, {"x_api_key": "good"}])
async def test_a_completely_sent_body_keeps_the_connection_open(headers: dict[str, str]) -> None:
    request = HalfSentRequest("/", 1, **headers)

    async def receive() -> Any:
        return {**(await request.receive()), "more_body": request.remaining_parts > 0}

    request.remaining_parts = 3
    await wrap_in_gatekeeper(respond_at_once, RecordingObserver())(
        request.scope, receive, request.send
    )
    assert request.outcome == (200 if headers else 401, False)


async def test_a_refused_client_gets_no_100_continue() -> None:
    request = HalfSentRequest("/", part_count=0, expect="100-continue")
    await wrap_in_gatekeeper(respond_at_once, RecordingObserver())(
        request.scope, request.receive, request.send
    )
    assert request.outcome == (401, True)
