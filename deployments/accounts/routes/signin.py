"""Defines the routes of signing up, in and out, of passwords, and of OpenID providers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.accounts.routes.callers import NO_STORE, Callers
from moyin.access.accounts.oidc import OpenIdSignIn
from moyin.access.accounts.signin import SignInService
from moyin.access.protocol import wire
from moyin.access.protocol.response import build_session

__all__ = ["sign_in_routes"]


def sign_in_routes(sign_in: SignInService, open_id: OpenIdSignIn, callers: Callers) -> APIRouter:
    """Return the routes of registration, sign-in and passwords."""
    router = APIRouter(tags=["sign-in"])

    @router.post("/register", status_code=201)
    async def register(
        body: wire.Register, request: Request, response: Response
    ) -> wire.SessionBody:
        """Register as a player."""
        response.headers.update(NO_STORE)
        address = callers.address(request)
        return build_session(await sign_in.register(body.email, body.password, body.name, address))

    @router.post("/login")
    async def login(body: wire.Login, request: Request, response: Response) -> wire.SessionBody:
        """Sign in with email and password."""
        response.headers.update(NO_STORE)
        address = callers.address(request)
        return build_session(
            await sign_in.sign_in(body.email, body.password, address, body.device_token)
        )

    @router.post("/refresh")
    async def refresh(body: wire.RefreshSession, response: Response) -> wire.SessionBody:
        """Return new tokens; the refresh token in the request becomes invalid.

        A refresh token that is used twice ends the session.
        """
        response.headers.update(NO_STORE)
        return build_session(await sign_in.refresh_session(body.refresh_token))

    @router.post("/logout", status_code=204)
    async def logout(request: Request, body: wire.Logout | None = None) -> None:
        """Sign out. The session's tokens are refused within seconds."""
        user, session = callers.person(request)
        await sign_in.sign_out(user, session, everywhere=body is not None and body.everywhere)

    @router.post("/password/forgot", status_code=202)
    async def forgot(body: wire.ForgotPassword, request: Request) -> dict[str, str]:
        """Mail a token that sets a new password. The response is the same for unknown emails."""
        await sign_in.request_password_reset(body.email, callers.address(request))
        return {"status": "a mail is on its way, if there is such an account"}

    @router.post("/password/reset")
    async def reset(
        body: wire.ResetPassword, request: Request, response: Response
    ) -> wire.PasswordResetResult:
        """Set a new password by a mailed token. All sessions end."""
        response.headers.update(NO_STORE)
        token = await sign_in.reset_password(body.token, body.password, callers.address(request))
        return wire.PasswordResetResult(device_token=token)

    @router.post("/password", status_code=204)
    async def change(body: wire.ChangePassword, request: Request) -> None:
        """Change your password. Your other sessions end."""
        user, session = callers.person(request)
        await sign_in.change_password(user, session, body.current_password, body.new_password)

    @router.get("/oidc")
    async def providers() -> wire.ProviderList:
        """List the OpenID providers."""
        providers = open_id.providers.values()
        return wire.ProviderList(
            providers=[wire.ProviderBody(name=p.name, issuer=p.issuer) for p in providers]
        )

    @router.post("/oidc/begin")
    async def begin(body: wire.BeginSignIn, request: Request) -> wire.StartedSignIn:
        """Return the URL for the browser. The redirect must carry the same `state`."""
        url, state = await open_id.begin_sign_in(
            body.provider, body.redirect_uri, callers.address(request)
        )
        return wire.StartedSignIn(authorization_url=url, state=state)

    @router.post("/oidc/finish")
    async def finish(
        body: wire.FinishSignIn, request: Request, response: Response
    ) -> wire.SessionBody:
        """Sign in with the `code` and the `state` that the provider sent back."""
        response.headers.update(NO_STORE)
        verified = await open_id.finish_sign_in(
            state=body.state, code=body.code, address=callers.address(request)
        )
        return build_session(await sign_in.sign_in_verified(verified))

    return router
