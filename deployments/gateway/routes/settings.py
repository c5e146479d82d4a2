"""ComfyUI's ``/settings``: how a person likes its frontend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import from_json

from moyin.access.gatekeeper import context
from moyin.comfy_api.protocol.userdata import SETTINGS
from moyin.domain.userdata import userdata_scope
from moyin.errors import InvalidRequest, UserFileNotFound
from moyin.http.validation import parse_json
from moyin.store.userdata import UserdataStore

__all__ = ["settings_routes"]


def settings_routes(files: UserdataStore) -> APIRouter:
    """The routes of settings, which are a file beside a person's others."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/settings")
    async def settings(request: Request) -> dict[str, Any]:
        """The caller's settings, by id."""
        try:
            return _settings(
                await files.read(userdata_scope(context(request.scope).caller), SETTINGS)
            )
        except UserFileNotFound:
            return {}

    @router.get("/settings/{id}")
    async def setting(request: Request, id: str) -> Any:
        """One of them; null where it was never set."""
        return (await settings(request)).get(id)

    @router.post("/settings", openapi_extra=_body({"type": "object"}), response_class=Response)
    async def change(request: Request) -> Response:
        """Set some, and leave the others as they are."""
        changed = await _json(request)
        if not isinstance(changed, dict):
            raise InvalidRequest("send an object: values by the id of the setting")
        await _change(request, changed)
        return Response()

    @router.post("/settings/{id}", openapi_extra=_body({}), response_class=Response)
    async def set_one(request: Request, id: str) -> Response:
        """Set one."""
        await _change(request, {id: await _json(request)})
        return Response()

    async def _change(request: Request, changed: Mapping[str, Any]) -> None:
        def merged(before: bytes | None) -> bytes:
            known = {} if before is None else _settings(before)
            return json.dumps({**known, **changed}, indent=4).encode()

        await files.update(userdata_scope(context(request.scope).caller), SETTINGS, merged)

    return router


async def _json(request: Request) -> Any:
    """The body, whatever it is said to be: the frontend does not say that it sends JSON."""
    return parse_json(await request.body())


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def _settings(content: bytes) -> dict[str, Any]:
    """What is no settings file, as it may have been written through ``/userdata``, is an empty one."""
    try:
        found = from_json(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
