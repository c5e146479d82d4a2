"""Reads the caller of a request, for the routes."""

from __future__ import annotations

from starlette.requests import Request

from moyin.access.accounts.caller import Caller
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import TrustedProxies
from moyin.errors import InsufficientScope, MissingKey

__all__ = ["NO_STORE", "Callers"]

# Headers of responses that contain a secret, which no cache may store.
NO_STORE = {"cache-control": "no-store"}


class Callers:
    """Reads the caller and the client address of requests."""

    def __init__(self, proxies: TrustedProxies) -> None:
        self._proxies = proxies

    def address(self, request: Request) -> str:
        """Return the client's address; empty if it is unknown."""
        return self._proxies.get_client_address(request.scope)

    def of(self, request: Request) -> Caller:
        """Return the caller.

        Raises:
            MissingKey: the request has no credential, on a public path.
        """
        request_context = context(request.scope)
        if request_context.identity is None:
            raise MissingKey("this needs an API key or an access token")
        return Caller(
            identity=request_context.identity,
            request_id=request_context.request_id,
            address=self.address(request),
        )

    def user(self, request: Request) -> str:
        """Return the id of the calling user, a person or a service account.

        Raises:
            InsufficientScope: the caller uses a key of the tenant, which has no user.
        """
        user = self.of(request).identity.user
        if user is None:
            raise InsufficientScope(
                "this needs a user: sign in, or use an API key that belongs to a user"
            )
        return user

    def person(self, request: Request) -> tuple[str, str]:
        """Return the ids of the signed-in user and of the session.

        Raises:
            InsufficientScope: the caller uses an API key.
        """
        user, identity = self.user(request), self.of(request).identity
        if not identity.is_session:
            raise InsufficientScope(
                "this needs the access token of a signed-in user, not an API key"
            )
        return user, identity.key_id
