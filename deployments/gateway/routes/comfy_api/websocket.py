"""ComfyUI's WebSocket ``/ws``, also under ``/api``."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect
from pydantic_core import from_json

from moyin.access.gatekeeper import context
from moyin.comfy_api.listener import FarmEvents, Listener
from moyin.errors import MoyinError
from moyin.store.hub import SlowConsumer

__all__ = ["comfyui_socket"]

_SEND_SECONDS = 20.0
_TRY_AGAIN_LATER = 1013


def comfyui_socket(events: FarmEvents, max_upload_bytes: int) -> APIRouter:
    """The route of the WebSocket."""
    router = APIRouter(tags=["comfyui"])

    @router.websocket("/ws")
    async def socket(
        websocket: WebSocket,
        client_id: Annotated[str, Query(alias="clientId", max_length=255)] = "",
    ) -> None:
        """What happens to the prompts that this client of yours submits, on whichever replica."""
        await websocket.accept()

        async def send(told: str | bytes) -> None:
            try:
                async with asyncio.timeout(_SEND_SECONDS):
                    if isinstance(told, str):
                        await websocket.send_text(told)
                    else:
                        await websocket.send_bytes(told)
            except TimeoutError:
                # A client that takes nothing for so long is as good as gone.
                raise SlowConsumer("the client takes nothing any more") from None

        owner = context(websocket.scope).owner
        listener = events.listener(owner, client_id or uuid.uuid4().hex, send)
        tasks = [
            asyncio.create_task(listener.run()),
            asyncio.create_task(_hear(websocket, listener, max_upload_bytes)),
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


async def _hear(websocket: WebSocket, listener: Listener, max_upload_bytes: int) -> None:
    """The first message may say what the client understands; nothing else is listened to."""
    first = True
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        flags = _flags(message.get("text")) if first else None
        first = False
        if flags is not None:
            listener.metadata = flags.get("supports_preview_metadata") is True
            features = {"supports_preview_metadata": True, "max_upload_size": max_upload_bytes}
            await listener.say("feature_flags", features)


def _flags(text: str | None) -> dict[str, Any] | None:
    try:
        told = from_json(text or "")
    except ValueError:
        return None
    if not isinstance(told, dict) or told.get("type") != "feature_flags":
        return None
    flags = told.get("data")
    return flags if isinstance(flags, dict) else {}
