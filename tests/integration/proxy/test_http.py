"""Tests the reverse proxy between a real client and real services."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
import pytest
from yarl import URL

from moyin.access.gatekeeper.limits import RequestMeter
from moyin.http.breaker import Breaker, BreakerState
from moyin.proxy.headers import build_response_headers
from moyin.proxy.identity import derive_route_secret
from tests.integration.proxy.fixtures import MAX_BODY_BYTES, SIGNING_KEY, ProxyServer, proxy_serving
from tests.integration.proxy.upstream import CHUNK, Service, serving
from tests.integration.servers import ValkeyServer, free_port
from tests.waiting import eventually


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def upstream(service: Service) -> AsyncIterator[str]:
    async with serving(service) as url:
        yield url


@pytest.fixture
async def proxy_server(upstream: str) -> AsyncIterator[ProxyServer]:
    async with proxy_serving(build_route(upstream)) as proxy_server:
        yield proxy_server


def build_route(*upstreams: str, **kwargs: Any) -> dict[str, Any]:
    return {"name": "assets", "prefix": "/assets", "upstreams": list(upstreams), **kwargs}


async def test_request_is_forwarded_completely(proxy_server: ProxyServer, service: Service) -> None:
    async with proxy_server.client.patch("/assets/a%2Fb?q=1&q=%20", data=b"\x00body") as response:
        assert await response.read() == b"\x00body"
        assert response.headers["x-from"] == "one"
        assert response.headers.getall("set-cookie") == ["a=1", "b=2"]
    [seen_request] = service.seen
    assert (seen_request.method, seen_request.raw_path) == ("PATCH", "/a%2Fb?q=1&q=%20")


async def test_connection_headers_are_not_forwarded(
    proxy_server: ProxyServer, service: Service
) -> None:
    headers = {"connection": "keep-alive, x-secret", "x-secret": "1", "te": "trailers"}
    async with proxy_server.client.get("/assets/x", headers=headers) as response:
        assert "x-private" not in response.headers
        # What a call cost is said by us.
        assert "x-moyin-cost-usd" not in response.headers
        assert response.headers.get("connection") != "x-private"
    assert not {"x-secret", "te"} & {name.lower() for name in service.seen[0].headers}


async def test_session_cookie_is_not_forwarded_to_services(
    proxy_server: ProxyServer, service: Service
) -> None:
    for sent_cookie, expected_cookie in (
        ("a=1; moyin_session=secret; b=2", "a=1; b=2"),
        ("moyin_session=x", None),
    ):
        async with proxy_server.client.get(
            "/assets/x", headers={"cookie": sent_cookie}
        ) as response:
            assert response.status == 200
        assert service.seen.pop().headers.get("cookie") == expected_cookie
    forged_cookies = [
        (b"set-cookie", cookie + b"; Path=/")
        for cookie in (b"moyin_session=theirs", b"=moyin_session=theirs", b"__Host-moyin_session=x")
    ]
    assert build_response_headers([*forged_cookies, (b"set-cookie", b"a=1; Path=/")]) == [
        (b"set-cookie", b"a=1; Path=/")
    ]


async def test_answer_has_one_date_and_one_server_header(proxy_server: ProxyServer) -> None:
    async with proxy_server.client.get("/assets/x") as response:
        assert response.status == 200
        for name in ("date", "server"):
            assert len(response.headers.getall(name)) == 1, name


async def test_the_service_gets_the_identity_only_from_the_gateway(
    proxy_server: ProxyServer, service: Service
) -> None:
    forged_headers = {
        "x-moyin-owner": "admin",
        "X_Moyin_Owner": "admin",
        "x-moyin-identity": "forged",
        "x-forwarded-for": "6.6.6.6",
        "x-forwarded-proto": "https",
        "x-forwarded-user": "admin",
        "X_Forwarded_Email": "admin@studio.example",
        "forwarded": "for=6.6.6.6",
        "x-api-key": "another",
    }
    async with proxy_server.client.get("/assets/x", headers=forged_headers) as response:
        assert response.status == 200
    seen_headers = service.seen[0].headers
    assert "authorization" not in seen_headers and "x-api-key" not in seen_headers
    assert "X_Moyin_Owner" not in seen_headers and "forwarded" not in seen_headers
    assert seen_headers["x-moyin-owner"] == "ann"
    assert "x-forwarded-user" not in seen_headers and "X_Forwarded_Email" not in seen_headers
    assert "x-forwarded-for" not in seen_headers  # a peer on loopback may be anybody
    assert (seen_headers["x-forwarded-proto"], seen_headers["x-forwarded-prefix"]) == (
        "http",
        "/assets",
    )
    assert seen_headers["x-forwarded-host"] == proxy_server.url.removeprefix("http://")
    secret = derive_route_secret(SIGNING_KEY, "assets")
    claims = jwt.decode(seen_headers["x-moyin-identity"], secret, ["HS256"], audience="assets")
    assert (claims["sub"], claims["key"]) == ("ann", "k1")
    with pytest.raises(jwt.InvalidSignatureError):
        other_secret = derive_route_secret(SIGNING_KEY, "other")
        jwt.decode(seen_headers["x-moyin-identity"], other_secret, ["HS256"], audience="assets")


async def test_clients_cannot_send_headers_of_authentication_proxies(
    proxy_server: ProxyServer, service: Service
) -> None:
    """HTTP and WebSocket requests lose such headers, however the client spells their names."""
    forged_headers = {
        name: "admin"
        for name in (
            "Remote-User", "Remote_User", "REMOTE-USER", "X-WebAuth-User", "X_WebAuth-User",
            "X-Auth-Request-Email", "X-Forwarded-User", "X_Forwarded_User", "X-Forwarded-Groups",
            "X-Forwarded-Preferred-Username", "X-Remote-Group", "X-Authenticated-User", "Proxy",
            "Any_Name", "X.Forwarded.User", "X-Original-URL",
        )
    }  # fmt: skip
    async with proxy_server.client.get(
        "/assets/x", headers={**forged_headers, "x-mine": "1"}
    ) as response:
        assert response.status == 200
    seen_headers = service.seen[0].headers
    assert seen_headers["x-mine"] == "1"
    assert "admin" not in seen_headers.values()
    assert not [name for name in seen_headers if "_" in name]
    async with proxy_server.client.ws_connect("/assets/ws", headers=forged_headers) as socket:
        await socket.close()
    assert "admin" not in service.seen[1].headers.values()


async def test_path_that_could_belong_to_a_stricter_route_is_refused(
    upstream: str, service: Service
) -> None:
    """A path such as ``/assets//inner/x`` could also be read as one of the route ``/assets/inner``."""
    inner_route = {
        "name": "inner", "prefix": "/assets/inner", "upstreams": [upstream], "scopes": ["operator"]
    }  # fmt: skip
    async with proxy_serving(build_route(upstream), inner_route) as proxy_server:
        for path in ("/assets//inner/x", "/assets/inner;v=1/x", "/assets/;/inner/x"):
            async with proxy_server.client.get(
                URL(proxy_server.url + path, encoded=True)
            ) as response:
                assert response.status == 400, path
                body = await response.json()
                assert (body["code"], body["field"]) == ("invalid_request", "path")
        for path in ("/assets//other/x", "/assets/other;v=1/x"):
            async with proxy_server.client.get(
                URL(proxy_server.url + path, encoded=True)
            ) as response:
                assert response.status == 200, path
    assert len(service.seen) == 2


