"""Provides a graph guard for tests that accepts every graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from moyin.domain.identity import Identity

__all__ = ["PermissiveGraphGuard"]


class PermissiveGraphGuard:
    """Implements `moyin.jobs.ports.GraphGuard` for pools that accept every graph."""

    def __init__(self, *pools: str) -> None:
        self._pools = pools

    async def list_pools(self, caller: Identity) -> Sequence[str]:
        return self._pools

    async def choose_pool(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        return self._pools[0]

    async def check_graph(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own: Collection[str]
    ) -> bool:
        return True
