"""Defines the route of ComfyUI's WebSocket ``/ws``, which is also served under ``/api``."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, WebSocket
from pydantic_core import from_json

from deployments.gateway.routes.job_events import run_until_disconnect
from moyin.access.gatekeeper import context
from moyin.comfy_api.notifier import PromptNotifier, PromptNotifiers
from moyin.errors import MoyinError
from moyin.store.hub import SlowConsumer

_SEND_SECONDS = 20.0
_TRY_AGAIN_LATER = 1013


def new_websocket_routes(events: PromptNotifiers, max_upload_bytes: int) -> APIRouter:
    """Return the route of the WebSocket, which sends clients the messages about their prompts.

    Args:
        max_upload_bytes: the maximum size of an upload, which clients get as a feature flag.
    """
    router = APIRouter(tags=["comfyui"])

    @router.websocket("/ws")
    async def follow_prompts(
        websocket: WebSocket,
        client_id: Annotated[str, Query(alias="clientId", max_length=255)] = "",
    ) -> None:
        """Send the client the messages about its prompts, whichever replica accepted them."""
        await websocket.accept()

        async def send(message: str | bytes) -> None:
            try:
                async with asyncio.timeout(_SEND_SECONDS):
                    if isinstance(message, str):
                        await websocket.send_text(message)
                    else:
                        await websocket.send_bytes(message)
            except TimeoutError:
                raise SlowConsumer(
                    f"the client has not read a message for {_SEND_SECONDS:.0f} seconds; it must read "
                    "messages when they arrive"
                ) from None

        owner = context(websocket.scope).owner
        notifier = events.new_notifier(owner, client_id or uuid.uuid4().hex, send)
        try:
            await run_until_disconnect(
                notifier.run(), _receive_flags(websocket, notifier, max_upload_bytes)
            )
        except MoyinError as error:
            await websocket.close(_TRY_AGAIN_LATER, error.code)

    return router


async def _receive_flags(
    websocket: WebSocket, notifier: PromptNotifier, max_upload_bytes: int
) -> None:
    """Read the feature flags in the client's first message, and respond with the server's flags.

    All later messages are ignored until the client disconnects.
    """
    is_first = True
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        flags = _parse_feature_flags(message.get("text")) if is_first else None
        is_first = False
        if flags is not None:
            notifier.supports_preview_metadata = flags.get("supports_preview_metadata") is True
            features = {"supports_preview_metadata": True, "max_upload_size": max_upload_bytes}
            await notifier.send("feature_flags", features)


def _parse_feature_flags(text: str | None) -> dict[str, Any] | None:
    """Return the flags in a message of the type ``feature_flags``, or None for other messages."""
    try:
        message = from_json(text or "")
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("type") != "feature_flags":
        return None
    flags = message.get("data")
    return flags if isinstance(flags, dict) else {}
