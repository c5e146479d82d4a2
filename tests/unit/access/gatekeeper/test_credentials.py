"""Keys in headers, queries and cookies, and what browsers may send along."""

from __future__ import annotations

import pytest

from moyin.access.gatekeeper.asgi import Scope
from moyin.access.gatekeeper.credentials import (
    Credentials,
    check_origin,
    without_cookie,
    without_keys,
)
from moyin.errors import CrossSiteRequest


def is_comfy(scope: Scope) -> bool:
    return str(scope["path"]).startswith("/comfy/")


TAKEN = Credentials(query=is_comfy, cookie=is_comfy)
SAME = {"sec-fetch-site": "same-origin"}


def scope(
    path: str = "/comfy/api/prompt",
    method: str = "GET",
    query: str = "",
    kind: str = "http",
    **headers: str,
) -> Scope:
    made: Scope = {
        "type": kind,
        "path": path,
        "scheme": "http",
        "query_string": query.encode(),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }
    if kind == "http":
        made["method"] = method
    return made


def with_headers(headers: dict[str, str], **given: str) -> Scope:
    return scope(**given, **headers)


@pytest.mark.parametrize(
    ("headers", "query", "found"),
    [
        ({"authorization": "Bearer a", "x-api-key": "b"}, "key=c", "a"),
        ({"x-api-key": "b", "cookie": "moyin_session=d"}, "key=c", "b"),
        ({"cookie": "moyin_session=d"}, "x=1&key=c", "c"),
        ({}, "token=c", "c"),
        ({}, "api_key=c", "c"),
        ({}, "%6Bey=c", "c"),
        ({"cookie": "a=1; moyin_session=d; b=2"}, "", "d"),
        ({"cookie": 'moyin_session="d"'}, "", "d"),
        ({"cookie": "xmoyin_session=d"}, "", None),
        ({"cookie": "moyin_session="}, "", None),
        ({"authorization": "Bearer "}, "", None),
        ({}, "key=", None),
    ],
)
def test_one_key_is_found(headers: dict[str, str], query: str, found: str | None) -> None:
    assert TAKEN.take(with_headers(headers, query=query)) == found


@pytest.mark.parametrize("name", ["key", "token", "api_key", "%74oken", "k%65y"])
def test_nobody_else_sees_the_key_in_the_query(name: str) -> None:
    asked = scope(query=f"filename=a%20b.png&{name}=secret&type=output")
    assert TAKEN.take(asked) == "secret"
    assert asked["query_string"] == b"filename=a%20b.png&type=output"


def test_it_is_cut_out_even_where_another_proof_comes_with_it() -> None:
    asked = scope(query="key=secret", x_api_key="good")
    assert TAKEN.take(asked) == "good"
    assert asked["query_string"] == b""


@pytest.mark.parametrize("query", ["key=c", "token=c", "api_key=c"])
def test_elsewhere_a_query_is_not_looked_at(query: str) -> None:
    asked = scope(path="/jobs", query=query)
    assert TAKEN.take(asked) is None
    assert asked["query_string"] == query.encode()


def test_any_socket_may_bring_an_api_key_in_its_query_and_nothing_else() -> None:
    assert TAKEN.take(scope("/svc", query="api_key=c", kind="websocket")) == "c"
    assert TAKEN.take(scope("/svc", query="token=c", kind="websocket")) is None


def test_elsewhere_a_cookie_is_not_looked_at() -> None:
    assert TAKEN.take(scope("/jobs", cookie="moyin_session=d")) is None
    assert Credentials().take(scope(cookie="moyin_session=d")) is None


OWN = "http://door.example:8000"


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site", "origin": OWN}, False),
        ({"origin": OWN}, True),
        ({"origin": "http://door.example:8001"}, False),
        ({"origin": "https://door.example"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://door.example:8000.evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "file://door.example:8000"}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("kind", ["POST", "DELETE", "websocket"])
def test_a_cookie_is_only_good_from_our_own_pages(
    headers: dict[str, str], fine: bool, kind: str
) -> None:
    socket = {"kind": "websocket"} if kind == "websocket" else {"method": kind}
    sent = {"host": "door.example:8000", "cookie": "moyin_session=d", **headers}
    asked = with_headers(sent, **socket)
    if fine:
        assert TAKEN.take(asked) == "d"
    else:
        with pytest.raises(CrossSiteRequest):
            TAKEN.take(asked)


def test_reading_needs_no_origin_and_a_header_is_never_asked_for_one() -> None:
    foreign = {"host": "door.example", "origin": "http://evil.example"}
    by_cookie = with_headers({**foreign, "cookie": "moyin_session=d"})
    assert TAKEN.take(by_cookie) == "d"
    by_header = with_headers({**foreign, "x-api-key": "b"}, method="POST")
    assert TAKEN.take(by_header) == "b"


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://door.example", "door.example"),  # TLS ended in front
        ("https://door.example", "DOOR.example:443"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_an_origin_is_compared_as_an_address(origin: str, host: str) -> None:
    check_origin(with_headers({"origin": origin, "host": host}, method="POST"))


def test_who_says_nothing_is_no_browser_and_may_sign_in() -> None:
    check_origin(scope(method="POST"), known=False)
    with pytest.raises(CrossSiteRequest):
        check_origin(scope(method="POST", origin="http://evil.example"), known=False)


@pytest.mark.parametrize("host", ["", "a b", "door.example:x", "door.example:99999"])
def test_a_senseless_host_is_nobodys_own(host: str) -> None:
    with pytest.raises(CrossSiteRequest):
        check_origin(with_headers({"origin": "http://door.example", "host": host}, method="POST"))


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("moyin_session=x", ""),
        ("a=1; moyin_session=x; b=2", "a=1; b=2"),
        ("moyin_session=x;moyin_session=y", ""),
        (" moyin_session = x; a=1", "a=1"),
        ("a=moyin_session", "a=moyin_session"),
    ],
)
def test_upstreams_get_every_cookie_but_ours(value: str, left: str) -> None:
    assert without_cookie(value) == left


def test_only_keys_leave_the_query() -> None:
    assert without_keys("a=1&key=x&b=key&tokens=2&token") == "a=1&b=key&tokens=2"
