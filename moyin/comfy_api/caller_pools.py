"""Defines `CallerPools`, the only way in which a request reaches the content of render pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from moyin.comfy_api.node_info import NodeInfoCache
from moyin.errors import InvalidRequest, NotFound, ServiceUnavailable
from moyin.jobs.protocol.renders import DEFAULT_POOL

T = TypeVar("T")
_RETRY_SECONDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class CallerPools:
    """The render pools that run the jobs of one caller, and what these pools report.

    Every other pool is as if it did not exist: it is not asked, and no response or error names it.
    `GraphAdmission.find_pools` makes the objects.

    Attributes:
        names: the names of the pools, in the configured order.
        are_all_known: False while a pool has not reported yet whose jobs it runs. Until then it
            counts as another tenant's.
    """

    names: tuple[str, ...]
    are_all_known: bool
    node_info: NodeInfoCache

    def select(self, pool: str | None) -> CallerPools:
        """Return only the named pool, or all of the caller's pools if ``pool`` is None.

        Raises:
            InvalidRequest: there is no such pool, or it does not run the caller's jobs.
            ServiceUnavailable: it is not known yet whether there is such a pool for the caller.
        """
        if pool is None:
            return self
        self.require(pool)
        return CallerPools(names=(pool,), are_all_known=True, node_info=self.node_info)

    def require(self, pool: str) -> None:
        """Raise the errors of `select` unless the pool runs the caller's jobs."""
        if pool in self.names:
            return
        # The same response for each unknown name, or it would tell which pools exist.
        self.require_known()
        raise InvalidRequest(
            f"there is no render pool {pool!r}; available pools: {', '.join(self.names) or 'none'}",
            field="pool",
        )

    def require_known(self) -> None:
        """Raise ServiceUnavailable if a pool has not reported yet whose jobs it runs."""
        if not self.are_all_known:
            raise ServiceUnavailable(
                "a render pool has not reported yet which tenants it serves; try again",
                retry_after=_RETRY_SECONDS,
            )

    async def fetch_nodes(self) -> Mapping[str, Any]:
        """Return the merged ``/object_info`` of the nodes that the pools permit.

        The result is cached, so do not modify it. It is empty if the caller has no pool.

        Raises:
            ServiceUnavailable: no pool has reported its nodes yet.
        """
        if not self.names:
            self.require_known()
            return {}
        return await self.node_info.fetch_nodes(self.names)

    async def fetch_merged(
        self, path: str, merge: Callable[[list[Any]], T], default: T | None = None
    ) -> T:
        """Return the pools' JSON responses to GET ``path``, merged by ``merge``.

        The result is cached, so do not modify it.

        Args:
            default: the result if no pool responds or has the path; None raises an error instead.

        Raises:
            ServiceUnavailable: no pool has responded yet.
            NotFound: no pool has a response for this path.
        """
        try:
            return await self.node_info.fetch_merged_responses(path, merge, self.names)
        except (ServiceUnavailable, NotFound):
            if default is None:
                raise
            return default

    async def fetch_first(self, path: str) -> bytes:
        """Return the response to GET ``path`` of the first pool that has one.

        Raises the errors of `fetch_merged`.
        """
        return await self.node_info.fetch_first(path, self.names)

    async def fetch_from_renderers(self, path: str) -> list[Any]:
        """Return the current JSON response to GET ``path`` of every renderer that responds."""
        return await self.node_info.fetch_from_renderers(path, self.names)

    async def choose(self, graph: Mapping[str, Any]) -> str:
        """Return the first pool that has the nodes and files of the graph.

        If no pool has all of them, return the first one with all nodes. If there is none either,
        return the first pool.

        Raises:
            InvalidRequest: no pool runs the caller's jobs.
            ServiceUnavailable: an earlier pool is still starting.
        """
        if not self.names:
            self.require_known()
            raise InvalidRequest(
                "no render pool runs your jobs: ask an operator for access to one", field="pool"
            )
        return await self.node_info.choose_pool(graph, self.names)

    def assign(self, pool: str) -> str:
        """Return the pool of a render whose step has the pool ``pool``.

        Steps without a pool of their own have `DEFAULT_POOL`. If the caller has no pool of this
        name, the caller's first pool replaces it.

        Raises the errors of `select`.
        """
        if pool == DEFAULT_POOL and pool not in self.names and self.names:
            # Only a pool that is known not to be the caller's is replaced.
            self.require_known()
            return self.names[0]
        self.require(pool)
        return pool
