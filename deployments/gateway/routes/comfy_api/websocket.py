"""Serves ComfyUI's WebSocket ``/ws``, also under ``/api``."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect
from pydantic_core import from_json

from moyin.access.gatekeeper import context
from moyin.comfy_api.notifier import FarmEvents, PromptNotifier
from moyin.errors import MoyinError
from moyin.store.hub import SlowConsumer

__all__ = ["websocket_routes"]

_SEND_SECONDS = 20.0
_TRY_AGAIN_LATER = 1013


def websocket_routes(events: FarmEvents, max_upload_bytes: int) -> APIRouter:
    """Return the route of the WebSocket."""
    router = APIRouter(tags=["comfyui"])

    @router.websocket("/ws")
    async def socket(
        websocket: WebSocket,
        client_id: Annotated[str, Query(alias="clientId", max_length=255)] = "",
    ) -> None:
        """Send the client the messages about its prompts, whatever replica accepted them."""
        await websocket.accept()

        async def send(message: str | bytes) -> None:
            try:
                async with asyncio.timeout(_SEND_SECONDS):
                    if isinstance(message, str):
                        await websocket.send_text(message)
                    else:
                        await websocket.send_bytes(message)
            except TimeoutError:
                raise SlowConsumer("the client does not read its messages") from None

        owner = context(websocket.scope).owner
        notifier = events.notifier(owner, client_id or uuid.uuid4().hex, send)
        tasks = [
            asyncio.create_task(notifier.run()),
            asyncio.create_task(_receive(websocket, notifier, max_upload_bytes)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except MoyinError as error:
            await websocket.close(_TRY_AGAIN_LATER, error.code)
        except WebSocketDisconnect:
            return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return router


async def _receive(websocket: WebSocket, notifier: PromptNotifier, max_upload_bytes: int) -> None:
    """Read the client's feature flags in its first message; ignore all later messages."""
    is_first = True
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        flags = _feature_flags(message.get("text")) if is_first else None
        is_first = False
        if flags is not None:
            notifier.metadata = flags.get("supports_preview_metadata") is True
            features = {"supports_preview_metadata": True, "max_upload_size": max_upload_bytes}
            await notifier.send("feature_flags", features)


def _feature_flags(text: str | None) -> dict[str, Any] | None:
    try:
        message = from_json(text or "")
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("type") != "feature_flags":
        return None
    flags = message.get("data")
    return flags if isinstance(flags, dict) else {}
