"""Reads the authenticated caller of a request for the routes of the accounts app."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import Request

from moyin.access.accounts.caller import Caller
from moyin.access.accounts.signin import SignInResult
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import TrustedProxies
from moyin.errors import InsufficientScope, MissingKey
from moyin.store.cursors import PageRequest
from moyin.store.sessions import SessionStore

# Responses that contain a secret have these headers, so that no cache stores them.
NO_STORE_HEADERS = {"cache-control": "no-store"}

SearchText = Annotated[
    str,
    Query(max_length=128, pattern=r"^[^\x00]*$", description="A part of the name, in any case."),
]


def _parse_page(
    limit: Annotated[
        int | None, Query(ge=1, le=200, description="The most of a page; left out: all.")
    ] = None,
    cursor: Annotated[
        str | None, Query(max_length=256, description="`next_cursor` of the previous page.")
    ] = None,
) -> PageRequest:
    return PageRequest(limit=limit, cursor=cursor)


RequestedPage = Annotated[PageRequest, Depends(_parse_page)]


class CallerResolver:
    """Reads the caller, the caller's session and the client's IP address from a request."""

    def __init__(self, proxies: TrustedProxies) -> None:
        self._proxies = proxies

    def get_client_address(self, request: Request) -> str:
        """Return the client's IP address, or an empty string if it is unknown."""
        return self._proxies.get_client_address(request.scope)

    async def record_client(
        self, sessions: SessionStore, result: SignInResult, request: Request
    ) -> None:
        """Record the IP address and the user agent of the client that opened or renewed a session.

        The user's list of sessions shows them.
        """
        user_agent = request.headers.get("user-agent", "")
        await sessions.record_client(
            result.session.id,
            self.get_client_address(request),
            "".join(character for character in user_agent if character.isprintable()),
        )

    def resolve_caller(self, request: Request) -> Caller:
        """Return the caller whom the gatekeeper has authenticated.

        Raises:
            MissingKey: the request has no credential, which the gatekeeper permits on public paths.
        """
        request_context = context(request.scope)
        if request_context.identity is None:
            raise MissingKey(
                "this route requires an API key or an access token: send one as a Bearer token"
            )
        return Caller(
            identity=request_context.identity,
            request_id=request_context.request_id,
            address=self.get_client_address(request),
        )

    def require_user(self, request: Request) -> str:
        """Return the id of the calling user, who is a person or a service account.

        Raises:
            InsufficientScope: the caller's API key belongs to the tenant and not to a user.
        """
        user = self.resolve_caller(request).identity.user
        if user is None:
            raise InsufficientScope(
                "this route requires a user: sign in, or use an API key that belongs to a user"
            )
        return user

    def require_session(self, request: Request) -> tuple[str, str]:
        """Return the id of the signed-in user and the id of the user's session.

        Raises:
            InsufficientScope: the caller uses an API key, not the access token of a session.
        """
        user, identity = self.require_user(request), self.resolve_caller(request).identity
        if not identity.is_session:
            raise InsufficientScope(
                "this route requires the access token of a signed-in user, not an API key"
            )
        return user, identity.key_id
