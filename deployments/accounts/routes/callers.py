"""Who calls, for the routes."""

from __future__ import annotations

from starlette.requests import Request

from moyin.access.accounts.caller import Caller
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.addresses import TrustedProxies
from moyin.errors import InsufficientScope, MissingKey

__all__ = ["Callers"]


class Callers:
    """Reads the caller out of a request."""

    def __init__(self, proxies: TrustedProxies) -> None:
        self._proxies = proxies

    def address(self, request: Request) -> str:
        return self._proxies.client(request.scope)

    def of(self, request: Request) -> Caller:
        """
        Raises:
            MissingKey: on a public path.
        """
        found = context(request.scope)
        if found.identity is None:
            raise MissingKey("this needs an API key or an access token")
        return Caller(
            identity=found.identity, request_id=found.request_id, address=self.address(request)
        )

    def user(self, request: Request) -> str:
        """The id of the person or service account.

        Raises:
            InsufficientScope: the caller is nobody in particular, such as a tenant's own key.
        """
        user = self.of(request).identity.user
        if user is None:
            raise InsufficientScope("this is for people: sign in, or use a key of a user")
        return user

    def person(self, request: Request) -> tuple[str, str]:
        """The ids of a person who signed in and of the session.

        Raises:
            InsufficientScope: the caller came with an API key.
        """
        user, identity = self.user(request), self.of(request).identity
        if not identity.is_session:
            raise InsufficientScope("this needs the access token of somebody who signed in")
        return user, identity.key_id
