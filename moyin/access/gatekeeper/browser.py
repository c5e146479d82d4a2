"""Signing a browser in: a key goes into a cookie that no script can read."""

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

# A key is checked anew with every request, so the cookie may live as long as is handy.
_LIFETIME_SECONDS = 30 * 86_400
_SECRET = re.compile(r"[\w.~+/=-]{1,4096}", re.ASCII)


class BrowserSessions:
    """Cookies below one path.

    Args:
        path: where browsers send the cookie, and scripts of the door's other services don't get it.
    """

    def __init__(self, authenticator: Authenticator, path: str) -> None:
        self._authenticator = authenticator
        self._path = path

    async def begin(self, scope: Scope, secret: str) -> tuple[Identity, str]:
        """Who a key is, and the Set-Cookie that signs them in.

        Raises:
            CrossSiteRequest: another site's page would sign somebody in as somebody else.
            InvalidKey: it proves nothing, or is one that services use among themselves.
        """
        check_origin(scope, known=False)
        if not _SECRET.fullmatch(secret):
            raise InvalidKey("the API key is not valid")
        identity = await self._authenticator.authenticate(secret)
        if identity.service is not None:
            raise InvalidKey("the API key is not valid")
        return identity, self._set_cookie(scope, secret, _lifetime(secret))

    async def identity(self, scope: Scope) -> Identity | None:
        """Who the request's cookie is; None: nobody, or no longer."""
        secret = cookie(scope)
        if not secret:
            return None
        try:
            return await self._authenticator.authenticate(secret)
        except InvalidKey:
            return None

    def end(self, scope: Scope) -> str:
        """The Set-Cookie that signs out.

        Raises:
            CrossSiteRequest: another site's page would sign somebody out.
        """
        check_origin(scope, known=False)
        return self._set_cookie(scope, "", 0)

    def _set_cookie(self, scope: Scope, value: str, max_age: int) -> str:
        secure = "https" in (scope.get("scheme"), header(scope, b"x-forwarded-proto"))
        parts = [
            f"{COOKIE}={value}", f"Path={self._path}", f"Max-Age={max_age}", "HttpOnly",
            "SameSite=Strict",
        ]  # fmt: skip
        return "; ".join([*parts, "Secure"] if secure else parts)


def _lifetime(secret: str) -> int:
    """Seconds until the browser may forget it: an access token says itself when it ends."""
    if secret.count(".") != 2:
        return _LIFETIME_SECONDS
    claims = jwt.decode(secret, options={"verify_signature": False})
    return max(0, int(claims["exp"] - time.time()))