async def test_a_trusted_proxy_is_believed_about_the_client(
    upstream: str, service: Service
) -> None:
    async with proxy_serving(build_route(upstream), trusted_proxies="127.0.0.0/8") as proxy_server:
        forwarded_headers = {
            "x-forwarded-for": "6.6.6.6, 203.0.113.7",
            "x-forwarded-proto": "https",
        }
        async with proxy_server.client.get("/assets/x", headers=forwarded_headers) as response:
            assert response.status == 200
    seen_headers = service.seen[0].headers
    assert (seen_headers["x-forwarded-for"], seen_headers["x-forwarded-proto"]) == (
        "203.0.113.7",
        "https",
    )


async def test_events_are_forwarded_as_they_are_sent(
    proxy_server: ProxyServer, service: Service
) -> None:
    async with proxy_server.client.get("/assets/events") as response:
        assert await response.content.readuntil(b"\n\n") == b"data: first\n\n"
        service.go_on.set()
        assert await response.content.read() == b"data: second\n\n"


async def test_a_slow_reader_slows_the_service_down(
    proxy_server: ProxyServer, service: Service
) -> None:
    chunk_count = 1_500
    async with proxy_server.client.get(f"/assets/flood?chunks={chunk_count}") as response:
        await _wait_until_constant(lambda: service.sent)
        assert 0 < service.sent < chunk_count * len(CHUNK) / 2
        assert len(await response.read()) == chunk_count * len(CHUNK)


