"""Tests how keys are found in headers, queries and cookies, and how origins are checked."""

from __future__ import annotations

import pytest

from moyin.access.gatekeeper.asgi import Scope
from moyin.access.gatekeeper.credential_finder import (
    CredentialFinder,
    remove_session_cookie,
    require_same_origin,
)
from moyin.errors import CrossSiteRequest, InvalidKey


def is_comfy_path(scope: Scope) -> bool:
    return str(scope["path"]).startswith("/comfy/")


def is_proxied_path(scope: Scope) -> bool:
    return str(scope["path"]).startswith("/svc")


def is_events_path(scope: Scope) -> bool:
    return str(scope["path"]).endswith("/events")


TAKEN = CredentialFinder(
    may_use_query=is_comfy_path,
    is_proxied=is_proxied_path,
    may_use_cookie=is_comfy_path,
    may_use_event_token=is_events_path,
)
SAME = {"sec-fetch-site": "same-origin"}


def make_scope(
    path: str = "/comfy/api/prompt",
    method: str = "GET",
    query: str = "",
    scope_type: str = "http",
    **headers: str,
) -> Scope:
    new_scope: Scope = {
        "type": scope_type,
        "path": path,
        "scheme": "http",
        "query_string": query.encode(),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }
    if scope_type == "http":
        new_scope["method"] = method
    return new_scope


def make_scope_with_headers(headers: dict[str, str], **scope_members: str) -> Scope:
    return make_scope(**scope_members, **headers)


@pytest.mark.parametrize(
    ("headers", "query", "expected_key"),
    [
        ({"authorization": "Bearer a", "x-api-key": "b"}, "api_key=c", "a"),
        ({"x-api-key": "b", "cookie": "moyin_session=d"}, "api_key=c", "b"),
        ({"cookie": "moyin_session=d"}, "x=1&api_key=c", "c"),
        ({}, "token=c", None),
        ({}, "key=c", None),
        ({}, "api_key=c", "c"),
        ({}, "api%5Fkey=c", "c"),
        ({"cookie": "a=1; moyin_session=d; b=2"}, "", "d"),
        ({"cookie": 'moyin_session="d"'}, "", "d"),
        ({"cookie": "xmoyin_session=d"}, "", None),
        ({"cookie": "moyin_session="}, "", None),
        ({"authorization": "Bearer "}, "", None),
        ({}, "api_key=", None),
    ],
)
def test_the_key_of_a_request_is_found(
    headers: dict[str, str], query: str, expected_key: str | None
) -> None:
    assert TAKEN.extract(make_scope_with_headers(headers, query=query)) == expected_key


@pytest.mark.parametrize("name", ["api_key", "api%5Fkey"])
def test_the_key_is_removed_from_the_query(name: str) -> None:
    request_scope = make_scope(query=f"filename=a%20b.png&{name}=secret&type=output")
    assert TAKEN.extract(request_scope) == "secret"
    assert request_scope["query_string"] == b"filename=a%20b.png&type=output"


def test_the_query_key_is_removed_even_if_a_header_has_another() -> None:
    request_scope = make_scope(query="api_key=secret", x_api_key="good")
    assert TAKEN.extract(request_scope) == "good"
    assert request_scope["query_string"] == b""


@pytest.mark.parametrize("query", ["key=c", "token=c", "api_key=c"])
def test_a_query_key_is_ignored_on_other_paths(query: str) -> None:
    request_scope = make_scope(path="/jobs", query=query)
    assert TAKEN.extract(request_scope) is None
    assert request_scope["query_string"] == query.encode()


def test_a_websocket_of_a_proxied_service_may_have_a_key_in_its_query() -> None:
    request_scope = make_scope("/svc", query="a=1&api_key=c", scope_type="websocket")
    assert TAKEN.extract(request_scope) == "c"
    assert request_scope["query_string"] == b"a=1&api_key=c", "the proxy removes it"
    assert TAKEN.extract(make_scope("/svc", query="token=c", scope_type="websocket")) is None
    assert TAKEN.extract(make_scope("/svc", query="api_key=c")) is None
    assert (
        TAKEN.extract(make_scope("/jobs/j/ws", query="api_key=c", scope_type="websocket")) is None
    )


def test_an_event_token_is_found_and_removed_on_its_paths_only() -> None:
    request_scope = make_scope("/jobs/j/events", query="after=1&%74oken=t&tokens=2")
    assert TAKEN.extract_event_token(request_scope) == "t"
    assert request_scope["query_string"] == b"after=1&tokens=2"
    assert TAKEN.extract(request_scope) is None
    other_path_scope = make_scope("/jobs", query="token=t")
    assert TAKEN.extract_event_token(other_path_scope) is None
    assert (
        CredentialFinder().extract_event_token(make_scope("/jobs/j/events", query="token=t"))
        is None
    )


def test_a_cookie_is_ignored_on_other_paths() -> None:
    assert TAKEN.extract(make_scope("/jobs", cookie="moyin_session=d")) is None
    assert CredentialFinder().extract(make_scope(cookie="moyin_session=d")) is None


OWN = "http://gateway.example:8000"


