"""Defines the routes of registration, sign-in and passwords, and of the caller's own account."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.accounts.routes.callers import NO_STORE_HEADERS, CallerResolver
from moyin.access.accounts.oidc import OpenIdSignIn
from moyin.access.accounts.signin import SignInResult, SignInService
from moyin.access.protocol import wire
from moyin.access.protocol.response import build_identity, build_session, build_user
from moyin.store.sessions import SessionStore
from moyin.store.users import UserStore


def new_sign_in_routes(
    sign_in: SignInService,
    open_id: OpenIdSignIn,
    sessions: SessionStore,
    callers: CallerResolver,
) -> APIRouter:
    """Return the routes that register users, sign them in and out, and set their passwords."""
    router = APIRouter(tags=["sign-in"])

    async def respond(
        result: SignInResult, request: Request, response: Response
    ) -> wire.SessionBody:
        response.headers.update(NO_STORE_HEADERS)
        await callers.record_client(sessions, result, request)
        return build_session(result)

    @router.post("/register", status_code=201)
    async def register(
        body: wire.Register, request: Request, response: Response
    ) -> wire.SessionBody:
        """Register as a player, and sign in."""
        address = callers.get_client_address(request)
        result = await sign_in.register(body.email, body.password, body.name, address)
        return await respond(result, request, response)

    @router.post("/login")
    async def login(body: wire.Login, request: Request, response: Response) -> wire.SessionBody:
        """Sign in with an email and a password, and return the tokens of a new session."""
        address = callers.get_client_address(request)
        result = await sign_in.sign_in(body.email, body.password, address, body.device_token)
        return await respond(result, request, response)

    @router.post("/refresh")
    async def refresh(
        body: wire.RefreshSession, request: Request, response: Response
    ) -> wire.SessionBody:
        """Return new tokens. The refresh token in the request becomes invalid.

        The session ends if a refresh token is used twice.
        """
        return await respond(await sign_in.refresh_session(body.refresh_token), request, response)

    @router.post("/logout", status_code=204)
    async def logout(request: Request, body: wire.Logout | None = None) -> None:
        """Sign out. Within seconds, every replica rejects the session's tokens."""
        user, session = callers.require_session(request)
        await sign_in.sign_out(user, session, everywhere=body is not None and body.everywhere)

    @router.post("/password/forgot", status_code=202, name="forgot")
    async def request_password_reset(body: wire.ForgotPassword, request: Request) -> dict[str, str]:
        """Mail a token for setting a new password. An unknown email gets the same response."""
        await sign_in.request_password_reset(body.email, callers.get_client_address(request))
        return {"status": "a mail is on its way, if there is such an account"}

    @router.post("/password/reset", name="reset")
    async def reset_password(
        body: wire.ResetPassword, request: Request, response: Response
    ) -> wire.PasswordResetResult:
        """Set a new password with a mailed token. All sessions of the user end."""
        response.headers.update(NO_STORE_HEADERS)
        token = await sign_in.reset_password(
            body.token, body.password, callers.get_client_address(request)
        )
        return wire.PasswordResetResult(device_token=token)

    @router.post("/password", status_code=204, name="change")
    async def change_password(body: wire.ChangePassword, request: Request) -> None:
        """Change your password. Your other sessions end."""
        user, session = callers.require_session(request)
        await sign_in.change_password(user, session, body.current_password, body.new_password)

    @router.get("/oidc", name="providers")
    async def list_providers() -> wire.ProviderList:
        """List the OpenID providers through which users can sign in."""
        return wire.ProviderList(providers=_build_providers(open_id))

    @router.get("/sign-in", name="ways")
    async def list_sign_in_ways() -> wire.SignInWays:
        """Return the ways in which people can sign in here, for a sign-in page."""
        return wire.SignInWays(
            providers=_build_providers(open_id),
            registration=sign_in.policy.allows_registration,
            password_reset=sign_in.can_mail_tokens,
        )

    @router.post("/oidc/begin", name="begin")
    async def begin_sign_in(body: wire.BeginSignIn, request: Request) -> wire.StartedSignIn:
        """Return the provider's sign-in URL, and the `state` that the provider sends back later."""
        url, state = await open_id.begin_sign_in(
            body.provider, body.redirect_uri, callers.get_client_address(request)
        )
        return wire.StartedSignIn(authorization_url=url, state=state)

    @router.post("/oidc/finish", name="finish")
    async def finish_sign_in(
        body: wire.FinishSignIn, request: Request, response: Response
    ) -> wire.SessionBody:
        """Sign in with the `code` and the `state` that the provider sent to the redirect URI."""
        verified_identity = await open_id.finish_sign_in(
            state=body.state, code=body.code, address=callers.get_client_address(request)
        )
        return await respond(
            await sign_in.sign_in_with_identity(verified_identity), request, response
        )

    return router


def _build_providers(open_id: OpenIdSignIn) -> list[wire.ProviderBody]:
    return [
        wire.ProviderBody(
            name=provider.name,
            issuer=provider.issuer,
            redirect_uris=list(provider.redirect_uris),
        )
        for provider in open_id.providers.values()
    ]


def new_own_account_routes(
    users: UserStore, sign_in: SignInService, callers: CallerResolver
) -> APIRouter:
    """Return the routes that show, change and close the caller's own account."""
    router = APIRouter(tags=["me"])

    @router.get("/whoami", name="who")
    async def get_identity(request: Request) -> wire.WhoAmI:
        """Return the identity and the scopes of your API key or access token."""
        return build_identity(callers.resolve_caller(request).identity)

    @router.get("/me", name="show")
    async def get_account(request: Request) -> wire.UserBody:
        """Return your account with its profile."""
        return build_user(await users.get(callers.require_user(request)))

    @router.patch("/me", name="change")
    async def change_profile(body: wire.ChangeProfile, request: Request) -> wire.UserBody:
        """Change your name or your profile."""
        user, _ = callers.require_session(request)
        values = body.model_dump(exclude_none=True)
        if not values:
            return build_user(await users.get(user))
        identity = callers.resolve_caller(request).identity
        return build_user(await sign_in.change_profile(identity, user, values))

    @router.delete("/me", status_code=204, name="close")
    async def close_account(request: Request) -> None:
        """Close your account and delete your personal data. Only players can do so themselves."""
        user, _ = callers.require_session(request)
        await sign_in.close_account(callers.resolve_caller(request).identity, user)

    return router