async def test_a_slow_service_slows_the_sender_down(
    proxy_server: ProxyServer, service: Service
) -> None:
    chunk_count, sent_count = 1_500, 0

    async def generate_body() -> AsyncIterator[bytes]:
        nonlocal sent_count
        for _ in range(chunk_count):
            yield CHUNK
            sent_count += 1

    send_task = asyncio.create_task(
        _read_text(proxy_server.client.put("/assets/drain", data=generate_body()))
    )
    await _wait_until_constant(lambda: sent_count)
    assert 0 < sent_count < chunk_count / 2
    service.go_on.set()
    assert await send_task == str(chunk_count * len(CHUNK))


async def test_too_large_body_does_not_count_against_the_service(
    proxy_server: ProxyServer, service: Service
) -> None:
    async def generate_body() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // len(CHUNK) + 2):
            yield CHUNK

    service.go_on.set()
    async with proxy_server.client.put("/assets/drain", data=generate_body()) as response:
        assert (response.status, (await response.json())["code"]) == (413, "body_too_large")
    [member] = proxy_server.proxy._runtimes["assets"].pool.members
    assert member.breaker._failures == 0


async def test_a_client_that_disconnects_ends_the_upstream_call(
    proxy_server: ProxyServer, service: Service
) -> None:
    with pytest.raises(TimeoutError):
        async with proxy_server.client.get(
            "/assets/flood?chunks=100000", timeout=aiohttp.ClientTimeout(0.5)
        ) as response:
            await response.read()
    sent_bytes = await _wait_until_constant(lambda: service.sent)
    assert sent_bytes < 100_000 * len(CHUNK)


@pytest.mark.parametrize(
    ("location", "forwarded_location"),
    [
        ("/login", "/assets/login"),
        ("{upstream}/login?a=1", "/assets/login?a=1"),
        ("https://elsewhere.example/x", "https://elsewhere.example/x"),
        ("deeper", "deeper"),
    ],
)
async def test_redirects_lead_back_to_the_gateway(
    proxy_server: ProxyServer, upstream: str, location: str, forwarded_location: str
) -> None:
    query = {"to": location.format(upstream=upstream)}
    async with proxy_server.client.get(
        "/assets/moved", params=query, allow_redirects=False
    ) as response:
        assert (response.status, response.headers["location"]) == (302, forwarded_location)


async def test_redirect_with_forwarded_prefix_is_not_changed(proxy_server: ProxyServer) -> None:
    prefix_route = {
        **build_route(proxy_server.proxy.route_table.routes[0].upstreams[0].url),
        "proxy_redirect": False,
    }
    proxy_server.set_routes(prefix_route)
    query = {"to": "/assets/x?y"}
    async with proxy_server.client.get(
        "/assets/moved", params=query, allow_redirects=False
    ) as response:
        assert (response.status, response.headers["location"]) == (302, "/assets/x?y")


