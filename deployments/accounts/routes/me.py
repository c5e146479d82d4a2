"""Defines the routes of the caller's own account and identity."""

from __future__ import annotations

from fastapi import APIRouter, Request

from deployments.accounts.routes.callers import Callers
from moyin.access.accounts.signin import SignInService
from moyin.access.protocol import wire
from moyin.access.protocol.response import build_identity, build_user
from moyin.store.users import UserStore

__all__ = ["me_routes"]


def me_routes(users: UserStore, sign_in: SignInService, callers: Callers) -> APIRouter:
    """Return the routes of the caller's own account."""
    router = APIRouter(tags=["me"])

    @router.get("/whoami")
    async def who(request: Request) -> wire.WhoAmI:
        """Return the identity and the scopes of your key or token."""
        return build_identity(callers.of(request).identity)

    @router.get("/me")
    async def show(request: Request) -> wire.UserBody:
        """Return your account with its profile."""
        return build_user(await users.get(callers.user(request)))

    @router.patch("/me")
    async def change(body: wire.ChangeProfile, request: Request) -> wire.UserBody:
        """Change your name or your profile."""
        user, _ = callers.person(request)
        values = body.model_dump(exclude_none=True)
        if not values:
            return build_user(await users.get(user))
        identity = callers.of(request).identity
        return build_user(await sign_in.change_profile(identity, user, values))

    @router.delete("/me", status_code=204)
    async def close(request: Request) -> None:
        """Delete your email, name, profile and sign-ins, and close your account; for players."""
        user, _ = callers.person(request)
        await sign_in.close_account(callers.of(request).identity, user)

    return router
