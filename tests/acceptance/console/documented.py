"""Checks whether a page's request goes to a documented route of the API."""

from __future__ import annotations

import re
from functools import cache

import httpx

# The apps, by the prefix of their routes: gateway, models, accounts.
_PREFIXES = ("", "/v1", "/accounts")
# Pages for people and their files. ComfyUI's own frontend calls what ComfyUI documents.
_PAGE = re.compile(r"/|/favicon\.ico|/(console|comfy|docs)(/.*)?")
_PARAMETER = re.compile(r"\\{\w+\\}")


@cache
def read_routes(url: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return the method and the path's pattern of each route in a stack's OpenAPI documents."""
    routes = []
    for prefix in _PREFIXES:
        document = httpx.get(f"{url}{prefix}/openapi.json", timeout=60).raise_for_status().json()
        for path, operations in document["paths"].items():
            pattern = re.compile(_PARAMETER.sub("[^/]*", re.escape(f"{prefix}{path}")))
            routes += [(method.upper(), pattern) for method in operations]
    return tuple(routes)


def is_documented(url: str, method: str, path: str) -> bool:
    """Return True if a stack's OpenAPI documents contain the route, or if the path is a page's."""
    if method == "GET" and _PAGE.fullmatch(path):
        return True
    return any(
        documented_method == method and pattern.fullmatch(path)
        for documented_method, pattern in read_routes(url)
    )