@pytest.mark.parametrize(
    ("location", "forwarded_location"),
    [
        (b"/caf\xe9", b"/assets/caf\xe9"),
        (b"https://elsewhere.example/\xff", b"https://elsewhere.example/\xff"),
        (b"http://[x/", b"http://[x/"),
        ("/caf\u00e9".encode(), "/assets/caf\u00e9".encode()),
    ],
)
async def test_redirect_with_invalid_url_is_forwarded(
    proxy_server: ProxyServer, location: bytes, forwarded_location: bytes
) -> None:
    async def answer_redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 302 Found\r\nconnection: close\r\ncontent-length: 0\r\n"
        writer.write(head + b"location: " + location + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer_redirect, "127.0.0.1", 0)
    proxy_server.set_routes(build_route(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    async with proxy_server.client.get("/assets/x", allow_redirects=False) as response:
        assert response.status == 302
        assert [v for name, v in response.raw_headers if name.lower() == b"location"] == [
            forwarded_location
        ]
    server.close()


async def test_only_safe_requests_are_repeated(proxy_server: ProxyServer, service: Service) -> None:
    second_service = Service("two")
    async with serving(second_service) as url:
        proxy_server.set_routes(
            build_route(proxy_server.proxy.route_table.routes[0].upstreams[0].url, url)
        )
        service.failing = 1
        async with proxy_server.client.get("/assets/flaky") as response:
            assert await response.text() == "two"
        service.failing = second_service.failing = 1
        async with proxy_server.client.post("/assets/flaky", data=b"x") as response:
            assert response.status == 502
            assert (await response.json())["code"] == "backend_unavailable"
            assert int(response.headers["retry-after"]) >= 1
    assert len(service.seen) + len(second_service.seen) == 3


async def test_last_response_is_forwarded_when_all_servers_fail(
    proxy_server: ProxyServer, service: Service
) -> None:
    """When all servers have failed, the last response is forwarded, even if retries remain."""
    second_service = Service("two")
    async with serving(second_service) as url:
        first_url = proxy_server.proxy.route_table.routes[0].upstreams[0].url
        proxy_server.set_routes(build_route(first_url, url, retries=5))
        service.failing = second_service.failing = 1
        async with proxy_server.client.get("/assets/health") as response:
            assert (response.status, await response.text()) == (503, "")
        second_service.failing = 0
        for _ in range(2):
            async with proxy_server.client.get("/assets/health") as response:
                assert response.status == 200


async def test_a_short_truncated_answer_is_requested_again(
    proxy_server: ProxyServer, service: Service
) -> None:
    async with proxy_server.client.get("/assets/broken?length=1000") as response:
        assert response.status == 502
    # A long one has begun by then: the client must see that it is not whole.
    with pytest.raises(aiohttp.ClientPayloadError):
        async with proxy_server.client.get("/assets/broken?length=1000000") as response:
            assert response.status == 200
            await response.read()


async def test_an_unavailable_service_gets_no_requests_for_a_while(
    proxy_server: ProxyServer,
) -> None:
    proxy_server.set_routes(build_route(f"http://127.0.0.1:{free_port()}"))
    outcomes = []
    for _ in range(4):
        async with proxy_server.client.get("/assets/x") as response:
            outcomes.append((response.status, (await response.json())["code"]))
    assert outcomes[0] == (502, "backend_unavailable")
    assert outcomes[3] == (503, "service_unavailable")
    assert "retry-after" in response.headers


@asynccontextmanager
async def _recovered_service(proxy_server: ProxyServer) -> AsyncIterator[Breaker]:
    """Open the breaker of a service, then start the service; the next request is the probe."""
    port = free_port()
    proxy_server.set_routes(build_route(f"http://127.0.0.1:{port}"))
    for _ in range(3):
        async with proxy_server.client.get("/assets/x") as response:
            assert response.status == 502
    [member] = proxy_server.proxy._runtimes["assets"].pool.members
    assert member.breaker.state is BreakerState.OPEN
    member.breaker._open_until = 0.0
    async with serving(Service(), port):
        yield member.breaker


async def test_endless_stream_closes_the_circuit_breaker(
    proxy_server: ProxyServer,
) -> None:
    async with _recovered_service(proxy_server) as breaker:
        async with proxy_server.client.get("/assets/events") as stream:
            assert await stream.content.readuntil(b"\n\n") == b"data: first\n\n"
            async with proxy_server.client.get("/assets/x") as response:
                assert response.status == 200
        assert breaker.state is BreakerState.CLOSED


async def test_broken_response_of_a_recovered_service_counts_once(
    proxy_server: ProxyServer,
) -> None:
    async with _recovered_service(proxy_server) as breaker:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with proxy_server.client.get("/assets/broken?length=1000000") as response:
                await response.read()
        assert (breaker.state, breaker._failures) == (BreakerState.CLOSED, 1)


async def test_circuit_breaker_counts_a_probe_once(proxy_server: ProxyServer) -> None:
    async with _recovered_service(proxy_server) as breaker:
        async with proxy_server.client.get("/assets/events") as stream:
            await stream.content.readuntil(b"\n\n")
            # Meanwhile it fails again, and another request probes.
            for _ in range(3):
                breaker.fail()
            breaker._open_until = 0.0
            assert breaker.admit()
        await eventually(lambda: proxy_server.proxy._runtimes["assets"].pool.members[0].active == 0)
        assert (breaker.ready, breaker.state) == (False, BreakerState.HALF_OPEN)


async def test_failing_health_checks_exclude_a_service(
    proxy_server: ProxyServer, service: Service
) -> None:
    health = {"path": "/health", "interval": 0.05, "rise": 1, "fall": 2}
    url = proxy_server.proxy.route_table.routes[0].upstreams[0].url
    proxy_server.set_routes(build_route(url, health=health))

    async def fetch_status() -> int:
        async with proxy_server.client.get("/assets/x") as response:
            return response.status

    assert await fetch_status() == 200
    service.failing = 1
    await eventually(lambda: _has_status(fetch_status(), 503))
    service.failing = 0
    await eventually(lambda: _has_status(fetch_status(), 200))


async def test_silent_service_is_timed_out(proxy_server: ProxyServer) -> None:
    url = proxy_server.proxy.route_table.routes[0].upstreams[0].url
    proxy_server.set_routes(build_route(url, timeouts={"first_byte": 0.2, "idle": 0.2}))
    async with proxy_server.client.get("/assets/silent") as response:
        assert (response.status, (await response.json())["code"]) == (504, "backend_timeout")
    with pytest.raises(aiohttp.ClientPayloadError):
        async with proxy_server.client.get("/assets/silent?head=1") as response:
            assert response.status == 200
            await response.read()


async def test_open_requests_survive_a_new_route_table(
    proxy_server: ProxyServer, service: Service
) -> None:
    second_service = Service("two")
    async with (
        serving(second_service) as url,
        proxy_server.client.get("/assets/events") as response,
    ):
        await response.content.readuntil(b"\n\n")
        proxy_server.set_routes(build_route(url))
        async with proxy_server.client.get("/assets/x") as other_response:
            assert other_response.headers["x-from"] == "two"
        service.go_on.set()
        assert await response.content.read() == b"data: second\n\n"


async def test_new_route_table_counts_open_requests(
    proxy_server: ProxyServer, service: Service
) -> None:
    url = proxy_server.proxy.route_table.routes[0].upstreams[0].url

    def set_concurrency(limit: int) -> None:
        proxy_server.set_routes(build_route(url, limits={"concurrent": limit}))

    async def fetch_status() -> int:
        async with proxy_server.client.get("/assets/x") as response:
            return response.status

    set_concurrency(1)
    async with proxy_server.client.get("/assets/events") as stream:
        await stream.content.readuntil(b"\n\n")
        set_concurrency(1)
        assert await fetch_status() == 429
        set_concurrency(2)
        assert await fetch_status() == 200
        proxy_server.set_routes()
        set_concurrency(1)
        assert await fetch_status() == 429
        service.go_on.set()
        await stream.read()
    assert await fetch_status() == 200


async def test_sticky_sessions_stay_at_one_server(proxy_server: ProxyServer) -> None:
    second_service = Service("two")
    async with serving(second_service) as url:
        first_url = proxy_server.proxy.route_table.routes[0].upstreams[0].url
        proxy_server.set_routes(build_route(first_url, url, sticky="X-Session"))
        upstreams_by_session: dict[str, set[str]] = {}
        for session in [f"s{i}" for i in range(12)] * 3:
            async with proxy_server.client.get(
                "/assets/x", headers={"x-session": session}
            ) as response:
                upstreams_by_session.setdefault(session, set()).add(response.headers["x-from"])
    assert all(len(names) == 1 for names in upstreams_by_session.values())
    assert len(set.union(*upstreams_by_session.values())) == 2


async def test_scopes_and_limits_apply_to_proxied_routes_only(
    proxy_server: ProxyServer, service: Service
) -> None:
    url = proxy_server.proxy.route_table.routes[0].upstreams[0].url
    proxy_server.set_routes(build_route(url, scopes=["assets:read"], limits={"concurrent": 1}))
    eve_headers = {"authorization": "Bearer eve-key"}
    async with proxy_server.client.get("/assets/x", headers=eve_headers) as response:
        assert (response.status, (await response.json())["code"]) == (403, "insufficient_scope")
    async with proxy_server.client.get("/assets/x", headers={"authorization": ""}) as response:
        assert response.status == 401
    async with proxy_server.client.get("/assets/events") as event_response:
        await event_response.content.readuntil(b"\n\n")
        async with proxy_server.client.get("/assets/x") as response:
            assert (response.status, response.headers["retry-after"]) == (429, "1")
    async with proxy_server.client.get("/jobs") as response:
        assert await response.text() == "ours"
    assert service.seen == []


async def test_a_tenant_s_limit_is_exact_in_all_replicas(
    upstream: str, valkey_server: ValkeyServer
) -> None:
    limited_route = build_route(upstream, limits={"requests_per_minute": 5})
    meters = [RequestMeter(valkey_server.url) for _ in range(2)]
    async with (
        proxy_serving(limited_route, meter=meters[0]) as first_server,
        proxy_serving(limited_route, meter=meters[1]) as second_server,
    ):

        async def fetch_status(client: aiohttp.ClientSession, key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            async with client.get("/assets/x", headers=headers) as response:
                return response.status

        calls = [
            fetch_status(proxy_server.client, "ann-key")
            for proxy_server in (first_server, second_server) * 8
        ]
        assert Counter(await asyncio.gather(*calls)) == {200: 5, 429: 11}
        assert await fetch_status(first_server.client, "eve-key") == 200
    for meter in meters:
        await meter.close()


async def test_trace_requests_are_refused(proxy_server: ProxyServer, service: Service) -> None:
    async with proxy_server.client.request("TRACE", "/assets/x") as response:
        assert (response.status, (await response.json())["code"]) == (400, "unsupported_feature")
    assert service.seen == []


async def test_hosts_have_routes_of_their_own(proxy_server: ProxyServer) -> None:
    second_service = Service("two")
    async with serving(second_service) as url:
        first_url = proxy_server.proxy.route_table.routes[0].upstreams[0].url
        host_route = {"name": "site", "hosts": ["wiki.studio"], "prefix": "/", "upstreams": [url]}
        proxy_server.set_routes(build_route(first_url), host_route)
        for host, path, expected_service in [
            ("wiki.studio:8000", "/jobs", "two"),
            ("wiki.studio", "/assets/x", "two"),
            ("gateway.studio", "/assets/x", "one"),
        ]:
            async with proxy_server.client.get(path, headers={"host": host}) as response:
                assert response.headers["x-from"] == expected_service


async def _read_text(request_context: Any) -> str:
    async with request_context as answer:
        text: str = await answer.text()
        return text


async def _has_status(status: Any, expected_status: int) -> bool:
    return bool(await status == expected_status)


async def _wait_until_constant(get_value: Any, seconds: float = 0.3) -> int:
    """Wait until the function's value has not changed for ``seconds``, and return the value."""
    last_value, unchanged_since = get_value(), time.monotonic()
    while time.monotonic() - unchanged_since < seconds:
        await asyncio.sleep(0.02)
        if get_value() != last_value:
            last_value, unchanged_since = get_value(), time.monotonic()
    return int(last_value)
