"""Which headers cross the proxy (RFC 9110, section 7.6), and which are the proxy's own; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from moyin.access.gatekeeper.asgi import RawHeaders, Scope, header
from moyin.access.gatekeeper.credentials import without_cookie
from moyin.errors import InvalidRequest
from moyin.proxy.claims import may_cross

__all__ = ["request_headers", "response_headers"]

_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_OUR_PREFIX = "x-moyin-"
# Every answer gets these from the servers in front.
_OF_OUR_SERVER = frozenset({"date", "server", "x-request-id"})
# The server in front has answered it, and the handshake's own are made anew.
_NOT_FORWARDED = frozenset({"expect", "host"})
_HANDSHAKE = "sec-websocket-"
_VIA = "1.1 moyin"


def request_headers(
    scope: Scope,
    *,
    request_id: str,
    address: str,
    prefix: str | None,
    pass_credentials: bool,
    identity: Mapping[str, str],
) -> list[tuple[str, str]]:
    """Return what an upstream gets: the client's headers without hop-by-hop ones, keys and forgeries.

    Args:
        address: the client's, as far as it is known.
        prefix: that was taken off the path.
        identity: who the caller is, by header; signed.

    Raises:
        InvalidRequest: the body's length is told in more than one way.
    """
    _check_framing(scope)
    socket = scope["type"] == "websocket"
    sent = []
    for name, value in _end_to_end(scope["headers"]):
        if name in _NOT_FORWARDED or not may_cross(name):
            continue
        if socket and (name.startswith(_HANDSHAKE) or name == "content-length"):
            continue
        if not pass_credentials and _is_our_key(name, value):
            continue
        if name == "cookie" and not (value := without_cookie(value)):
            continue
        sent.append((name, value))
    sent += [
        ("x-request-id", request_id),
        ("x-forwarded-proto", _web_scheme(scope, address)),
        ("x-forwarded-host", header(scope, b"host") or ""),
        ("via", _VIA),
    ]
    if address:
        sent.append(("x-forwarded-for", address))
    if prefix:
        sent.append(("x-forwarded-prefix", prefix))
    if not pass_credentials:
        sent += identity.items()
    return sent


def response_headers(
    headers: RawHeaders, *, ours: bool = False, location: str | None = None
) -> list[tuple[bytes, bytes]]:
    """What the client gets.

    Args:
        ours: the upstream is an app of ours and may speak as one: of costs, of back ends.
        location: replaces the upstream's own.
    """
    pairs = [(name.lower(), value) for name, value in headers]
    dropped = _dropped(pairs)
    kept = []
    for name, value in pairs:
        plain = name.decode("latin-1")
        if plain in dropped or plain in _OF_OUR_SERVER:
            continue
        if plain.startswith(_OUR_PREFIX) and not ours:
            continue
        # Nobody else signs a browser in.
        if plain == "set-cookie" and not without_cookie(value.decode("latin-1").partition(";")[0]):
            continue
        if name == b"location" and location is not None:
            # Bytes that are no UTF-8 are still what they were.
            value = location.encode(errors="surrogateescape")
        kept.append((name, value))
    return kept


def _end_to_end(headers: RawHeaders) -> Iterator[tuple[str, str]]:
    pairs = list(headers)
    dropped = _dropped(pairs)
    for raw, value in pairs:
        name = raw.decode("latin-1")
        if name not in dropped:
            yield name, _text(value)


def _dropped(pairs: Iterable[tuple[bytes, bytes]]) -> frozenset[str]:
    """Headers of the connection: the known ones, and those that it names itself."""
    listed = [value for name, value in pairs if name == b"connection"]
    if not listed or listed == [b"keep-alive"]:
        return _HOP_BY_HOP
    named = b",".join(listed).decode("latin-1").lower().split(",")
    return _HOP_BY_HOP | {name.strip() for name in named}


def _check_framing(scope: Scope) -> None:
    """Refuse what two servers could read differently (request smuggling)."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    if len(lengths) > 1 or (lengths and (chunked or not lengths[0].isdigit())):
        raise InvalidRequest("the body's length is ambiguous", field="Content-Length")


def _is_our_key(name: str, value: str) -> bool:
    return name == "x-api-key" or (name == "authorization" and value[:7].lower() == "bearer ")


def _web_scheme(scope: Scope, address: str) -> str:
    """As the client sees it: TLS ends at a proxy in front, which is believed if it is trusted."""
    peer = (scope.get("client") or ("", 0))[0]
    told = header(scope, b"x-forwarded-proto")
    if address and address != peer and told in ("http", "https"):
        return told
    return {"ws": "http", "wss": "https"}.get(scope["scheme"], str(scope["scheme"]))


def _text(value: bytes) -> str:
    """The value as aiohttp will write it back: UTF-8 where it is that."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
