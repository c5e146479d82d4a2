"""Publishes ComfyUI's preview pictures of one prompt for clients that follow its job."""

from __future__ import annotations

import asyncio

from moyin.domain.renderer import RenderRequest
from moyin.render.protocol.binary import parse_preview
from moyin.store.previews import Preview, PreviewStore

_INTERVAL_SECONDS = 0.5
# ComfyUI's own previews have tens of kB; larger ones would fill Valkey's memory, which tenants
# share.
_MAX_BYTES = 256 * 1024
_MAX_NODE_ID = 200


class PreviewPublisher:
    """Publishes the newest preview of a prompt in the background, at most twice per second."""

    def __init__(self, preview_store: PreviewStore, request: RenderRequest) -> None:
        self._preview_store = preview_store
        self._job_id = request.job_id
        self._step = request.step
        self._newest: bytes | None = None
        self._publishing: asyncio.Task[None] | None = None

    def schedule_frame(self, frame: bytes) -> None:
        """Schedule the picture in a binary frame for publication; a newer picture replaces it."""
        self._newest = frame
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.create_task(self._publish())

    def stop(self) -> None:
        """Stop publishing previews."""
        if self._publishing is not None:
            self._publishing.cancel()

    async def _publish(self) -> None:
        while self._newest is not None:
            frame, self._newest = self._newest, None
            parsed_preview = parse_preview(frame) if len(frame) <= _MAX_BYTES else None
            if parsed_preview is not None:
                metadata, media_type, picture = parsed_preview
                node = str(metadata.get("node_id") or "")[:_MAX_NODE_ID]
                preview = Preview(step=self._step, node=node, media_type=media_type)
                await self._preview_store.publish(self._job_id, preview, picture)
            await asyncio.sleep(_INTERVAL_SECONDS)
