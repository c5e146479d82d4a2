"""Signs browsers in: stores the API key or access token in a cookie that scripts cannot read."""

from __future__ import annotations

import re
import time

import jwt

from moyin.access.gatekeeper.asgi import Scope, get_header
from moyin.access.gatekeeper.credential_finder import (
    SESSION_COOKIE,
    get_session_cookie,
    require_same_origin,
)
from moyin.access.gatekeeper.identity import Authenticator
from moyin.domain.identity import Identity
from moyin.errors import InvalidKey

# A long lifetime is safe, since the key in the cookie is verified on each request.
_LIFETIME_SECONDS = 30 * 86_400
_SECRET = re.compile(r"[\w.~+/=-]{1,4096}", re.ASCII)


class BrowserSessions:
    """Issues session cookies and reads the identity from them.

    Args:
        path: the path prefix to which browsers send the cookie, so that no other service gets it.
    """

    def __init__(self, authenticator: Authenticator, path: str) -> None:
        self._authenticator = authenticator
        self._path = path

    async def sign_in(self, scope: Scope, secret: str) -> tuple[Identity, str]:
        """Verify an API key or access token for a browser.

        Returns:
            The identity, and the Set-Cookie header that signs the browser in.

        Raises:
            CrossSiteRequest: the page of another site sent the request.
            InvalidKey: the key is not valid, or is a token of Moyin's services.
        """
        require_same_origin(scope, required=False)
        if not _SECRET.fullmatch(secret):
            raise InvalidKey(
                "the API key has characters that no key has; check that it is complete"
            )
        identity = await self._authenticator.authenticate(secret)
        if identity.service is not None:
            raise InvalidKey("tokens of Moyin's services cannot sign browsers in; use an API key")
        return identity, self._build_set_cookie(scope, secret, _get_lifetime(secret))

    async def find_identity(self, scope: Scope) -> Identity | None:
        """Return the identity of the session cookie, or None if there is no valid cookie."""
        secret = get_session_cookie(scope)
        if not secret:
            return None
        try:
            return await self._authenticator.authenticate(secret)
        except InvalidKey:
            return None

    def sign_out(self, scope: Scope) -> str:
        """Return the Set-Cookie header that signs the browser out, or raise `CrossSiteRequest`."""
        require_same_origin(scope, required=False)
        return self._build_set_cookie(scope, "", 0)

    def _build_set_cookie(self, scope: Scope, value: str, max_age: int) -> str:
        secure = "https" in (scope.get("scheme"), get_header(scope, b"x-forwarded-proto"))
        parts = [
            f"{SESSION_COOKIE}={value}", f"Path={self._path}", f"Max-Age={max_age}", "HttpOnly",
            "SameSite=Strict",
        ]  # fmt: skip
        return "; ".join([*parts, "Secure"] if secure else parts)


def _get_lifetime(secret: str) -> int:
    """Return how many seconds a cookie lasts: for an access token, until the token expires."""
    if secret.count(".") != 2:
        return _LIFETIME_SECONDS
    claims = jwt.decode(secret, options={"verify_signature": False})
    return max(0, int(claims["exp"] - time.time()))
