"""Defines the routes of ComfyUI's ``/settings``, a user's preferences for the frontend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import from_json

from deployments.gateway.openapi import describe_body
from moyin.access.gatekeeper import context
from moyin.comfy_api.protocol.userdata import SETTINGS_FILE
from moyin.domain.identity import get_userdata_scope
from moyin.errors import InvalidRequest, UserFileNotFound
from moyin.http.validation import parse_json
from moyin.store.userdata import UserdataStore


def new_settings_routes(files: UserdataStore) -> APIRouter:
    """Return the routes that read and change the settings in the user's settings file."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/settings", name="settings")
    async def get_settings(request: Request) -> dict[str, Any]:
        """Return your settings by their ids."""
        try:
            return _parse_settings(
                await files.read(get_userdata_scope(context(request.scope).caller), SETTINGS_FILE)
            )
        except UserFileNotFound:
            return {}

    @router.get("/settings/{id}", name="setting")
    async def get_setting(request: Request, id: str) -> Any:
        """Return a setting, or null if the setting is not set."""
        return (await get_settings(request)).get(id)

    @router.post(
        "/settings",
        openapi_extra=describe_body({"type": "object"}),
        response_class=Response,
        name="change",
    )
    async def change_settings(request: Request) -> Response:
        """Change the settings in the body. Other settings do not change."""
        changes = parse_json(await request.body())
        if not isinstance(changes, dict):
            raise InvalidRequest("the body must be an object whose members are settings by id")
        await save_changes(request, changes)
        return Response()

    @router.post(
        "/settings/{id}", openapi_extra=describe_body({}), response_class=Response, name="set_one"
    )
    async def change_setting(request: Request, id: str) -> Response:
        """Set a setting to the JSON value in the body."""
        await save_changes(request, {id: parse_json(await request.body())})
        return Response()

    async def save_changes(request: Request, changes: Mapping[str, Any]) -> None:
        def merge_changes(old_content: bytes | None) -> bytes:
            current_settings = {} if old_content is None else _parse_settings(old_content)
            return json.dumps({**current_settings, **changes}, indent=4).encode()

        await files.update(
            get_userdata_scope(context(request.scope).caller), SETTINGS_FILE, merge_changes
        )

    return router


def _parse_settings(content: bytes) -> dict[str, Any]:
    """Parse the settings file. A malformed file, which clients can write, counts as empty."""
    try:
        settings = from_json(content)
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}
