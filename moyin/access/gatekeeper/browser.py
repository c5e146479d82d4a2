"""Signs browsers in by storing a key in a cookie that scripts cannot read."""

from __future__ import annotations

import re
import time

import jwt

from moyin.access.gatekeeper.asgi import Scope, header
from moyin.access.gatekeeper.credentials import COOKIE, check_origin, cookie
from moyin.access.gatekeeper.identity import Authenticator
from moyin.domain.identity import Identity
from moyin.errors import InvalidKey

__all__ = ["BrowserSessions"]

# The key is verified on each request, so a long lifetime of the cookie is safe.
_LIFETIME_SECONDS = 30 * 86_400
_SECRET = re.compile(r"[\w.~+/=-]{1,4096}", re.ASCII)


class BrowserSessions:
    """Issues and reads session cookies.

    Args:
        path: the path below which browsers send the cookie, and no other service receives it.
    """

    def __init__(self, authenticator: Authenticator, path: str) -> None:
        self._authenticator = authenticator
        self._path = path

    async def begin(self, scope: Scope, secret: str) -> tuple[Identity, str]:
        """Verify a key; return its identity and the Set-Cookie header that signs the browser in.

        Raises:
            CrossSiteRequest: the page of another site sent the request.
            InvalidKey: the key is not valid, or is a token of Moyin's services.
        """
        check_origin(scope, required=False)
        if not _SECRET.fullmatch(secret):
            raise InvalidKey("the API key is not valid")
        identity = await self._authenticator.authenticate(secret)
        if identity.service is not None:
            raise InvalidKey("the API key is not valid")
        return identity, self._set_cookie(scope, secret, _lifetime(secret))

    async def identity(self, scope: Scope) -> Identity | None:
        """Return the identity of the request's cookie; None: there is no valid one."""
        secret = cookie(scope)
        if not secret:
            return None
        try:
            return await self._authenticator.authenticate(secret)
        except InvalidKey:
            return None

    def end(self, scope: Scope) -> str:
        """Return the Set-Cookie header that signs the browser out.

        Raises:
            CrossSiteRequest: the page of another site sent the request.
        """
        check_origin(scope, required=False)
        return self._set_cookie(scope, "", 0)

    def _set_cookie(self, scope: Scope, value: str, max_age: int) -> str:
        secure = "https" in (scope.get("scheme"), header(scope, b"x-forwarded-proto"))
        parts = [
            f"{COOKIE}={value}", f"Path={self._path}", f"Max-Age={max_age}", "HttpOnly",
            "SameSite=Strict",
        ]  # fmt: skip
        return "; ".join([*parts, "Secure"] if secure else parts)


def _lifetime(secret: str) -> int:
    """Return the lifetime of a cookie in seconds; that of an access token ends with the token."""
    if secret.count(".") != 2:
        return _LIFETIME_SECONDS
    claims = jwt.decode(secret, options={"verify_signature": False})
    return max(0, int(claims["exp"] - time.time()))
