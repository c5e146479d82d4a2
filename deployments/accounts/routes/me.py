"""Defines the routes of the caller's own account and identity."""

from __future__ import annotations

from fastapi import APIRouter, Request

from deployments.accounts.routes.callers import Callers
from moyin.access.accounts.signin import SignIn
from moyin.access.protocol import wire
from moyin.access.protocol.response import user_body, who_am_i
from moyin.store.users import UserStore

__all__ = ["me_routes"]


def me_routes(users: UserStore, sign_in: SignIn, callers: Callers) -> APIRouter:
    """Return the routes of the caller's own account."""
    router = APIRouter(tags=["me"])

    @router.get("/whoami")
    async def who(request: Request) -> wire.WhoAmI:
        """Return the identity and the scopes of your key or token."""
        return who_am_i(callers.of(request).identity)

    @router.get("/me")
    async def show(request: Request) -> wire.UserBody:
        """Return your account with its profile."""
        return user_body(await users.get(callers.user(request)))

    @router.patch("/me")
    async def change(body: wire.ChangeProfile, request: Request) -> wire.UserBody:
        """Change your name or your profile."""
        user, _ = callers.person(request)
        values = body.model_dump(exclude_none=True)
        if not values:
            return user_body(await users.get(user))
        identity = callers.of(request).identity
        return user_body(await sign_in.change_profile(identity, user, values))

    @router.delete("/me", status_code=204)
    async def close(request: Request) -> None:
        """Delete your email, name, profile and sign-ins, and close your account; for players."""
        user, _ = callers.person(request)
        await sign_in.close_account(callers.of(request).identity, user)

    return router
