"""Signing up, in and out; passwords; OpenID providers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.accounts.routes.answers import SECRET
from deployments.accounts.routes.callers import Callers
from moyin.access.accounts.oidc import OpenIdSignIn
from moyin.access.accounts.signin import SignIn
from moyin.access.protocol import wire
from moyin.access.protocol.response import session_body

__all__ = ["sign_in_routes"]


def sign_in_routes(sign_in: SignIn, open_id: OpenIdSignIn, callers: Callers) -> APIRouter:
    """Routes for people who want in."""
    router = APIRouter(tags=["sign-in"])

    @router.post("/register", status_code=201)
    async def register(
        body: wire.Register, request: Request, response: Response
    ) -> wire.SessionBody:
        """Become a player."""
        response.headers.update(SECRET)
        address = callers.address(request)
        return session_body(await sign_in.register(body.email, body.password, body.name, address))

    @router.post("/login")
    async def login(body: wire.Login, request: Request, response: Response) -> wire.SessionBody:
        """Sign in with email and password."""
        response.headers.update(SECRET)
        address = callers.address(request)
        return session_body(
            await sign_in.sign_in(body.email, body.password, address, body.device_token)
        )

    @router.post("/refresh")
    async def refresh(body: wire.Refresh, response: Response) -> wire.SessionBody:
        """A new access token, and the refresh token for the next time; the old one is used up.

        A refresh token that comes twice ends the session."""
        response.headers.update(SECRET)
        return session_body(await sign_in.refresh(body.refresh_token))

    @router.post("/logout", status_code=204)
    async def logout(request: Request, body: wire.Logout | None = None) -> None:
        """Sign out; its tokens are refused within seconds."""
        user, session = callers.person(request)
        await sign_in.sign_out(user, session, everywhere=body is not None and body.everywhere)

    @router.post("/password/forgot", status_code=202)
    async def forgot(body: wire.Forgot, request: Request) -> dict[str, str]:
        """Mail a token that sets a new password. The answer is the same for unknown emails."""
        await sign_in.forgot(body.email, callers.address(request))
        return {"status": "a mail is on its way, if there is such an account"}

    @router.post("/password/reset")
    async def reset(body: wire.Reset, request: Request, response: Response) -> wire.ResetDone:
        """Set a new password by the mailed token. All sessions end."""
        response.headers.update(SECRET)
        token = await sign_in.reset(body.token, body.password, callers.address(request))
        return wire.ResetDone(device_token=token)

    @router.post("/password", status_code=204)
    async def change(body: wire.ChangePassword, request: Request) -> None:
        """Change your password. Your other sessions end."""
        user, session = callers.person(request)
        await sign_in.change_password(user, session, body.current_password, body.new_password)

    @router.get("/oidc")
    async def providers() -> wire.ProviderList:
        """The OpenID providers that one may sign in with."""
        found = open_id.providers.values()
        return wire.ProviderList(
            providers=[wire.ProviderBody(name=one.name, issuer=one.issuer) for one in found]
        )

    @router.post("/oidc/begin")
    async def begin(body: wire.BeginSignIn, request: Request) -> wire.BegunSignIn:
        """Where to send the browser. Keep `state`: it must come back with it."""
        url, state = await open_id.begin(body.provider, body.redirect_uri, callers.address(request))
        return wire.BegunSignIn(authorization_url=url, state=state)

    @router.post("/oidc/finish")
    async def finish(
        body: wire.FinishSignIn, request: Request, response: Response
    ) -> wire.SessionBody:
        """Sign in with the `code` and the `state` that the provider sent back."""
        response.headers.update(SECRET)
        vouched = await open_id.finish(
            state=body.state, code=body.code, address=callers.address(request)
        )
        return session_body(await sign_in.sign_in_with(vouched))

    return router
