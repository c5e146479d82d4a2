"""Caches responses of models, to return them for an identical request."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from moyin.domain.money import Usage
from moyin.store.tenant_cache import TenantCache

__all__ = ["CachedResponse", "ResponseStore"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedResponse:
    """Holds a response as its client got it.

    Attributes:
        body: the whole body; of a stream, all events without the cost.
        usage: the tokens that the response consumed.
    """

    backend: str
    model: str
    content_type: str
    body: bytes
    usage: Usage


class ResponseStore:
    """Caches responses per tenant: each expires, and the oldest are evicted when there are too many."""

    def __init__(self, url: str) -> None:
        self._cache = TenantCache(url, "moyin:responses")

    async def get(self, owner: str, digest: str) -> CachedResponse | None:
        """Return a cached response; None: there is none."""
        encoded = await self._cache.get(owner, digest)
        return None if encoded is None else _decode(encoded)

    async def put(
        self, owner: str, digest: str, response: CachedResponse, *, ttl: int, entries: int
    ) -> None:
        """Cache ``response`` for ``ttl`` seconds, among the newest ``entries`` of its tenant."""
        await self._cache.put(owner, digest, _encode(response), ttl=ttl, entries=entries)

    async def close(self) -> None:
        await self._cache.close()


def _encode(response: CachedResponse) -> bytes:
    head = {
        "backend": response.backend,
        "model": response.model,
        "content_type": response.content_type,
        "usage": asdict(response.usage),
    }
    return json.dumps(head).encode() + b"\n" + response.body


def _decode(encoded: bytes) -> CachedResponse:
    head, _, body = encoded.partition(b"\n")
    members = json.loads(head)
    return CachedResponse(**{**members, "usage": Usage(**members["usage"])}, body=body)
