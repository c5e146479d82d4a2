from __future__ import annotations

import re

import pytest

from moyin.errors import InvalidRequest
from moyin.proxy.paths import read_leniently, remove_api_key, to_public_location, to_upstream_path
from moyin.proxy.route import PathRewrite, Route, RouteTable, Upstream

UP = (Upstream(url="http://10.0.0.1:80/base"),)


def make_route(name: str, **kwargs: object) -> Route:
    return Route(name=name, upstreams=UP, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def table() -> RouteTable:
    return RouteTable(
        [
            make_route("wide", prefix="/a"),
            make_route("deep", prefix="/a/b/"),
            make_route("exact", paths=frozenset({"/a/b/c", "/api/chat"})),
            make_route("site", prefix="/", hosts=frozenset({"wiki.studio"})),
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
    matched_route = table.match(host, path)
    assert (matched_route and matched_route.name) == name


@pytest.mark.parametrize(
    "conflicting_routes",
    [
        [make_route("a", prefix="/x"), make_route("b", prefix="/x/")],
        [make_route("a", paths=frozenset({"/x"})), make_route("b", paths=frozenset({"/x"}))],
        [make_route("a", prefix="/x"), make_route("a", prefix="/y")],
    ],
)
def test_conflicting_routes_are_rejected(conflicting_routes: list[Route]) -> None:
    with pytest.raises(ValueError, match="a"):
        RouteTable(conflicting_routes)


def test_prefix_is_stripped_and_rewrite_is_applied() -> None:
    stripping_route = make_route("a", prefix="/a/")
    assert to_upstream_path(stripping_route, "/a") == "/"
    assert to_upstream_path(stripping_route, "/a/b%2Fc") == "/b%2Fc"
    assert to_upstream_path(make_route("a", prefix="/a", strip_prefix=False), "/a/b") == "/a/b"
    rewrite = PathRewrite(pattern=re.compile(r"^/v(\d)/"), replacement=r"/api/\1/")
    assert to_upstream_path(make_route("a", prefix="/a", rewrite=rewrite), "/a/v2/x") == "/api/2/x"


def test_exact_paths_are_forwarded_unchanged() -> None:
    route_with_prefix_and_paths = make_route(
        "a", prefix="/a", paths=frozenset({"/api/chat", "/a-list"})
    )
    for path in ("/api/chat", "/api/ch%61t", "/a-list"):
        assert to_upstream_path(route_with_prefix_and_paths, path) == path
    assert to_upstream_path(route_with_prefix_and_paths, "/a/x") == "/x"


def test_no_path_becomes_a_part_of_the_upstreams_address() -> None:
    for path in ("/a%2F@evil.example/x", "/a%2fx", "/a@evil.example"):
        with pytest.raises(InvalidRequest):
            to_upstream_path(make_route("a", prefix="/a"), path)
    careless_rewrite = PathRewrite(pattern=re.compile(r"^/v\d/"), replacement="")
    rewritten_path = to_upstream_path(
        make_route("a", prefix="/a", rewrite=careless_rewrite), "/a/v1/@evil.example/x"
    )
    assert rewritten_path == "/@evil.example/x"


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
def test_ambiguous_paths_are_rejected(path: str) -> None:
    with pytest.raises(InvalidRequest):
        to_upstream_path(make_route("a", prefix="/a"), path)


@pytest.mark.parametrize(
    "path", ["/a/b;v=1/c", "/a/..b", "/a/...", "/a/caf%C3%A9", "/a/x;..", "/a/%e9"]
)
def test_unusual_but_unambiguous_paths_are_forwarded(path: str) -> None:
    assert to_upstream_path(make_route("a", prefix="/a"), path) == path[2:]


@pytest.mark.parametrize(
    ("path", "lenient_path"),
    [
        ("/a/b/c", None),
        ("/a//b", "/a/b"),
        ("/a/b;x=1/c;y", "/a/b/c"),
        ("/a/;/b", "/a/b"),
        ("/a/%62;x", "/a/b"),
    ],
)
def test_lenient_reading_drops_parameters_and_repeated_slashes(
    path: str, lenient_path: str | None
) -> None:
    assert read_leniently(path) == lenient_path


@pytest.mark.parametrize(
    ("location", "public_location"),
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
def test_redirects_are_translated_for_the_client(location: str, public_location: str) -> None:
    assert to_public_location(make_route("a", prefix="/a"), UP[0].url, location) == public_location


@pytest.mark.parametrize(
    ("location", "public_location"),
    [
        ("/a/x?q", "/a/x?q"),
        # The service may redirect to its own address.
        ("http://10.0.0.1:80/a/x", "/a/x"),
        ("https://gateway.studio/a/x", "https://gateway.studio/a/x"),
    ],
)
def test_redirects_keep_the_prefix_of_a_service_that_knows_it(
    location: str, public_location: str
) -> None:
    rewriting_route = make_route("a", prefix="/a", proxy_redirect=False)
    assert to_public_location(rewriting_route, UP[0].url, location) == public_location


def test_api_keys_are_removed_from_queries() -> None:
    assert remove_api_key("a=1&api_key=secret&b=2&api%5Fkey=s") == "a=1&b=2"
