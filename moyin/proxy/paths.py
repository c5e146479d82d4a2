"""What becomes of a request's target on its way to an upstream; pure."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from moyin.errors import InvalidRequest
from moyin.proxy.route import Route

__all__ = ["other_reading", "public_location", "target", "without_key"]

# Java's servers take off everything behind a semicolon before they read a segment, and some decode
# before they look for the query: both find ``..`` in ``/..;x/`` and ``/..%3f/``. IIS reads ``%u002e``.
_ODD = re.compile(r"/\.\.?(?:[/;?#]|$)|[\x00-\x1f\x7f\\]|%u[0-9a-f]{4}", re.IGNORECASE)
# UTF-8 that spells an ASCII character in too many bytes: old decoders read ``%c0%ae`` as a dot.
_OVERLONG = re.compile(r"%c[01]%[89ab]|%e0%[89]|%f0%8", re.IGNORECASE)
_PARAMETERS = re.compile(r";[^/]*")
_SLASHES = re.compile(r"/{2,}")


def target(route: Route, raw_path: str) -> str:
    """The path that an upstream sees, encoded as it came.

    Raises:
        InvalidRequest: the path climbs, or hides what it is, so that gateway and upstream could
            take it for different ones.
    """
    plain = _decoded(raw_path) if "%" in raw_path else raw_path
    if not raw_path.startswith("/") or _ODD.search(plain):
        raise InvalidRequest(
            "the path must not contain . or .. segments (..;x is one), backslashes, control characters "
            "or characters in a non-standard encoding",
            field="path",
        )
    path = _without_prefix(route, raw_path)
    if route.rewrite is None:
        return path
    rewritten = route.rewrite(path)
    # It goes right behind the upstream's address: without a slash it would become a part of that.
    return rewritten if rewritten.startswith("/") else f"/{rewritten}"


def other_reading(path: str) -> str | None:
    """Return how a server that ignores ``;parameters`` and repeated slashes reads the decoded path.

    None: it reads what is there. Where the other reading is another route's, the request belongs to
    neither: that route may ask for more.
    """
    if ";" not in path and "//" not in path and "%" not in path:
        return None
    read = _SLASHES.sub("/", _PARAMETERS.sub("", _decoded(path)))
    return None if read == path else read


def _without_prefix(route: Route, raw_path: str) -> str:
    """What is left begins with a slash, as it came: an encoded one is none in an address, and what
    follows it could name another server."""
    if route.prefix is None or not route.strip_prefix:
        return raw_path
    prefix = route.prefix.rstrip("/")
    if raw_path == prefix:
        return "/"
    if raw_path.startswith(f"{prefix}/"):
        return raw_path[len(prefix) :]
    if unquote(raw_path) in route.paths:
        # One of the exact paths, which lie anywhere.
        return raw_path
    raise InvalidRequest(f"write {prefix}/ without percent-encoding", field="path")


def without_key(query: str) -> str:
    """A WebSocket's query without the key that a browser had to put there."""
    return "&".join(p for p in query.split("&") if unquote(p.partition("=")[0]) != "api_key")


def public_location(route: Route, upstream: str, location: str) -> str:
    """A redirect to an upstream's own address, as the client can follow it.

    It gets the route's prefix even where it begins like it: a wiki at ``/wiki`` may have its pages
    below a ``/wiki`` of its own, and what a service means by it can't be seen. The route says of
    services that know their prefix that they do (``proxy_redirect``).
    """
    base = urlsplit(upstream)
    try:
        found = urlsplit(location)
    except ValueError:
        # No URL that we can read; the client may.
        return location
    if found.netloc and (found.scheme, found.netloc) != (base.scheme, base.netloc):
        return location
    if not found.path.startswith("/"):
        return location
    path = found.path
    if base.path.rstrip("/") and path.startswith(base.path.rstrip("/") + "/"):
        path = path[len(base.path.rstrip("/")) :]
    if route.prefix is not None and route.strip_prefix and route.proxy_redirect:
        path = route.prefix.rstrip("/") + path
    query = f"?{found.query}" if found.query else ""
    fragment = f"#{found.fragment}" if found.fragment else ""
    return f"{path}{query}{fragment}"


def _decoded(path: str) -> str:
    """``path`` without percent-encoding, however often it was applied."""
    for _ in range(8):
        if _OVERLONG.search(path):
            raise InvalidRequest("the path has overlong UTF-8: write plain ASCII", field="path")
        plain = unquote(path, errors="replace")
        if plain == path:
            return path
        path = plain
    raise InvalidRequest("the path is percent-encoded too often", field="path")
