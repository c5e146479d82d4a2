"""`OpenGuard`: lets every graph in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from moyin.domain.identity import Identity

__all__ = ["OpenGuard"]


class OpenGuard:
    """`moyin.jobs.ports.GraphGuard` of pools that run everything."""

    def __init__(self, *pools: str) -> None:
        self._pools = pools

    async def pools(self, caller: Identity) -> Sequence[str]:
        return self._pools

    async def pool_for(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        return self._pools[0]

    async def check(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own: Collection[str]
    ) -> bool:
        return True
