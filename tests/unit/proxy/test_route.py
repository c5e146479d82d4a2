from __future__ import annotations

import re

import pytest

from moyin.errors import InvalidRequest
from moyin.proxy.paths import other_reading, public_location, target, without_key
from moyin.proxy.route import Rewrite, Route, RouteTable, Upstream

UP = (Upstream(url="http://10.0.0.1:80/base"),)


def route(name: str, **more: object) -> Route:
    return Route(name=name, upstreams=UP, **more)  # type: ignore[arg-type]


@pytest.fixture
def table() -> RouteTable:
    return RouteTable(
        [
            route("wide", prefix="/a"),
            route("deep", prefix="/a/b/"),
            route("exact", paths=frozenset({"/a/b/c", "/api/chat"})),
            route("site", prefix="/", hosts=frozenset({"wiki.studio"})),
        ]
    )


@pytest.mark.parametrize(
    ("host", "path", "name"),
    [
        ("x", "/a", "wide"),
        ("x", "/a/x", "wide"),
        ("x", "/a/b", "deep"),
        ("x", "/a/b/x", "deep"),
        ("x", "/a/bx", "wide"),
        ("x", "/a/b/c", "exact"),
        ("x", "/api/chat", "exact"),
        ("x", "/api/chat/", None),
        ("x", "/ab", None),
        ("x", "/", None),
        ("WIKI.studio:8000", "/jobs", "site"),
        ("wiki.studio", "/a/b/c", "site"),
        ("[::1]:80", "/a", "wide"),
    ],
)
def test_the_closest_route_wins(table: RouteTable, host: str, path: str, name: str | None) -> None:
    found = table.match(host, path)
    assert (found and found.name) == name


def test_a_path_may_be_a_route_s_on_some_host(table: RouteTable) -> None:
    assert table.on_some_host("/jobs")
    assert not RouteTable([route("wide", prefix="/a")]).on_some_host("/jobs")


@pytest.mark.parametrize(
    "twice",
    [
        [route("a", prefix="/x"), route("b", prefix="/x/")],
        [route("a", paths=frozenset({"/x"})), route("b", paths=frozenset({"/x"}))],
        [route("a", prefix="/x"), route("a", prefix="/y")],
    ],
)
def test_two_routes_for_the_same_are_refused(twice: list[Route]) -> None:
    with pytest.raises(ValueError, match="a"):
        RouteTable(twice)


def test_rewriting() -> None:
    strip = route("a", prefix="/a/")
    assert target(strip, "/a") == "/"
    assert target(strip, "/a/b%2Fc") == "/b%2Fc"
    assert target(route("a", prefix="/a", strip_prefix=False), "/a/b") == "/a/b"
    rewrite = Rewrite(pattern=re.compile(r"^/v(\d)/"), to=r"/api/\1/")
    assert target(route("a", prefix="/a", rewrite=rewrite), "/a/v2/x") == "/api/2/x"


def test_an_exact_path_beside_the_prefix_goes_on_as_it_is() -> None:
    both = route("a", prefix="/a", paths=frozenset({"/api/chat", "/a-list"}))
    for path in ("/api/chat", "/api/ch%61t", "/a-list"):
        assert target(both, path) == path
    assert target(both, "/a/x") == "/x"


def test_no_path_becomes_a_part_of_the_address() -> None:
    for path in ("/a%2F@evil.example/x", "/a%2fx", "/a@evil.example"):
        with pytest.raises(InvalidRequest):
            target(route("a", prefix="/a"), path)
    careless = Rewrite(pattern=re.compile(r"^/v\d/"), to="")
    rewritten = target(route("a", prefix="/a", rewrite=careless), "/a/v1/@evil.example/x")
    assert rewritten == "/@evil.example/x"


@pytest.mark.parametrize(
    "path",
    [
        "/a/../b",
        "/a/%2e%2e/b",
        "/a/%252e./b",
        "/a/..%2f",
        "/a\\b",
        "/a%5cb",
        "/a%0a",
        "/%61/b",
        "a/b",
        "/a/..;/b",
        "/a/..;x=1/b",
        "/a/.;/b",
        "/a/..;",
        "/a/%2e%2e;/b",
        "/a/%2e%2e%3b/b",
        "/a/..%3b/b",
        "/a/..%253b/b",
        "/a/..%3f/b",
        "/a/..%23",
        "/a/%c0%ae%c0%ae/b",
        "/a/%25c0%25ae/b",
        "/a/%e0%80%ae/b",
        "/a/%u002e%u002e/b",
    ],
)
def test_a_path_that_hides_something_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest):
        target(route("a", prefix="/a"), path)


@pytest.mark.parametrize(
    "path", ["/a/b;v=1/c", "/a/..b", "/a/...", "/a/caf%C3%A9", "/a/x;..", "/a/%e9"]
)
def test_an_honest_path_with_such_characters_is_passed_on(path: str) -> None:
    assert target(route("a", prefix="/a"), path) == path[2:]


@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("/a/b/c", None),
        ("/a//b", "/a/b"),
        ("/a/b;x=1/c;y", "/a/b/c"),
        ("/a/;/b", "/a/b"),
        ("/a/%62;x", "/a/b"),
    ],
)
def test_how_another_server_may_read_a_path(path: str, read: str | None) -> None:
    assert other_reading(path) == read


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("http://10.0.0.1:80/base/x?q#f", "/a/x?q#f"),
        ("/base/x", "/a/x"),
        ("/x", "/a/x"),
        ("x/y", "x/y"),
        # A service's own path may begin like the prefix.
        ("/a/x", "/a/a/x"),
        ("http://[x/", "http://[x/"),
        ("/caf\udce9", "/a/caf\udce9"),
        ("https://10.0.0.1:80/x", "https://10.0.0.1:80/x"),
    ],
)
def test_redirects_are_told_as_the_client_sees_them(location: str, told: str) -> None:
    assert public_location(route("a", prefix="/a"), UP[0].url, location) == told


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("/a/x?q", "/a/x?q"),
        # Also where it believes itself to be at its own address.
        ("http://10.0.0.1:80/a/x", "/a/x"),
        ("https://door.studio/a/x", "https://door.studio/a/x"),
    ],
)
def test_a_service_that_knows_its_prefix_gets_it_once(location: str, told: str) -> None:
    knowing = route("a", prefix="/a", proxy_redirect=False)
    assert public_location(knowing, UP[0].url, location) == told


def test_a_key_does_not_travel_in_a_query() -> None:
    assert without_key("a=1&api_key=secret&b=2&api%5Fkey=s") == "a=1&b=2"
