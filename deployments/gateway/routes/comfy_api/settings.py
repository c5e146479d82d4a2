"""Serves ComfyUI's ``/settings``: a user's preferences for the frontend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import from_json

from moyin.access.gatekeeper import context
from moyin.comfy_api.protocol.userdata import SETTINGS
from moyin.domain.identity import get_userdata_scope
from moyin.errors import InvalidRequest, UserFileNotFound
from moyin.http.validation import parse_json
from moyin.store.userdata import UserdataStore

__all__ = ["settings_routes"]


def settings_routes(files: UserdataStore) -> APIRouter:
    """Return the routes of settings, which are stored as one of the user's files."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/settings")
    async def settings(request: Request) -> dict[str, Any]:
        """Return the caller's settings, by id."""
        try:
            return _parse_settings(
                await files.read(get_userdata_scope(context(request.scope).caller), SETTINGS)
            )
        except UserFileNotFound:
            return {}

    @router.get("/settings/{id}")
    async def setting(request: Request, id: str) -> Any:
        """Return one setting; null if it is not set."""
        return (await settings(request)).get(id)

    @router.post("/settings", openapi_extra=_body({"type": "object"}), response_class=Response)
    async def change(request: Request) -> Response:
        """Change some settings; the others stay as they are."""
        changes = await _read_json(request)
        if not isinstance(changes, dict):
            raise InvalidRequest("the body must be an object with values by setting id")
        await save(request, changes)
        return Response()

    @router.post("/settings/{id}", openapi_extra=_body({}), response_class=Response)
    async def set_one(request: Request, id: str) -> Response:
        """Set one setting."""
        await save(request, {id: await _read_json(request)})
        return Response()

    async def save(request: Request, changes: Mapping[str, Any]) -> None:
        def merge(before: bytes | None) -> bytes:
            known = {} if before is None else _parse_settings(before)
            return json.dumps({**known, **changes}, indent=4).encode()

        await files.update(get_userdata_scope(context(request.scope).caller), SETTINGS, merge)

    return router


async def _read_json(request: Request) -> Any:
    """Parse the body as JSON; the frontend does not declare its content type."""
    return parse_json(await request.body())


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def _parse_settings(content: bytes) -> dict[str, Any]:
    """Parse the settings file; empty if malformed, as clients can write it by ``/userdata``."""
    try:
        settings = from_json(content)
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}
