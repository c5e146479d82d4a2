"""Reads the cluster, the back ends and the usage, and shares each reading among all clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from enum import StrEnum

from deployments.event_stream import merge_streams
from deployments.gateway.cluster.bodies import ClusterBody
from deployments.gateway.cluster.shared_reading import SharedReading
from deployments.gateway.cluster.snapshot import restrict_cluster
from moyin.system.bounded import BoundedDict

# With this pause, a replica spends at most a hundredth of its time on the sums of a tenant.
_USAGE_PAUSE_FACTOR = 100.0
# The models app computes one sum after the other, and refuses further ones while eight wait.
_MAX_SUMS = 2
_MAX_TENANTS = 1_000
_MAX_VIEWS = 128
# Returns JSON for one tenant, or for all if it is None; the result is None if the source does not respond.
ReadForTenant = Callable[[str | None], Awaitable[str | None]]


class Included(StrEnum):
    """The optional parts of the cluster's event stream, which a client requests by name."""

    BACKENDS = "backends"
    USAGE = "usage"


class _TenantReadings:
    """Reads a source once for each tenant, and shares the result among the tenant's clients."""

    def __init__(
        self,
        read: ReadForTenant,
        interval: float,
        clock: Callable[[], float],
        *,
        pause_factor: float = 0.0,
        shows_old: bool = False,
    ) -> None:
        self._read = read
        self._interval = interval
        self._clock = clock
        self._pause_factor = pause_factor
        self._shows_old = shows_old
        self._readings: BoundedDict[str | None, SharedReading[str | None]]
        self._readings = BoundedDict(_MAX_TENANTS)

    def follow(self, tenant: str | None) -> AsyncGenerator[str | None, None]:
        """Yield a tenant's data as JSON now, and again whenever the JSON has changed.

        If ``tenant`` is None, the data cover all tenants.
        """
        reading = self._readings.get(tenant)
        if reading is None:
            reading = SharedReading(
                lambda: self._read(tenant),
                interval=self._interval,
                pause_factor=self._pause_factor,
                shows_old=self._shows_old,
                clock=self._clock,
            )
        self._readings[tenant] = reading  # makes it the newest
        return reading.follow()

    async def close(self) -> None:
        """Cancel the readings of all tenants that are in progress."""
        for reading in list(self._readings.values()):
            await reading.close()


class ClusterFeeds:
    """Shares readings of the cluster, the back ends and the usage among all clients of a replica.

    Args:
        read_cluster: returns the body of ``GET /cluster`` for operators.
        read_backends: returns the body of ``GET /v1/backends``.
        read_usage: returns the body of ``GET /v1/usage`` for this month by day.
        cluster_seconds, backends_seconds, usage_seconds: the seconds between two readings.
        clock: returns the present monotonic time in seconds.
    """

    def __init__(
        self,
        read_cluster: Callable[[], Awaitable[ClusterBody]],
        read_backends: ReadForTenant,
        read_usage: ReadForTenant,
        *,
        cluster_seconds: float = 2.0,
        backends_seconds: float = 5.0,
        usage_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        sums = asyncio.Semaphore(_MAX_SUMS)

        async def read_usage_in_turn(tenant: str | None) -> str | None:
            async with sums:
                return await read_usage(tenant)

        self.cluster = SharedReading(read_cluster, interval=cluster_seconds, clock=clock)
        self._tenants = {
            Included.BACKENDS: _TenantReadings(read_backends, backends_seconds, clock),
            # A sum takes tenths of a second, in which an overview would have an empty part.
            Included.USAGE: _TenantReadings(
                read_usage_in_turn,
                usage_seconds,
                clock,
                pause_factor=_USAGE_PAUSE_FACTOR,
                shows_old=True,
            ),
        }
        self._formatted_cluster: ClusterBody | None = None
        self._views: BoundedDict[tuple[str, ...] | None, str] = BoundedDict(_MAX_VIEWS)

    def follow(
        self, tenant: str | None, included: Iterable[Included]
    ) -> AsyncGenerator[tuple[str, ClusterBody | str | None] | None, None]:
        """Yield the cluster and the included parts now, and each of them again when it has changed.

        Each value comes with its name: ``cluster``, or the name of the part. After 15 seconds
        without a change, None is yielded.

        Args:
            tenant: the tenant whose back ends and usage are yielded; None means all tenants.
        """
        streams: dict[str, AsyncGenerator[ClusterBody | str | None, None]]
        streams = {name: self._tenants[name].follow(tenant) for name in included}
        return merge_streams({"cluster": self.cluster.follow(), **streams})

    def format_cluster(self, cluster: ClusterBody, pools: Sequence[str] | None) -> str:
        """Return the JSON of ``cluster`` for tenants that may use ``pools``; None means operators.

        The JSON is computed once for all clients with the same rights.
        """
        if cluster is not self._formatted_cluster:
            self._formatted_cluster = cluster
            self._views.clear()
        key = None if pools is None else tuple(pools)
        view = self._views.get(key)
        if view is None:
            body = cluster if pools is None else restrict_cluster(cluster, pools)
            view = self._views[key] = body.model_dump_json(ensure_ascii=True)
        return view

    async def close(self) -> None:
        """Cancel the readings in progress of the cluster's state, the back ends and the usage."""
        await self.cluster.close()
        for readings in self._tenants.values():
            await readings.close()
