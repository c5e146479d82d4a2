"""Finds the credential of a request in a header, in the query or in a cookie.

Queries appear in logs and browser histories. A key in a query is therefore accepted only where
clients of other protocols cannot set headers, and is removed before the app gets the query;
browsers follow jobs with event tokens instead. Browsers send cookies also with requests from other
sites' pages. A request with a cookie must therefore come from the gateway's own pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, unquote_plus, urlsplit

from moyin.access.gatekeeper.asgi import Scope, get_header
from moyin.errors import CrossSiteRequest, InvalidKey

SESSION_COOKIE = "moyin_session"
# The refresh token of a browser's session, which browsers send only to renew or end it.
REFRESH_COOKIE = "moyin_refresh"
# Browsers accept cookies with this prefix only over HTTPS and only from the host itself, so that
# pages of sibling subdomains, and of the host over plain HTTP, cannot set them.
HOST_PREFIX = "__Host-"
_OWN_COOKIES = frozenset(
    prefix + name for prefix in ("", HOST_PREFIX) for name in (SESSION_COOKIE, REFRESH_COOKIE)
)
_SECURE_SCHEMES = frozenset({"https", "wss"})
# The query parameters of an API key, and of an event token.
_KEY_PARAMETER, _TOKEN_PARAMETER = "api_key", "token"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# An origin as browsers serialize it (RFC 6454, section 6.2); schemes and hosts in any case.
_ORIGIN = re.compile(r"https?://(?:[\w.-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?", re.ASCII | re.I)
RequestPredicate = Callable[[Scope], bool]


class CredentialFinder:
    """Finds the API key or token of a request.

    Args:
        may_use_query: returns True if a request may have its key in the query as ``api_key``.
        is_proxied: returns True if the proxy forwards a request. A forwarded WebSocket may have
            its key in the query, too; the proxy removes it.
        may_use_cookie: returns True if a request may have its key in a cookie.
        may_use_event_token: returns True if a request may have an event token in the query as
            ``token``.

    A predicate that is None allows no request.
    """

    def __init__(
        self,
        *,
        may_use_query: RequestPredicate | None = None,
        is_proxied: RequestPredicate | None = None,
        may_use_cookie: RequestPredicate | None = None,
        may_use_event_token: RequestPredicate | None = None,
    ) -> None:
        self._may_use_query = may_use_query
        self._is_proxied = is_proxied
        self._may_use_cookie = may_use_cookie
        self._may_use_event_token = may_use_event_token

    def extract(self, scope: Scope, *, reads_cookie: bool = True) -> str | None:
        """Return the key or access token, or None; remove keys from ``scope["query_string"]``.

        Args:
            reads_cookie: True to accept a key in a cookie if there is no other key.

        Raises:
            CrossSiteRequest: the key is in a cookie, and a page of another site sent the request.
            InvalidKey: the request has several session cookies with different values.
        """
        bearer = get_header(scope, b"authorization")
        if bearer is not None and bearer[:7].lower() == "bearer ":
            secret: str | None = bearer[7:].strip()
        else:
            secret = get_header(scope, b"x-api-key")
        query_key = _extract_parameter(scope, _KEY_PARAMETER, self._may_use_query)
        if (
            scope["type"] == "websocket"
            and self._is_proxied is not None
            and self._is_proxied(scope)
        ):
            query_key = _find_parameter(scope["query_string"].decode("latin-1"), _KEY_PARAMETER)
        if secret is None:
            secret = query_key
        if secret is not None or not reads_cookie:
            return secret or None
        if self._may_use_cookie is None or not self._may_use_cookie(scope):
            return None
        secret = get_own_cookie(scope, SESSION_COOKIE)
        if not secret:
            return None
        if scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS:
            require_same_origin(scope)
        return secret

    def extract_event_token(self, scope: Scope) -> str | None:
        """Return the event token, or None, and remove it from ``scope["query_string"]``."""
        return _extract_parameter(scope, _TOKEN_PARAMETER, self._may_use_event_token)


def require_same_origin(scope: Scope, *, requires_origin: bool = True) -> None:
    """Raise `CrossSiteRequest` if a page of another site made a browser send the request.

    Args:
        requires_origin: False to accept requests that have neither the header Origin nor
            Sec-Fetch-Site. Browsers send at least one of them.
    """
    fetch_site, origin = get_header(scope, b"sec-fetch-site"), get_header(scope, b"origin")
    if fetch_site is not None:
        is_allowed = fetch_site in ("same-origin", "none")
    elif origin is not None:
        is_allowed = _is_own_origin(
            origin, get_header(scope, b"host") or "", scope.get("scheme", "http")
        )
    else:
        is_allowed = not requires_origin
    if not is_allowed:
        raise CrossSiteRequest(
            "a request with a session cookie must come from one of the gateway's own pages; "
            "check the headers Origin and Sec-Fetch-Site"
        )


def uses_https(scope: Scope) -> bool:
    """Return True if the client uses HTTPS; a proxy that ends TLS says so in X-Forwarded-Proto."""
    forwarded_schemes = (get_header(scope, b"x-forwarded-proto") or "").lower().split(",")
    schemes = {scope.get("scheme", ""), *(scheme.strip() for scheme in forwarded_schemes)}
    return not _SECURE_SCHEMES.isdisjoint(schemes)


def get_own_cookie(scope: Scope, name: str) -> str | None:
    """Return the value of one of Moyin's cookies, or None if the request does not have it.

    Over HTTPS only the cookie with the prefix ``__Host-`` counts, since a page of a sibling
    subdomain could have set the other.

    Raises:
        InvalidKey: the request has several cookies of this name with different values.
    """
    host_value = _get_unique_cookie(scope, HOST_PREFIX + name)
    if host_value is not None or uses_https(scope):
        return host_value
    return _get_unique_cookie(scope, name)


def _get_unique_cookie(scope: Scope, name: str) -> str | None:
    values = set()
    for header, header_value in scope["headers"]:
        if header == b"cookie":
            for pair in header_value.decode("latin-1").split(";"):
                key, _, value = pair.strip().partition("=")
                if key == name:
                    values.add(str(value.strip('"')))
    if len(values) > 1:
        # The server cannot know which of them another host of the same domain has set.
        raise InvalidKey(
            f"the request has {len(values)} cookies {name} with different values; delete the "
            "cookies of this site and its parent domain in the browser, and sign in again"
        )
    return values.pop() if values else None


def remove_session_cookie(value: str) -> str:
    """Return a Cookie header's value without Moyin's cookies, or "" if no other cookie is left."""
    cookies = (pair.strip() for pair in value.split(";"))
    return "; ".join(cookie for cookie in cookies if cookie and not _is_own_cookie(cookie))


def _is_own_cookie(pair: str) -> bool:
    # A browser stores "=a=1" as a cookie without a name and sends it as "a=1".
    return pair.lstrip("= ").partition("=")[0].strip() in _OWN_COOKIES


def _extract_parameter(scope: Scope, name: str, is_allowed: RequestPredicate | None) -> str | None:
    """Remove a query parameter from the request, and return its first value.

    If ``is_allowed`` is None or returns False, return None and remove nothing.
    """
    if not scope.get("query_string") or is_allowed is None or not is_allowed(scope):
        return None
    query = scope["query_string"].decode("latin-1")
    scope["query_string"] = _remove_parameter(query, name).encode("latin-1")
    return _find_parameter(query, name)


def _find_parameter(query: str, name: str) -> str | None:
    return next(iter(parse_qs(query).get(name, ())), None)


def _remove_parameter(query: str, name: str) -> str:
    return "&".join(
        parameter
        for parameter in query.split("&")
        if unquote_plus(parameter.partition("=")[0]) != name
    )


def _is_own_origin(origin: str, host: str, scheme: str) -> bool:
    """Return True if the Origin header has the request's host; the scheme may differ."""
    # `urlsplit` alone would accept userinfo, paths and port 0, which no browser sends here.
    if not re.fullmatch(r"[\w.:\[\]-]+", host) or not _ORIGIN.fullmatch(origin):
        return False
    try:
        origin_address = urlsplit(origin)
        own_address = urlsplit(f"//{host}")
        origin_port = origin_address.port or _PORTS[origin_address.scheme]
        # A proxy that terminates TLS changes the scheme. Behind it, a host without a port has the
        # origin's default port.
        own_port = own_address.port or _PORTS[origin_address.scheme]
    except ValueError:
        return False
    return (origin_address.hostname, origin_port) == (own_address.hostname, own_port)
