"""Filters the headers of forwarded requests and responses (RFC 9110, section 7.6)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from moyin.access.gatekeeper.asgi import RawHeaders, Scope, get_header
from moyin.access.gatekeeper.credential_finder import remove_session_cookie
from moyin.errors import InvalidRequest

_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_MOYIN_PREFIX = "x-moyin-"
# The gateway's own server adds these to every response.
_SET_BY_SERVER = frozenset({"date", "server", "x-request-id"})
# The gateway's server has answered `Expect`; aiohttp sets `Host` for the upstream.
_NOT_FORWARDED = frozenset({"expect", "host"})
_HANDSHAKE_PREFIX = "sec-websocket-"
_VIA = "1.1 moyin"
# CGI and WSGI map `Remote-User`, `Remote_User` and, in some servers, `Remote.User` to one variable.
# So only letters, digits and hyphens are forwarded. HAProxy, nginx and Apache drop underscores too.
_UNAMBIGUOUS_NAME = re.compile(r"[a-z0-9-]+")
# Authentication proxies identify the caller to a service by headers that the service trusts. If a
# client sends such a header, it is forged. Sources: the documentation of oauth2-proxy, Authelia,
# authentik, Vouch, Pomerium, Kong, Traefik, Grafana's auth proxy, mod_auth_openidc, SiteMinder,
# WebSEAL, Cloudflare Access, Google IAP, AWS ALB, Azure App Service and Tailscale Serve; RFC 9440.
_FORGEABLE_NAMES = frozenset(
    {
        # Set by the gateway itself.
        "forwarded", "via", "x-real-ip", "x-request-id", "x-request-disconnect-disabled",
        "x-request-timeout-seconds",
        # The client's address, as other proxies report it.
        "cf-connecting-ip", "cf-connecting-ipv6", "client-ip", "fastly-client-ip", "true-client-ip",
        "x-client-ip", "x-cluster-client-ip", "x-originating-ip",
        # A path or host that some frameworks use instead of the one that was authorized.
        "x-host", "x-original-host", "x-original-uri", "x-original-url", "x-rewrite-url",
        # As the CGI variable HTTP_PROXY it redirects the service's own requests ("httpoxy").
        "proxy",
        # The caller's identity.
        "auth-user", "client-cert", "client-cert-chain", "x-anonymous-consumer",
        "x-client-cert", "x-client-dn", "x-client-verify", "x-email", "x-groups", "x-id-token",
        "x-user", "x-userid", "x-userinfo", "x-username",
    }
)  # fmt: skip
_FORGEABLE_PREFIXES = (
    "x-moyin-", "x-forwarded-",
    "cf-access-", "iv-", "mellon-", "oidc-", "remote-", "shib-", "sm-", "ssl-client-",
    "tailscale-", "x-amzn-oidc-", "x-auth-email", "x-auth-group", "x-auth-name", "x-auth-request-",
    "x-auth-role", "x-auth-user", "x-authelia-", "x-authenticated-", "x-authentik-",
    "x-consumer-", "x-credential-", "x-endpoint-api-userinfo", "x-goog-authenticated-user-",
    "x-goog-iap-", "x-jwt-claim-", "x-jwt-payload", "x-ms-client-principal", "x-ms-token-", "x-oidc-",
    "x-pomerium-", "x-proxy-user", "x-proxy-remote-user", "x-remote-", "x-ssl-client-", "x-sso-",
    "x-user-email", "x-user-group", "x-user-id", "x-user-name", "x-user-role", "x-vouch-",
    "x-webauth-",
)  # fmt: skip


def build_request_headers(
    scope: Scope,
    request_id: str,
    *,
    address: str,
    prefix: str | None,
    pass_credentials: bool,
    identity_headers: Mapping[str, str],
) -> list[tuple[str, str]]:
    """Return the headers that an upstream receives for a client's request.

    Hop-by-hop headers, API keys, session cookies, and headers by which a client could pose as the
    gateway are left out. Headers that describe the client are added.

    Args:
        address: the client's IP address, or an empty string if it is unknown.
        prefix: the route's prefix that was removed from the path, if any.
        pass_credentials: True to forward the caller's key instead of ``identity_headers``.
        identity_headers: the signed headers that identify the caller to the service.

    Raises:
        InvalidRequest: two servers could read different lengths of the body.
    """
    _reject_ambiguous_length(scope)
    is_websocket = scope["type"] == "websocket"
    forwarded_headers = []
    for name, value in _iterate_end_to_end_headers(scope["headers"]):
        if name in _NOT_FORWARDED or not is_forwardable(name):
            continue
        if is_websocket and (name.startswith(_HANDSHAKE_PREFIX) or name == "content-length"):
            continue
        if not pass_credentials and _is_moyin_credential(name, value):
            continue
        if name == "cookie" and not (value := remove_session_cookie(value)):
            continue
        forwarded_headers.append((name, value))
    forwarded_headers += [
        ("x-request-id", request_id),
        ("x-forwarded-proto", _get_web_scheme(scope, address)),
        ("x-forwarded-host", get_header(scope, b"host") or ""),
        ("via", _VIA),
    ]
    if address:
        forwarded_headers.append(("x-forwarded-for", address))
    if prefix:
        forwarded_headers.append(("x-forwarded-prefix", prefix))
    if not pass_credentials:
        forwarded_headers += identity_headers.items()
    return forwarded_headers


def build_response_headers(
    headers: RawHeaders, *, from_own_app: bool = False, location: str | None = None
) -> list[tuple[bytes, bytes]]:
    """Return the headers that the client receives for an upstream's response.

    Args:
        from_own_app: True if the upstream is an app of Moyin, whose ``x-moyin-*`` headers are kept.
        location: the value that replaces the upstream's ``Location``, if any.
    """
    pairs = [(name.lower(), value) for name, value in headers]
    hop_by_hop_names = _list_hop_by_hop_names(pairs)
    returned_headers = []
    for name, value in pairs:
        decoded_name = name.decode("latin-1")
        if decoded_name in hop_by_hop_names or decoded_name in _SET_BY_SERVER:
            continue
        if decoded_name.startswith(_MOYIN_PREFIX) and not from_own_app:
            continue
        # Only the gateway itself may set its cookies.
        if decoded_name == "set-cookie" and not remove_session_cookie(
            value.decode("latin-1").partition(";")[0]
        ):
            continue
        if name == b"location" and location is not None:
            # Restores bytes that are not UTF-8.
            value = location.encode(errors="surrogateescape")
        returned_headers.append((name, value))
    return returned_headers


def _iterate_end_to_end_headers(headers: RawHeaders) -> Iterator[tuple[str, str]]:
    """Yield the decoded headers that are not hop-by-hop."""
    pairs = list(headers)
    hop_by_hop_names = _list_hop_by_hop_names(pairs)
    for raw_name, value in pairs:
        name = raw_name.decode("latin-1")
        if name not in hop_by_hop_names:
            yield name, _decode_value(value)


def _list_hop_by_hop_names(pairs: Iterable[tuple[bytes, bytes]]) -> frozenset[str]:
    """Return the names of the known hop-by-hop headers and of those that ``Connection`` lists."""
    connection_values = [value for name, value in pairs if name == b"connection"]
    if not connection_values or connection_values == [b"keep-alive"]:
        return _HOP_BY_HOP
    connection_names = b",".join(connection_values).decode("latin-1").lower().split(",")
    return _HOP_BY_HOP | {name.strip() for name in connection_names}


def _reject_ambiguous_length(scope: Scope) -> None:
    """Reject a body whose length two servers could read differently (request smuggling)."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    is_chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    if len(lengths) > 1 or (lengths and (is_chunked or not lengths[0].isdigit())):
        message = "the body's length is ambiguous: send one Content-Length or Transfer-Encoding"
        raise InvalidRequest(message, field="Content-Length")


def _is_moyin_credential(name: str, value: str) -> bool:
    return name == "x-api-key" or (name == "authorization" and value[:7].lower() == "bearer ")


def _get_web_scheme(scope: Scope, address: str) -> str:
    """Return the scheme that the client used: ``http`` or ``https``.

    If a trusted proxy is in front of the gateway, its ``x-forwarded-proto`` header has the scheme.

    Args:
        address: the client's address. It differs from the address of the connection's peer only if
            the peer is a trusted proxy.
    """
    peer = (scope.get("client") or ("", 0))[0]
    forwarded_scheme = get_header(scope, b"x-forwarded-proto")
    if address and address != peer and forwarded_scheme in ("http", "https"):
        return forwarded_scheme
    return {"ws": "http", "wss": "https"}.get(scope["scheme"], str(scope["scheme"]))


def _decode_value(value: bytes) -> str:
    """Decode a header value as UTF-8, in which aiohttp will encode it, or else as Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def is_forwardable(name: str) -> bool:
    """Return True if a client's header with this lower-case name may be sent on to a service."""
    return (
        _UNAMBIGUOUS_NAME.fullmatch(name) is not None
        and name not in _FORGEABLE_NAMES
        and not name.startswith(_FORGEABLE_PREFIXES)
    )
