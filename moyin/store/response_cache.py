"""Caches the responses of models per tenant, to return them for identical requests."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from moyin.domain.money import Usage
from moyin.store.tenant_cache import TenantCache


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedResponse:
    """Holds the response of a model as the client received it.

    Attributes:
        body: the whole body or, for a stream, all events except the final comment with the cost.
        usage: the tokens that the response used.
    """

    backend: str
    model: str
    content_type: str
    body: bytes
    usage: Usage


class ResponseCache:
    """Caches responses in Valkey by tenant and digest of the request."""

    def __init__(self, url: str) -> None:
        self._cache = TenantCache(url, "moyin:responses")

    async def get(self, owner: str, digest: str) -> CachedResponse | None:
        """Return the cached response to the request with this digest, or None if there is none."""
        encoded = await self._cache.get(owner, digest)
        return None if encoded is None else _decode(encoded)

    async def put(
        self,
        owner: str,
        digest: str,
        response: CachedResponse,
        *,
        ttl_seconds: int,
        max_entries: int,
    ) -> None:
        """Cache a response for ``ttl_seconds``; keep only the owner's newest ``max_entries``."""
        await self._cache.put(
            owner, digest, _encode(response), ttl_seconds=ttl_seconds, max_entries=max_entries
        )

    async def close(self) -> None:
        await self._cache.close()


def _encode(response: CachedResponse) -> bytes:
    header = {
        "backend": response.backend,
        "model": response.model,
        "content_type": response.content_type,
        "usage": asdict(response.usage),
    }
    return json.dumps(header).encode() + b"\n" + response.body


def _decode(encoded_response: bytes) -> CachedResponse:
    header, _, body = encoded_response.partition(b"\n")
    members = json.loads(header)
    return CachedResponse(**{**members, "usage": Usage(**members["usage"])}, body=body)
