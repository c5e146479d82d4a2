"""Defines the routes of API keys, signing keys, and limits."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request, Response

from deployments.accounts.routes.callers import NO_STORE, Callers
from moyin.access.accounts.api_keys import ApiKeyService
from moyin.access.protocol import wire
from moyin.access.protocol.response import build_key, build_limit, parse_limit

__all__ = ["key_routes", "limit_routes", "signing_key_routes"]


def key_routes(api_keys: ApiKeyService, callers: Callers) -> APIRouter:
    """Return the routes of API keys."""
    router = APIRouter(tags=["keys"])

    @router.get("/keys")
    async def page(request: Request) -> wire.KeyList:
        """List your keys; for administrators, all keys of the organisation."""
        keys = await api_keys.list_keys(callers.of(request))
        return wire.KeyList(keys=[build_key(key) for key in keys])

    @router.post("/keys", status_code=201)
    async def create(body: wire.NewKey, request: Request, response: Response) -> wire.CreatedKey:
        """Create a key. It can have only scopes that you have."""
        response.headers.update(NO_STORE)
        key, text = await api_keys.create_key(
            callers.of(request),
            name=body.name,
            scopes=body.scopes,
            expires_at=body.expires_at,
            user_id=body.user,
        )
        return wire.CreatedKey(**build_key(key).model_dump(), key=text)

    @router.post("/keys/{key}/rotate")
    async def rotate(
        key: str, request: Request, response: Response, body: wire.RotateKey | None = None
    ) -> wire.RotatedKey:
        """Replace the secret of a key. Its id, scopes and limits stay."""
        response.headers.update(NO_STORE)
        overlap = timedelta(seconds=0 if body is None else body.overlap_seconds)
        return wire.RotatedKey(
            id=key, key=await api_keys.rotate_key(callers.of(request), key, overlap)
        )

    @router.delete("/keys/{key}", status_code=204)
    async def revoke(key: str, request: Request) -> None:
        """Revoke a key. Caches accept it for a few more seconds."""
        await api_keys.revoke_key(callers.of(request), key)

    return router


def signing_key_routes(api_keys: ApiKeyService, callers: Callers) -> APIRouter:
    """Return the routes of the key pairs that sign access tokens; for operators."""
    router = APIRouter(tags=["signing keys"])

    @router.post("/signing-keys", status_code=201)
    async def rotate(request: Request) -> wire.SigningKeyBody:
        """Sign with a new key pair. Tokens that older pairs signed stay valid until they expire."""
        return wire.SigningKeyBody(kid=await api_keys.rotate_signing_key(callers.of(request)))

    @router.delete("/signing-keys/{kid}", status_code=204)
    async def forget(kid: str, request: Request) -> None:
        """Delete an older key pair. Tokens that it signed are refused within a minute."""
        await api_keys.delete_signing_key(callers.of(request), kid)

    return router


def limit_routes(api_keys: ApiKeyService, callers: Callers) -> APIRouter:
    """Return the routes of limits and budgets."""
    router = APIRouter(tags=["limits"])

    @router.get("/limits")
    async def own(request: Request) -> wire.LimitList:
        """List the limits that apply to you."""
        limits = await api_keys.list_own_limits(callers.of(request))
        return wire.LimitList(limits=[build_limit(limit) for limit in limits])

    @router.get("/limits/{subject}")
    async def show(subject: str, request: Request) -> wire.SubjectLimit:
        """Return the limits of `key:<id>`, `user:<id>` or `owner:<tenant>`."""
        return build_limit(await api_keys.get_limit(callers.of(request), subject))

    @router.put("/limits/{subject}")
    async def put(subject: str, body: wire.LimitBody, request: Request) -> wire.SubjectLimit:
        """Replace all limits of a subject. Members that are left out are not limited."""
        limit = parse_limit(subject, body)
        await api_keys.set_limit(callers.of(request), limit)
        return build_limit(limit)

    @router.delete("/limits/{subject}", status_code=204)
    async def clear(subject: str, request: Request) -> None:
        """Delete all limits of a subject."""
        await api_keys.clear_limit(callers.of(request), subject)

    return router
