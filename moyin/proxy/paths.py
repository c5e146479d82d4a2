"""Translates paths between client and upstream, and rejects ambiguous ones; pure."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from moyin.errors import InvalidRequest
from moyin.proxy.route import Route

__all__ = ["lenient_path", "public_location", "upstream_path", "without_api_key"]

# Java servers drop everything behind a semicolon before they read a segment, and some decode before
# they split off the query: both find ``..`` in ``/..;x/`` and ``/..%3f/``. IIS reads ``%u002e``.
_FORBIDDEN = re.compile(r"/\.\.?(?:[/;?#]|$)|[\x00-\x1f\x7f\\]|%u[0-9a-f]{4}", re.IGNORECASE)
# UTF-8 that encodes an ASCII character in too many bytes: old decoders read ``%c0%ae`` as a dot.
_OVERLONG = re.compile(r"%c[01]%[89ab]|%e0%[89]|%f0%8", re.IGNORECASE)
_PARAMETERS = re.compile(r";[^/]*")
_SLASHES = re.compile(r"/{2,}")


def upstream_path(route: Route, raw_path: str) -> str:
    """Return the path for the upstream, with its percent-encoding unchanged.

    Raises:
        InvalidRequest: gateway and upstream could read the path differently, for example because of
            ``..`` segments or nested encoding.
    """
    plain = _decoded(raw_path) if "%" in raw_path else raw_path
    if not raw_path.startswith("/") or _FORBIDDEN.search(plain):
        raise InvalidRequest(
            "the path must not contain . or .. segments (..;x is one), backslashes, control characters "
            "or characters in a non-standard encoding",
            field="path",
        )
    path = _without_prefix(route, raw_path)
    if route.rewrite is None:
        return path
    rewritten = route.rewrite(path)
    # Without a leading slash the path would become a part of the upstream's host or port.
    return rewritten if rewritten.startswith("/") else f"/{rewritten}"


def lenient_path(path: str) -> str | None:
    """Return the decoded path as servers read it that ignore ``;parameters`` and repeated slashes.

    None: such a server reads the path unchanged. If the two readings match different routes, the
    request must be rejected: the other route may require more scopes.
    """
    if ";" not in path and "//" not in path and "%" not in path:
        return None
    lenient = _SLASHES.sub("/", _PARAMETERS.sub("", _decoded(path)))
    return None if lenient == path else lenient


def _without_prefix(route: Route, raw_path: str) -> str:
    """Return the path without the route's prefix; it begins with a slash.

    An encoded slash would not end the upstream's address, and could change the server it names.
    """
    if route.prefix is None or not route.strip_prefix:
        return raw_path
    prefix = route.prefix.rstrip("/")
    if raw_path == prefix:
        return "/"
    if raw_path.startswith(f"{prefix}/"):
        return raw_path[len(prefix) :]
    if unquote(raw_path) in route.paths:
        # The route's exact paths may lie outside its prefix.
        return raw_path
    raise InvalidRequest(
        f"the path must begin with {prefix}/ without percent-encoding", field="path"
    )


def without_api_key(query: str) -> str:
    """Return the query without ``api_key``, where browsers put the key of a WebSocket."""
    return "&".join(p for p in query.split("&") if unquote(p.partition("=")[0]) != "api_key")


def public_location(route: Route, upstream: str, location: str) -> str:
    """Translate a redirect to the upstream's own address into one that the client can follow.

    The route's prefix is added even if the location already begins with it: a wiki behind ``/wiki``
    may itself have pages below ``/wiki``. Services that know their prefix set ``proxy_redirect`` to
    false.
    """
    base = urlsplit(upstream)
    try:
        parts = urlsplit(location)
    except ValueError:
        # Not a URL that Python can parse: leave it to the client.
        return location
    if parts.netloc and (parts.scheme, parts.netloc) != (base.scheme, base.netloc):
        return location
    if not parts.path.startswith("/"):
        return location
    path = parts.path
    if base.path.rstrip("/") and path.startswith(base.path.rstrip("/") + "/"):
        path = path[len(base.path.rstrip("/")) :]
    if route.prefix is not None and route.strip_prefix and route.proxy_redirect:
        path = route.prefix.rstrip("/") + path
    query = f"?{parts.query}" if parts.query else ""
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    return f"{path}{query}{fragment}"


def _decoded(path: str) -> str:
    """Return ``path`` without percent-encoding, even if it was applied several times."""
    for _ in range(8):
        if _OVERLONG.search(path):
            raise InvalidRequest("the path has overlong UTF-8: write plain ASCII", field="path")
        plain = unquote(path, errors="replace")
        if plain == path:
            return path
        path = plain
    raise InvalidRequest("the path is percent-encoded too many times: encode it once", field="path")