@pytest.mark.parametrize(
    ("headers", "is_accepted"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site", "origin": OWN}, False),
        ({"origin": OWN}, True),
        ({"origin": "http://gateway.example:8001"}, False),
        ({"origin": "https://gateway.example"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://gateway.example:8000.evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({"origin": "http://gateway.example:x"}, False),
        ({"origin": "file://gateway.example:8000"}, False),
        ({"origin": "HTTP://GATEWAY.EXAMPLE:8000"}, True),
        ({"origin": "http://evil@gateway.example:8000"}, False),
        ({"origin": "http://evil.example\\@gateway.example:8000"}, False),
        ({"origin": "http://gateway.example:8000/evil"}, False),
        ({"origin": "http://gateway.example:8000#evil"}, False),
        ({"origin": "http://gateway.example.:8000"}, False),
        ({"origin": "http://gateway.example:08000"}, False),
        ({"origin": "http://gateway.example:8000, http://evil.example"}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "websocket"])
def test_a_cookie_is_accepted_from_pages_of_the_gateway_only(
    headers: dict[str, str], is_accepted: bool, method: str
) -> None:
    scope_members = {"scope_type": "websocket"} if method == "websocket" else {"method": method}
    request_headers = {"host": "gateway.example:8000", "cookie": "moyin_session=d", **headers}
    request_scope = make_scope_with_headers(request_headers, **scope_members)
    if is_accepted:
        assert TAKEN.extract(request_scope) == "d"
    else:
        with pytest.raises(CrossSiteRequest):
            TAKEN.extract(request_scope)


def test_get_requests_and_header_keys_need_no_origin() -> None:
    foreign_headers = {"host": "gateway.example", "origin": "http://evil.example"}
    cookie_scope = make_scope_with_headers({**foreign_headers, "cookie": "moyin_session=d"})
    assert TAKEN.extract(cookie_scope) == "d"
    header_scope = make_scope_with_headers({**foreign_headers, "x-api-key": "b"}, method="POST")
    assert TAKEN.extract(header_scope) == "b"


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://gateway.example", "gateway.example"),  # TLS is terminated in front
        ("https://gateway.example", "GATEWAY.example:443"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://gateway.example.", "gateway.example."),
    ],
)
def test_an_origin_is_compared_by_host_and_port(origin: str, host: str) -> None:
    require_same_origin(make_scope_with_headers({"origin": origin, "host": host}, method="POST"))


@pytest.mark.parametrize("origin", ["http://gateway.example:0", "https://gateway.example:0"])
def test_port_zero_is_no_default_port(origin: str) -> None:
    with pytest.raises(CrossSiteRequest):
        require_same_origin(make_scope(method="POST", origin=origin, host="gateway.example"))


def test_a_client_without_origin_headers_may_sign_in() -> None:
    require_same_origin(make_scope(method="POST"), requires_origin=False)
    with pytest.raises(CrossSiteRequest):
        require_same_origin(
            make_scope(method="POST", origin="http://evil.example"), requires_origin=False
        )


@pytest.mark.parametrize("host", ["", "a b", "gateway.example:x", "gateway.example:99999"])
def test_an_invalid_host_matches_no_origin(host: str) -> None:
    with pytest.raises(CrossSiteRequest):
        require_same_origin(
            make_scope_with_headers(
                {"origin": "http://gateway.example", "host": host}, method="POST"
            )
        )


@pytest.mark.parametrize(
    ("cookie_header", "remaining_cookies"),
    [
        ("moyin_session=x", ""),
        ("a=1; moyin_session=x; b=2", "a=1; b=2"),
        ("moyin_session=x;moyin_session=y", ""),
        (" moyin_session = x; a=1", "a=1"),
        ("a=moyin_session", "a=moyin_session"),
        ("__Host-moyin_session=x; a=1; __Host-moyin_refresh=y", "a=1"),
        # Browsers store it without a name, and send "moyin_session=x".
        ("=moyin_session=x", ""),
        ("= __Host-moyin_session=x", ""),
        ("moyin_refresh=x; a=1; moyin_session=y", "a=1"),
    ],
)
def test_session_cookies_are_not_forwarded_to_upstreams(
    cookie_header: str, remaining_cookies: str
) -> None:
    assert remove_session_cookie(cookie_header) == remaining_cookies


@pytest.mark.parametrize(
    ("cookie", "scheme", "forwarded", "secret"),
    [
        ("moyin_session=theirs; __Host-moyin_session=mine", "https", "", "mine"),
        ("__Host-moyin_session=mine; moyin_session=theirs", "http", "https", "mine"),
        ("moyin_session=theirs; __Host-moyin_session=mine", "http", "", "mine"),
        ("moyin_session=theirs", "https", "", None),
        ("moyin_session=theirs", "http", "https", None),
        ("moyin_session=theirs", "http", "http, HTTPS", None),
        ("moyin_session=theirs", "http", "wss", None),
        ("moyin_session=mine", "http", "http", "mine"),
        ("moyin_session=mine; moyin_session=mine", "http", "", "mine"),
    ],
)
def test_cookie_that_another_host_can_set_does_not_count_over_https(
    cookie: str, scheme: str, forwarded: str, secret: str | None
) -> None:
    scope = make_scope(cookie=cookie, x_forwarded_proto=forwarded)
    scope["scheme"] = scheme
    assert TAKEN.extract(scope) == secret


@pytest.mark.parametrize("separator", ["; ", ";", "\n"])
def test_two_different_session_cookies_are_refused(separator: str) -> None:
    """Neither the first nor the last is sure to be the gateway's own."""
    scope = make_scope()
    cookies = separator.join(["moyin_session=mine", "moyin_session=theirs"]).split("\n")
    scope["headers"] = [(b"cookie", cookie.encode()) for cookie in cookies]
    with pytest.raises(InvalidKey, match="2 cookies moyin_session with different values"):
        TAKEN.extract(scope)
    # A key in a header needs no cookie.
    scope["headers"].append((b"x-api-key", b"key"))
    assert TAKEN.extract(scope) == "key"
