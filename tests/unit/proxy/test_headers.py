from __future__ import annotations

import pytest

from moyin.proxy.headers import is_forwardable


@pytest.mark.parametrize(
    "name",
    [
        "remote-user", "remote-groups", "x-remote-user", "x-remote-group", "x-remote-extra-scopes",
        "x-webauth-user", "x-webauth-email", "x-webauth-role", "x-auth-request-user",
        "x-auth-request-access-token", "x-forwarded-user", "x-forwarded-email", "x-forwarded-groups",
        "x-forwarded-preferred-username", "x-forwarded-access-token", "x-authenticated-user",
        "x-authenticated-userid", "x-authenticated-groups", "x-authentik-username", "x-vouch-user",
        "x-goog-authenticated-user-email", "x-goog-iap-jwt-assertion", "cf-access-jwt-assertion",
        "x-amzn-oidc-data", "x-ms-client-principal-name", "x-consumer-username", "x-userinfo",
        "tailscale-user-login", "iv-user", "oidc-claim-sub", "ssl-client-verify", "client-cert",
        "x-user", "x-user-id", "x-auth-user", "x-moyin-owner", "x-real-ip", "true-client-ip",
        "x-original-url", "x-rewrite-url", "proxy",
        # Names that some servers map to one of the above.
        "remote_user", "x_forwarded_user", "x-forwarded_user", "x_webauth-user", "http_remote_user",
        "any_name", "x.forwarded.user", "x-auth-request+user",
    ],
)  # fmt: skip
def test_forgeable_headers_are_not_forwarded(name: str) -> None:
    assert not is_forwardable(name)


@pytest.mark.parametrize(
    "name",
    [
        "accept", "accept-language", "content-type", "cookie", "range", "if-none-match", "origin",
        "x-requested-with", "x-csrf-token", "x-auth-token", "x-user-agent", "idempotency-key",
        "x-access-token", "user-agent", "authorization", "traceparent", "x-http-method-override",
        "remoteness", "x-goog-api-key", "sec-websocket-protocol",
    ],
)  # fmt: skip
def test_ordinary_headers_are_forwarded(name: str) -> None:
    assert is_forwardable(name)
