"""Answers of models that are kept, to be given again for the very same request."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from moyin.domain.money import Usage
from moyin.store.tenant_cache import TenantCache

__all__ = ["KeptResponse", "ResponseStore"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptResponse:
    """An answer, as its client got it.

    Attributes:
        body: whole; of a stream all its events, but for its cost.
        usage: what it took to make it.
    """

    backend: str
    model: str
    content_type: str
    body: bytes
    usage: Usage


class ResponseStore:
    """Keeps answers per tenant: each expires, and the oldest go when there are too many."""

    def __init__(self, url: str) -> None:
        self._kept = TenantCache(url, "moyin:responses")

    async def get(self, owner: str, digest: str) -> KeptResponse | None:
        kept = await self._kept.get(owner, digest)
        return None if kept is None else _decoded(kept)

    async def put(
        self, owner: str, digest: str, response: KeptResponse, *, ttl: int, entries: int
    ) -> None:
        """Keep ``response`` for ``ttl`` seconds, among the newest ``entries`` of its tenant."""
        await self._kept.put(owner, digest, _encoded(response), ttl=ttl, entries=entries)

    async def close(self) -> None:
        await self._kept.close()


def _encoded(response: KeptResponse) -> bytes:
    head = {
        "backend": response.backend,
        "model": response.model,
        "content_type": response.content_type,
        "usage": asdict(response.usage),
    }
    return json.dumps(head).encode() + b"\n" + response.body


def _decoded(kept: bytes) -> KeptResponse:
    head, _, body = kept.partition(b"\n")
    told = json.loads(head)
    return KeptResponse(**{**told, "usage": Usage(**told["usage"])}, body=body)
