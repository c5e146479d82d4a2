"""Keeps responses of ComfyUI that no tenant's prompt can have influenced.

Where a process serves one tenant, a node package could put what it knows of the tenant into the
description of a node. So other callers get only what a process responded before its first tenant.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from moyin.errors import MoyinError, ServiceUnavailable
from moyin.render.comfyui.session import Session
from moyin.system.bounded import BoundedDict

# What the gateway needs of every pool; other paths are added when callers ask for them.
_FIRST_PATHS = ("/object_info", "/models", "/embeddings", "/extensions", "/system_stats")
_MAX_RESPONSES = 128
_FRESH_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class _Response:
    body: bytes | None
    received_at: float


class PublicResponses:
    """Responses of processes that had served nobody yet, by path."""

    def __init__(self) -> None:
        self._responses: BoundedDict[str, _Response] = BoundedDict(_MAX_RESPONSES)
        self._wanted: BoundedDict[str, None] = BoundedDict(_MAX_RESPONSES)
        self._wanted.update(dict.fromkeys(_FIRST_PATHS))

    async def collect(self, session: Session) -> None:
        """Request the paths that callers have asked for from a process that has just started."""
        for path in list(self._wanted):
            response = self._responses.get(path)
            if response is None or time.monotonic() - response.received_at > _FRESH_SECONDS:
                try:
                    await self._request(session, path)
                except MoyinError:
                    continue  # a route of a node package may fail

    async def get(self, session: Session, path: str) -> bytes | None:
        """Return the body of the response to GET ``path``, or None for status 404.

        Raises:
            ServiceUnavailable: the process serves a tenant, and the path was not requested before.
        """
        self._wanted[path] = None
        if session.tenant is None and (response := await self._request(session, path)):
            return response.body
        kept_response = self._responses.get(path)
        if kept_response is None:
            raise ServiceUnavailable(
                f"every ComfyUI of the pool serves a tenant, and {path} was not read before; try again",
                retry_after=30,
            )
        return kept_response.body

    async def _request(self, session: Session, path: str) -> _Response | None:
        """Return the response of a process; None if a tenant has got the process meanwhile."""
        response = _Response(await session.client.get(path), time.monotonic())
        if session.tenant is not None:
            return None
        self._responses[path] = response
        return response
