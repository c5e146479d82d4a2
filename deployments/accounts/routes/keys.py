"""API keys, and the limits of keys, users and tenants."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request, Response

from deployments.accounts.routes.answers import SECRET
from deployments.accounts.routes.callers import Callers
from moyin.access.accounts.api_keys import ApiKeyService
from moyin.access.protocol import wire
from moyin.access.protocol.response import key_body, limit_body, to_limit

__all__ = ["key_routes", "limit_routes", "signing_key_routes"]


def key_routes(keyring: ApiKeyService, callers: Callers) -> APIRouter:
    """Routes of API keys."""
    router = APIRouter(tags=["keys"])

    @router.get("/keys")
    async def page(request: Request) -> wire.KeyList:
        """Your keys; all of the organisation for its admins."""
        found = await keyring.keys(callers.of(request))
        return wire.KeyList(keys=[key_body(key) for key in found])

    @router.post("/keys", status_code=201)
    async def create(body: wire.NewKey, request: Request, response: Response) -> wire.CreatedKey:
        """Make a key. It may do at most what you may."""
        response.headers.update(SECRET)
        key, text = await keyring.create_key(
            callers.of(request),
            name=body.name,
            scopes=body.scopes,
            expires_at=body.expires_at,
            user_id=body.user,
        )
        return wire.CreatedKey(**key_body(key).model_dump(), key=text)

    @router.post("/keys/{key}/rotate")
    async def rotate(
        key: str, request: Request, response: Response, body: wire.RotateKey | None = None
    ) -> wire.RotatedKey:
        """Give a key a new secret. Its id, scopes and limits stay."""
        response.headers.update(SECRET)
        overlap = timedelta(seconds=0 if body is None else body.overlap_seconds)
        return wire.RotatedKey(
            id=key, key=await keyring.rotate_key(callers.of(request), key, overlap)
        )

    @router.delete("/keys/{key}", status_code=204)
    async def revoke(key: str, request: Request) -> None:
        """Refuse a key from now on; caches let it through for seconds more."""
        await keyring.revoke_key(callers.of(request), key)

    return router


def signing_key_routes(keyring: ApiKeyService, callers: Callers) -> APIRouter:
    """Routes of the key pairs that sign access tokens; for operators."""
    router = APIRouter(tags=["signing keys"])

    @router.post("/signing-keys", status_code=201)
    async def rotate(request: Request) -> wire.SigningKeyBody:
        """Sign with a new key pair. What older ones signed stays good until it expires."""
        return wire.SigningKeyBody(kid=await keyring.rotate_signing_key(callers.of(request)))

    @router.delete("/signing-keys/{kid}", status_code=204)
    async def forget(kid: str, request: Request) -> None:
        """Refuse within a minute whatever an older key pair signed."""
        await keyring.forget_signing_key(callers.of(request), kid)

    return router


def limit_routes(keyring: ApiKeyService, callers: Callers) -> APIRouter:
    """Routes of limits and budgets."""
    router = APIRouter(tags=["limits"])

    @router.get("/limits")
    async def own(request: Request) -> wire.LimitList:
        """The limits that hold for you."""
        found = await keyring.own_limits(callers.of(request))
        return wire.LimitList(limits=[limit_body(limit) for limit in found])

    @router.get("/limits/{subject}")
    async def show(subject: str, request: Request) -> wire.SubjectLimit:
        """The limits of `key:<id>`, `user:<id>` or `owner:<tenant>`."""
        return limit_body(await keyring.limit(callers.of(request), subject))

    @router.put("/limits/{subject}")
    async def put(subject: str, body: wire.LimitBody, request: Request) -> wire.SubjectLimit:
        """Set all limits of a subject; what is left out is not limited."""
        limit = to_limit(subject, body)
        await keyring.set_limit(callers.of(request), limit)
        return limit_body(limit)

    @router.delete("/limits/{subject}", status_code=204)
    async def clear(subject: str, request: Request) -> None:
        """Lift all limits of a subject."""
        await keyring.clear_limit(callers.of(request), subject)

    return router
