"""Finds the key of a request in a header, in the query or in a cookie.

Queries are written to logs and browser histories. So a key in a query is accepted only on paths
whose clients cannot set headers, and is removed before the app sees the query. Browsers send cookies
with requests of any site's pages. So a request with a cookie must come from the gateway's own pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, unquote_plus, urlsplit

from moyin.access.gatekeeper.asgi import Scope, header
from moyin.errors import CrossSiteRequest

__all__ = [
    "COOKIE",
    "Credentials",
    "RequestPredicate",
    "check_origin",
    "without_cookie",
    "without_keys",
]

COOKIE = "moyin_session"
# Names of the key in a query, on paths that allow it; on other WebSockets only the first.
_NAMES = ("api_key", "key", "token")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
RequestPredicate = Callable[[Scope], bool]


class Credentials:
    """Finds the key of a request.

    Args:
        query: whether a request may have its key in the query; None: none may.
        cookie: whether a request may have its key in a cookie; None: none may.
    """

    def __init__(
        self, *, query: RequestPredicate | None = None, cookie: RequestPredicate | None = None
    ) -> None:
        self._query = query
        self._cookie = cookie

    def take(self, scope: Scope) -> str | None:
        """Return the key and remove it from ``scope["query_string"]``; None: there is none.

        Raises:
            CrossSiteRequest: the key is in a cookie, and another site's page sent the request.
        """
        bearer = header(scope, b"authorization")
        if bearer is not None and bearer[:7].lower() == "bearer ":
            secret: str | None = bearer[7:].strip()
        else:
            secret = header(scope, b"x-api-key")
        in_query = self._from_query(scope) if scope.get("query_string") else None
        if secret is None:
            secret = in_query
        if secret is not None or self._cookie is None or not self._cookie(scope):
            return secret or None
        secret = cookie(scope)
        if not secret:
            return None
        if scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS:
            check_origin(scope)
        return secret

    def _from_query(self, scope: Scope) -> str | None:
        query = scope["query_string"].decode("latin-1")
        if self._query is not None and self._query(scope):
            names: tuple[str, ...] = _NAMES
            scope["query_string"] = without_keys(query, names).encode("latin-1")
        elif scope["type"] == "websocket":
            # Browsers cannot set headers on a WebSocket. The query stays, for the proxy's upstream.
            names = _NAMES[:1]
        else:
            return None
        values = parse_qs(query)
        return next((values[name][0] for name in names if name in values), None)


def check_origin(scope: Scope, *, required: bool = True) -> None:
    """Refuse a request that a page of another site made the browser send.

    Args:
        required: whether to refuse requests that do not state their origin; browsers always do.

    Raises:
        CrossSiteRequest: the request does not come from one of the gateway's own pages.
    """
    site, origin = header(scope, b"sec-fetch-site"), header(scope, b"origin")
    if site is not None:
        is_allowed = site in ("same-origin", "none")
    elif origin is not None:
        is_allowed = _is_own(origin, header(scope, b"host") or "", scope.get("scheme", "http"))
    else:
        is_allowed = not required
    if not is_allowed:
        raise CrossSiteRequest(
            "this request must come from one of the gateway's own pages, not from another site"
        )


def cookie(scope: Scope) -> str | None:
    """Return the value of the session cookie; None: there is none."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, _, value_text = pair.strip().partition("=")
                if key == COOKIE:
                    return str(value_text.strip('"'))
    return None


def without_cookie(value: str) -> str:
    """Return a Cookie header without the session cookie; empty if nothing remains."""
    pairs = (pair.strip() for pair in value.split(";"))
    return "; ".join(pair for pair in pairs if pair and pair.partition("=")[0].strip() != COOKIE)


def without_keys(query: str, names: tuple[str, ...] = _NAMES) -> str:
    """Return a query without the key in it."""
    return "&".join(
        part for part in query.split("&") if unquote_plus(part.partition("=")[0]) not in names
    )


def _is_own(origin: str, host: str, scheme: str) -> bool:
    """Return whether an Origin names the request's host, whatever the scheme of the proxy in front."""
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:\[\]-]+", host):
        return False
    try:
        own = urlsplit(f"//{host}")
        origin_port = parts.port or _PORTS[parts.scheme]
        # Behind a proxy that terminates TLS, a host without a port has the origin's default port.
        own_port = own.port or _PORTS[parts.scheme]
    except ValueError:
        return False
    return (parts.hostname, origin_port) == (own.hostname, own_port)
