"""Signs browsers in: stores the API key or access token in a cookie that scripts cannot read."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable

import jwt

from moyin.access.gatekeeper.asgi import Scope
from moyin.access.gatekeeper.credential_finder import (
    HOST_PREFIX,
    REFRESH_COOKIE,
    SESSION_COOKIE,
    get_own_cookie,
    require_same_origin,
    uses_https,
)
from moyin.access.gatekeeper.identity import Authenticator
from moyin.domain.identity import Identity
from moyin.errors import InvalidKey

# A long lifetime is safe, since the key in the cookie is verified on each request.
_LIFETIME_SECONDS = 30 * 86_400
_SECRET = re.compile(r"[\w.~+/=-]{1,4096}", re.ASCII)
_REFRESH_PATH = "/accounts/session"
# Earlier versions set the session cookie for this path, where it would hide the newer one.
_FORMER_PATH = "/comfy/"


class BrowserSessions:
    """Issues session cookies and reads the identity from them.

    Args:
        end_session: called with the id of a session, to end it and refuse its tokens.
    """

    def __init__(
        self, authenticator: Authenticator, end_session: Callable[[str], Awaitable[None]]
    ) -> None:
        self._authenticator = authenticator
        self._end_session = end_session

    async def sign_in(self, scope: Scope, secret: str) -> tuple[Identity, list[str]]:
        """Verify an API key or access token for a browser.

        Returns:
            The identity, and the Set-Cookie headers that sign the browser in.

        Raises:
            CrossSiteRequest: the page of another site sent the request.
            InvalidKey: the key is not valid, or is a token of Moyin's services.
        """
        require_same_origin(scope, requires_origin=False)
        if not _SECRET.fullmatch(secret):
            raise InvalidKey(
                "the API key has invalid characters; check that it was copied completely"
            )
        identity = await self._authenticator.authenticate(secret)
        if identity.service is not None:
            raise InvalidKey("tokens of Moyin's services cannot sign browsers in; use an API key")
        return identity, build_cookies(scope, secret)

    async def find_identity(self, scope: Scope) -> Identity | None:
        """Return the identity of the session cookie, or None if there is no valid cookie."""
        try:
            secret = get_own_cookie(scope, SESSION_COOKIE)
            if not secret:
                return None
            return await self._authenticator.authenticate(secret)
        except InvalidKey:
            return None

    def find_refresh_secret(self, scope: Scope) -> str | None:
        """Return the secret of the refresh cookie, or None if there is no unambiguous cookie."""
        try:
            return get_own_cookie(scope, REFRESH_COOKIE)
        except InvalidKey:
            return None

    async def sign_out(self, scope: Scope) -> list[str]:
        """End the session of the cookie, and return the Set-Cookie headers that delete all cookies.

        Raises `CrossSiteRequest` if the page of another site sent the request. An API key in the
        cookie stays valid.
        """
        require_same_origin(scope, requires_origin=False)
        identity = await self.find_identity(scope)
        if identity is not None and identity.is_session:
            await self._end_session(identity.key_id)
        return build_cookies(scope, "")


def build_cookies(
    scope: Scope, secret: str, refresh_secret: str = "", refresh_seconds: int = 0
) -> list[str]:
    """Return the Set-Cookie headers for an API key or access token in ``secret``.

    Over HTTPS the cookies have the prefix ``__Host-``, and those of earlier versions are deleted.
    If ``secret`` is empty, the headers delete the cookie. Without a refresh secret, the refresh
    cookie of an earlier session is deleted; otherwise a renewal would sign the browser in as the
    previous user.

    Args:
        refresh_seconds: the lifetime of the refresh cookie.
    """
    lifetime = get_cookie_lifetime(secret) if secret else 0
    former_cookies = [_build_cookie(scope, SESSION_COOKIE, _FORMER_PATH, "", 0)]
    if not uses_https(scope):
        return [
            _build_cookie(scope, SESSION_COOKIE, "/", secret, lifetime),
            *former_cookies,
            _build_cookie(scope, REFRESH_COOKIE, _REFRESH_PATH, refresh_secret, refresh_seconds),
        ]
    former_cookies += [
        _build_cookie(scope, SESSION_COOKIE, "/", "", 0),
        _build_cookie(scope, REFRESH_COOKIE, _REFRESH_PATH, "", 0),
    ]
    # The prefix requires the path "/", also of the refresh cookie.
    return [
        _build_cookie(scope, HOST_PREFIX + SESSION_COOKIE, "/", secret, lifetime),
        *former_cookies,
        _build_cookie(scope, HOST_PREFIX + REFRESH_COOKIE, "/", refresh_secret, refresh_seconds),
    ]


def get_cookie_lifetime(secret: str) -> int:
    """Return the lifetime of a cookie in seconds; an access token's cookie ends with the token."""
    if secret.count(".") != 2:
        return _LIFETIME_SECONDS
    claims = jwt.decode(secret, options={"verify_signature": False})
    return max(0, int(claims["exp"] - time.time()))


def _build_cookie(scope: Scope, name: str, path: str, value: str, max_age: int) -> str:
    parts = [
        f"{name}={value}", f"Path={path}", f"Max-Age={max_age}", "HttpOnly", "SameSite=Strict",
    ]  # fmt: skip
    return "; ".join([*parts, "Secure"] if uses_https(scope) else parts)
