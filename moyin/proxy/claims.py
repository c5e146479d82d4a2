"""Headers of a request that would speak for the caller or for the gateway in front of a service.

Authentication proxies tell a service in such headers who is calling, and services behind them believe
it without a question. From a client they are a forgery, whichever of them the service reads. Sources:
the documentation of oauth2-proxy, Authelia, authentik, Vouch, Pomerium, Kong, Traefik, Grafana's auth
proxy, mod_auth_openidc, SiteMinder, WebSEAL, Cloudflare Access, Google IAP, AWS ALB, Azure App
Service and Tailscale Serve; RFC 9440.
"""

from __future__ import annotations

import re

__all__ = ["may_cross"]

# CGI and WSGI make one variable of `Remote-User`, `Remote_User` and, in some servers, of `Remote.User`:
# of a name with anything but letters, digits and hyphens nobody knows which header a service reads.
# HAProxy, nginx and Apache drop names with an underscore for the same reason.
_PLAIN = re.compile(r"[a-z0-9-]+")
_NAMES = frozenset(
    {
        # The gateway says these itself.
        "forwarded", "via", "x-real-ip", "x-request-id", "x-request-disconnect-disabled",
        "x-request-timeout-seconds",
        # The caller's address, as other proxies tell it.
        "cf-connecting-ip", "cf-connecting-ipv6", "client-ip", "fastly-client-ip", "true-client-ip",
        "x-client-ip", "x-cluster-client-ip", "x-originating-ip",
        # Another path or host than the one that was checked, which some frameworks obey.
        "x-host", "x-original-host", "x-original-uri", "x-original-url", "x-rewrite-url",
        # As a CGI variable it chooses the proxy that the service calls others by ("httpoxy").
        "proxy",
        # The caller.
        "auth-user", "client-cert", "client-cert-chain", "x-anonymous-consumer",
        "x-client-cert", "x-client-dn", "x-client-verify", "x-email", "x-groups", "x-id-token",
        "x-user", "x-userid", "x-userinfo", "x-username",
    }
)  # fmt: skip
_PREFIXES = (
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


def may_cross(name: str) -> bool:
    """Return whether a client's header of this name (lower case) goes on to a service."""
    return (
        _PLAIN.fullmatch(name) is not None and name not in _NAMES and not name.startswith(_PREFIXES)
    )
