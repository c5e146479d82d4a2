"""Where a request's key is found: in a header, or where browsers and simple clients can put it.

A query is written into logs and histories, so a key in it is taken only on the paths whose clients
have no other way, and is cut out before anybody else sees the query. A cookie is sent by the
browser whoever made the page that asks, so what comes with it must come from the door's own pages.
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
    "Where",
    "check_origin",
    "without_cookie",
    "without_keys",
]

COOKIE = "moyin_session"
# In a query, on the paths that allow it; on any WebSocket only the first.
_NAMES = ("api_key", "key", "token")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
Where = Callable[[Scope], bool]


class Credentials:
    """Finds the key of a request.

    Args:
        query: which requests may carry it in their query.
        cookie: which requests may carry it in a cookie.
    """

    def __init__(self, *, query: Where | None = None, cookie: Where | None = None) -> None:
        self._query = query
        self._cookie = cookie

    def take(self, scope: Scope) -> str | None:
        """The key, which is no longer in ``scope["query_string"]`` then; None: there is none.

        Raises:
            CrossSiteRequest: it came by cookie, and the page that asks is not the door's.
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
        if scope["type"] == "websocket" or scope["method"] not in _SAFE:
            check_origin(scope)
        return secret

    def _from_query(self, scope: Scope) -> str | None:
        query = scope["query_string"].decode("latin-1")
        if self._query is not None and self._query(scope):
            names: tuple[str, ...] = _NAMES
            scope["query_string"] = without_keys(query, names).encode("latin-1")
        elif scope["type"] == "websocket":
            # Browsers cannot set headers on a WebSocket. The proxy passes it on, where it may.
            names = _NAMES[:1]
        else:
            return None
        given = parse_qs(query)
        return next((given[name][0] for name in names if name in given), None)


def check_origin(scope: Scope, *, known: bool = True) -> None:
    """Refuse what another site's page had the browser send.

    Args:
        known: refuse as well what does not say where it comes from; browsers always do.

    Raises:
        CrossSiteRequest: it is not the door's own page that asks.
    """
    site, origin = header(scope, b"sec-fetch-site"), header(scope, b"origin")
    if site is not None:
        fine = site in ("same-origin", "none")
    elif origin is not None:
        fine = _is_own(origin, header(scope, b"host") or "", scope.get("scheme", "http"))
    else:
        fine = not known
    if not fine:
        raise CrossSiteRequest("a page of another site may not do this in your name")


def cookie(scope: Scope) -> str | None:
    """The value of our cookie."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, _, found = pair.strip().partition("=")
                if key == COOKIE:
                    return str(found.strip('"'))
    return None


def without_cookie(value: str) -> str:
    """A Cookie header without ours; empty when nothing is left."""
    pairs = (pair.strip() for pair in value.split(";"))
    return "; ".join(pair for pair in pairs if pair and pair.partition("=")[0].strip() != COOKIE)


def without_keys(query: str, names: tuple[str, ...] = _NAMES) -> str:
    """A query without the key in it."""
    return "&".join(
        part for part in query.split("&") if unquote_plus(part.partition("=")[0]) not in names
    )


def _is_own(origin: str, host: str, scheme: str) -> bool:
    """Whether an Origin is the host that was asked. The scheme is the proxy's in front."""
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:\[\]-]+", host):
        return False
    try:
        asked = urlsplit(f"//{host}")
        theirs = parts.port or _PORTS[parts.scheme]
        # Behind a proxy that ends TLS, a host without a port is on the origin's own default.
        ours = asked.port or _PORTS[parts.scheme]
    except ValueError:
        return False
    return (parts.hostname, theirs) == (asked.hostname, ours)
