"""Defines the routes that sign browsers in with cookies, and that list and end sessions."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from deployments.accounts.routes.callers import NO_STORE_HEADERS, CallerResolver
from moyin.access.accounts.signin import SignInResult, SignInService
from moyin.access.gatekeeper.browser import BrowserSessions, build_cookies, get_cookie_lifetime
from moyin.access.gatekeeper.credential_finder import (
    REFRESH_COOKIE,
    get_own_cookie,
    require_same_origin,
)
from moyin.access.gatekeeper.identity import Authenticator
from moyin.access.protocol import wire
from moyin.access.protocol.response import build_identity, build_open_session
from moyin.domain.identity import Identity
from moyin.errors import InvalidToken
from moyin.store.sessions import SessionStore


def new_browser_session_routes(
    sign_in: SignInService,
    sessions: SessionStore,
    authenticator: Authenticator,
    callers: CallerResolver,
) -> APIRouter:
    """Return the routes of browser sessions. Only cookies, no response bodies, contain tokens."""
    router = APIRouter(tags=["browser sessions"])
    browsers = BrowserSessions(authenticator, sessions.revoke)

    async def respond(
        result: SignInResult, request: Request, response: Response
    ) -> wire.BrowserSession:
        """Set the session's cookies on ``response``; return the body that describes the session."""
        await callers.record_client(sessions, result, request)
        seconds = int(result.session.expires_at.timestamp() - time.time())
        token = result.access_token
        _set_cookies(
            response, build_cookies(request.scope, token, result.refresh_token, max(0, seconds))
        )
        return _build_body(await authenticator.authenticate(token), token, is_renewable=True)

    @router.post("/session", name="sign_in")
    async def sign_browser_in(
        body: wire.SignInBrowser, request: Request, response: Response
    ) -> wire.BrowserSession:
        """Sign this browser in.

        The cookies are hidden from scripts and valid on all pages of this host.
        """
        require_same_origin(request.scope, requires_origin=False)
        if body.api_key is not None:
            secret = body.api_key.strip()
            identity, cookies = await browsers.sign_in(request.scope, secret)
            _set_cookies(response, cookies)
            return _build_body(identity, secret, is_renewable=False)
        if body.refresh_token is not None:
            result = await sign_in.refresh_session(body.refresh_token)
        else:
            assert body.email is not None and body.password is not None
            address = callers.get_client_address(request)
            result = await sign_in.sign_in(body.email, body.password, address)
        return await respond(result, request, response)

    @router.post("/session/renew", name="renew")
    async def renew(request: Request, response: Response) -> wire.BrowserSession:
        """Renew this browser's cookie while its session lasts. Several tabs may do so at once."""
        require_same_origin(request.scope)
        secret = get_own_cookie(request.scope, REFRESH_COOKIE)
        if not secret:
            raise InvalidToken(
                "this browser has no session to renew; sign in", field=REFRESH_COOKIE
            )
        return await respond(await sign_in.renew_session(secret), request, response)

    @router.post("/session/end", status_code=204, name="end")
    async def sign_out(request: Request, response: Response) -> None:
        """End this browser's session and delete its cookies. An API key stays valid."""
        cookies = await browsers.sign_out(request.scope)
        # The access token may have expired while the session can still be renewed.
        if secret := browsers.find_refresh_secret(request.scope):
            await sessions.revoke_by_refresh_token(secret)
        _set_cookies(response, cookies)

    @router.get("/sessions", name="list")
    async def list_sessions(request: Request) -> wire.SessionList:
        """List your sessions, the last used first."""
        user, current_session_id = callers.require_session(request)
        open_sessions = await sessions.list_open(user)
        return wire.SessionList(
            sessions=[
                build_open_session(open_session, current_session_id)
                for open_session in open_sessions
            ]
        )

    @router.delete("/sessions/{session}", status_code=204, name="end_other")
    async def end_session(session: str, request: Request) -> None:
        """End one of your sessions. Within seconds, every replica rejects its tokens."""
        user, _ = callers.require_session(request)
        await sessions.revoke_for_user(user, session)

    return router


def _set_cookies(response: Response, cookies: list[str]) -> None:
    response.headers.update(NO_STORE_HEADERS)
    for cookie in cookies:
        response.headers.append("set-cookie", cookie)


def _build_body(identity: Identity, secret: str, *, is_renewable: bool) -> wire.BrowserSession:
    return wire.BrowserSession(
        **build_identity(identity).model_dump(),
        expires_in=get_cookie_lifetime(secret),
        renewable=is_renewable,
    )
