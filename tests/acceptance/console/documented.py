"""Finds out whether a request of a page is to a route of the documented API."""

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
    """Return the methods and paths in the OpenAPI documents that a stack serves."""
    routes = []
    for prefix in _PREFIXES:
        document = httpx.get(f"{url}{prefix}/openapi.json", timeout=60).raise_for_status().json()
        for path, operations in document["paths"].items():
            pattern = re.compile(_PARAMETER.sub("[^/]*", re.escape(f"{prefix}{path}")))
            routes += [(method.upper(), pattern) for method in operations]
    return tuple(routes)


def is_documented(url: str, method: str, path: str) -> bool:
    """Return True if a document of the stack has this call, or the path is that of a page."""
    if method == "GET" and _PAGE.fullmatch(path):
        return True
    return any(known == method and pattern.fullmatch(path) for known, pattern in read_routes(url))
