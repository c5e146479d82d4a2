"""Defines the routes that administer API keys, signing keys, and limits."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import StringConstraints

from deployments.accounts.routes.callers import (
    NO_STORE_HEADERS,
    CallerResolver,
    RequestedPage,
    SearchText,
)
from moyin.access.accounts.api_keys import ApiKeyService
from moyin.access.protocol import wire
from moyin.access.protocol.request_to_domain import parse_limit
from moyin.access.protocol.response import build_key, build_limit

_Id = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00]*$")]


def new_key_routes(api_keys: ApiKeyService, callers: CallerResolver) -> APIRouter:
    """Return the routes that list, create, rotate and revoke API keys."""
    router = APIRouter(tags=["keys"])

    @router.get("/keys", name="page")
    async def list_keys(
        request: Request,
        page: RequestedPage,
        owner: Annotated[_Id | None, Query(description="The tenant; for operators.")] = None,
        user: Annotated[_Id | None, Query(description="The user who owns the keys.")] = None,
        valid: Annotated[
            bool, Query(description="Leave out keys that were revoked or have expired.")
        ] = False,
        search: SearchText = "",
    ) -> wire.KeyList:
        """List your API keys, newest first. Administrators get all keys of the organisation."""
        keys, next_cursor = await api_keys.list_keys(
            callers.resolve_caller(request),
            owner=owner,
            user=user,
            valid=valid,
            search=search,
            page=page,
        )
        return wire.KeyList(keys=[build_key(key) for key in keys], next_cursor=next_cursor)

    @router.post("/keys", status_code=201, name="create")
    async def create_key(
        body: wire.NewKey, request: Request, response: Response
    ) -> wire.CreatedKey:
        """Create an API key. Its scopes must be among your own."""
        response.headers.update(NO_STORE_HEADERS)
        key, secret = await api_keys.create_key(
            callers.resolve_caller(request), name=body.name, scopes=body.scopes,
            expires_at=body.expires_at, user_id=body.user,
        )  # fmt: skip
        return wire.CreatedKey(**build_key(key).model_dump(), key=secret)

    @router.post("/keys/{key}/rotate", name="rotate")
    async def rotate_key(
        key: str, request: Request, response: Response, body: wire.RotateKey | None = None
    ) -> wire.RotatedKey:
        """Replace the secret of an API key. Its id, scopes and limits do not change."""
        response.headers.update(NO_STORE_HEADERS)
        overlap = timedelta(seconds=0 if body is None else body.overlap_seconds)
        return wire.RotatedKey(
            id=key, key=await api_keys.rotate_key(callers.resolve_caller(request), key, overlap)
        )

    @router.delete("/keys/{key}", status_code=204, name="revoke")
    async def revoke_key(key: str, request: Request) -> None:
        """Revoke an API key. Replicas that have cached it accept it for a few more seconds."""
        await api_keys.revoke_key(callers.resolve_caller(request), key)

    return router


def new_signing_key_routes(api_keys: ApiKeyService, callers: CallerResolver) -> APIRouter:
    """Return the routes by which operators replace the key pairs that sign access tokens."""
    router = APIRouter(tags=["signing keys"])

    @router.post("/signing-keys", status_code=201, name="rotate")
    async def rotate_signing_key(request: Request) -> wire.SigningKeyBody:
        """Create the key pair that signs all new tokens.

        Older tokens stay valid until they expire.
        """
        return wire.SigningKeyBody(
            kid=await api_keys.rotate_signing_key(callers.resolve_caller(request))
        )

    @router.delete("/signing-keys/{kid}", status_code=204, name="forget")
    async def delete_signing_key(kid: str, request: Request) -> None:
        """Delete an older key pair.

        Within a minute, every replica rejects tokens signed with it.
        """
        await api_keys.delete_signing_key(callers.resolve_caller(request), kid)

    return router


def new_limit_routes(api_keys: ApiKeyService, callers: CallerResolver) -> APIRouter:
    """Return the routes that show and set the limits and budgets of keys, users and tenants."""
    router = APIRouter(tags=["limits"])

    @router.get("/limits", name="own")
    async def list_own_limits(request: Request) -> wire.LimitList:
        """List the limits that apply to you."""
        limits = await api_keys.list_own_limits(callers.resolve_caller(request))
        return wire.LimitList(limits=[build_limit(limit) for limit in limits])

    @router.get("/limits/{subject}", name="show")
    async def get_limits(subject: str, request: Request) -> wire.SubjectLimit:
        """Return the limits of a subject: `key:<id>`, `user:<id>` or `owner:<tenant>`."""
        return build_limit(await api_keys.get_limit(callers.resolve_caller(request), subject))

    @router.get("/limits/{subject}/budgets", name="budgets")
    async def list_budgets(subject: str, request: Request) -> wire.SubjectBudgetList:
        """List the budgets of a subject with their spent, reserved and remaining amounts."""
        budget_states = await api_keys.list_budgets(callers.resolve_caller(request), subject)
        return wire.SubjectBudgetList(
            budgets=[
                wire.SubjectBudget.model_validate(state.to_details()) for state in budget_states
            ]
        )

    @router.put("/limits/{subject}", name="put")
    async def set_limits(subject: str, body: wire.LimitBody, request: Request) -> wire.SubjectLimit:
        """Replace all limits of a subject. A limit that the body omits is removed."""
        limit = parse_limit(subject, body)
        await api_keys.set_limit(callers.resolve_caller(request), limit)
        return build_limit(limit)

    @router.delete("/limits/{subject}", status_code=204, name="clear")
    async def delete_limits(subject: str, request: Request) -> None:
        """Delete all limits of a subject."""
        await api_keys.clear_limit(callers.resolve_caller(request), subject)

    return router
