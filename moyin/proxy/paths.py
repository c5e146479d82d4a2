"""Translates paths between client and upstream, and rejects ambiguous paths."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from moyin.errors import InvalidRequest
from moyin.proxy.route import Route

# Java servers ignore the part of a segment after a semicolon, and some servers decode the path
# before the query is split off. Both find ``..`` in ``/..;x/`` or ``/..%3f/``. IIS reads ``%u002e``.
_FORBIDDEN = re.compile(r"/\.\.?(?:[/;?#]|$)|[\x00-\x1f\x7f\\]|%u[0-9a-f]{4}", re.IGNORECASE)
# UTF-8 with too many bytes for an ASCII character; old decoders read ``%c0%ae`` as a dot.
_OVERLONG = re.compile(r"%c[01]%[89ab]|%e0%[89]|%f0%8", re.IGNORECASE)
_PARAMETERS = re.compile(r";[^/]*")
_SLASHES = re.compile(r"/{2,}")


def to_upstream_path(route: Route, raw_path: str) -> str:
    """Return the path that the upstream receives, with its percent-encoding unchanged.

    Raises:
        InvalidRequest: the gateway and the upstream could read the path differently, for example
            because of ``..`` segments or nested encoding.
    """
    decoded_path = _decode_fully(raw_path) if "%" in raw_path else raw_path
    if not raw_path.startswith("/") or _FORBIDDEN.search(decoded_path):
        raise InvalidRequest(
            "the path must not contain . or .. segments (such as ..;x), backslashes, control "
            "characters or characters in a non-standard encoding",
            field="path",
        )
    path = _strip_prefix(route, raw_path)
    if route.rewrite is None:
        return path
    rewritten_path = route.rewrite(path)
    # Without a leading slash the path would become a part of the upstream's host or port.
    return rewritten_path if rewritten_path.startswith("/") else f"/{rewritten_path}"


def read_leniently(path: str) -> str | None:
    """Return the path as lenient servers read it: without ``;parameters`` and repeated slashes.

    Returns None if the lenient path equals ``path``. If the two paths match different routes, the
    caller must reject the request, because the other route may require more scopes.
    """
    if ";" not in path and "//" not in path and "%" not in path:
        return None
    lenient_path = _SLASHES.sub("/", _PARAMETERS.sub("", _decode_fully(path)))
    return None if lenient_path == path else lenient_path


def _strip_prefix(route: Route, raw_path: str) -> str:
    """Return the path without the route's prefix. The result begins with a slash.

    Raises:
        InvalidRequest: the prefix or the slash after it is percent-encoded. Without a plain slash,
            the path would become a part of the upstream's host name.
    """
    if route.prefix is None or not route.strip_prefix:
        return raw_path
    prefix = route.prefix.rstrip("/")
    if raw_path == prefix:
        return "/"
    if raw_path.startswith(f"{prefix}/"):
        return raw_path[len(prefix) :]
    if unquote(raw_path) in route.paths:
        # An exact path of the route may lie outside its prefix.
        return raw_path
    raise InvalidRequest(
        f"the path must begin with {prefix}/ without percent-encoding", field="path"
    )


def remove_api_key(query: str) -> str:
    """Return the query without ``api_key``, which authenticates WebSockets of browsers."""
    return "&".join(p for p in query.split("&") if unquote(p.partition("=")[0]) != "api_key")


def to_public_location(route: Route, upstream: str, location: str) -> str:
    """Translate a redirect to the upstream's own address into one that the client can follow.

    If the gateway removes the route's prefix from requests, this function adds the prefix to the
    redirect. It does so even if the redirect already begins with the prefix, because a wiki behind
    ``/wiki`` may have its own pages below ``/wiki``. For services that add the prefix themselves,
    set ``proxy_redirect`` to false on the route.

    Args:
        upstream: the URL of the upstream that responded.
        location: the upstream's ``Location`` header. A redirect to another server is returned
            unchanged.
    """
    upstream_parts = urlsplit(upstream)
    try:
        location_parts = urlsplit(location)
    except ValueError:
        # Python cannot parse this URL, but the client may be able to.
        return location
    if location_parts.netloc and (location_parts.scheme, location_parts.netloc) != (
        upstream_parts.scheme,
        upstream_parts.netloc,
    ):
        return location
    if not location_parts.path.startswith("/"):
        return location
    path = location_parts.path
    if upstream_parts.path.rstrip("/") and path.startswith(upstream_parts.path.rstrip("/") + "/"):
        path = path[len(upstream_parts.path.rstrip("/")) :]
    if route.prefix is not None and route.strip_prefix and route.proxy_redirect:
        path = route.prefix.rstrip("/") + path
    query = f"?{location_parts.query}" if location_parts.query else ""
    fragment = f"#{location_parts.fragment}" if location_parts.fragment else ""
    return f"{path}{query}{fragment}"


def _decode_fully(path: str) -> str:
    """Return the path without percent-encoding, even if it was encoded several times."""
    for _ in range(8):
        if _OVERLONG.search(path):
            raise InvalidRequest(
                "the path contains overlong UTF-8: encode each character in its shortest form",
                field="path",
            )
        decoded_path = unquote(path, errors="replace")
        if decoded_path == path:
            return path
        path = decoded_path
    raise InvalidRequest("the path is percent-encoded too many times: encode it once", field="path")
