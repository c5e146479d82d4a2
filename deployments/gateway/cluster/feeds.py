"""Reads the parts of the cluster's event stream, each once for all clients that follow it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from deployments.event_stream import merge_streams
from deployments.gateway.cluster.bodies import ClusterBody, DoctorBody
from deployments.gateway.cluster.shared_reading import SharedReading
from deployments.gateway.cluster.snapshot import restrict_cluster
from moyin.system.bounded import BoundedDict

# The seconds between two readings of each part.
READING_SECONDS: Mapping[str, float] = {
    "cluster": 3.0, "backends": 5.0, "usage": 60.0, "models": 10.0, "jobs": 2.0, "routes": 5.0,
    "doctor": 60.0,
}  # fmt: skip
# With this pause, a replica spends at most a hundredth of its time on the sums of a tenant.
_USAGE_PAUSE_FACTOR = 100.0
# Counting a hundred thousand open jobs takes tens of milliseconds: at most a fiftieth of a core.
_JOBS_PAUSE_FACTOR = 50.0
# The models app computes one sum after the other, and refuses further ones while eight wait.
_MAX_SUMS = 2
_MAX_TENANTS = 1_000
_MAX_VIEWS = 128
# Returns the names of the render pools that a client may use; None means that it sees all.
FindPools = Callable[[], Awaitable[Sequence[str] | None]]
# Returns JSON for the given tenant, or for all tenants if it is None. The result is None if the source
# does not respond.
ReadForTenant = Callable[[str | None], Awaitable[str | None]]
KeyT = TypeVar("KeyT")


class Included(StrEnum):
    """The optional parts of the cluster's event stream, which a client requests by name."""

    BACKENDS = "backends"
    USAGE = "usage"
    MODELS = "models"
    JOBS = "jobs"
    ROUTES = "routes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Viewer:
    """A client of the event stream. Equal viewers see the same data and share its readings."""

    owner: str
    is_operator: bool

    @property
    def tenant(self) -> str | None:
        """The tenant whose back ends and usage the client sees; None means all tenants."""
        return None if self.is_operator else self.owner


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedSources:
    """The functions that read the parts of the event stream as JSON.

    A function returns None if its source does not respond.

    Attributes:
        cluster: returns the body of ``GET /cluster`` for operators.
        backends: returns the body of ``GET /v1/backends``.
        usage: returns the body of ``GET /v1/usage`` for this month by day.
        models: returns the body of ``GET /v1/models`` for a viewer.
        jobs: returns the newest jobs of a tenant.
        routes: returns the body of ``GET /cluster/routes``. Its argument is the body of ``GET
            /cluster``, from which the status of the apps is taken.
        doctor: returns the body of ``GET /cluster/doctor``.
    """

    cluster: Callable[[], Awaitable[ClusterBody]]
    backends: ReadForTenant
    usage: ReadForTenant
    models: Callable[[Viewer], Awaitable[str | None]]
    jobs: Callable[[str], Awaitable[str | None]]
    routes: Callable[[ClusterBody], str]
    doctor: Callable[[], Awaitable[DoctorBody]]


class _Readings(Generic[KeyT]):
    """Reads a source once per key, such as a tenant, for all clients that follow the same key."""

    def __init__(
        self,
        read: Callable[[KeyT], Awaitable[str | None]],
        interval_seconds: float,
        clock: Callable[[], float],
        *,
        pause_factor: float = 0.0,
        shows_old_value: bool = False,
    ) -> None:
        self._read = read
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._pause_factor = pause_factor
        self._shows_old_value = shows_old_value
        self._readings: BoundedDict[KeyT, SharedReading[str | None]] = BoundedDict(_MAX_TENANTS)

    def follow(self, key: KeyT) -> AsyncGenerator[str | None, None]:
        """Yield the JSON for a key now, and again whenever it has changed."""
        reading = self._readings.get(key)
        if reading is None:
            reading = SharedReading(
                lambda: self._read(key),
                interval_seconds=self._interval_seconds,
                pause_factor=self._pause_factor,
                shows_old_value=self._shows_old_value,
                clock=self._clock,
            )
        self._readings[key] = reading  # stored again, so that older keys are evicted first
        return reading.follow()

    async def close(self) -> None:
        """Cancel all readings in progress."""
        for reading in list(self._readings.values()):
            await reading.close()


class ClusterFeeds:
    """Reads each source once for all clients of this replica that have the same rights.

    Args:
        intervals: the seconds between two readings of each part, by its name.
        clock: returns the present monotonic time in seconds.
    """

    def __init__(
        self,
        sources: FeedSources,
        *,
        intervals: Mapping[str, float] = READING_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        sum_slots = asyncio.Semaphore(_MAX_SUMS)

        async def read_usage_in_turn(tenant: str | None) -> str | None:
            async with sum_slots:
                return await sources.usage(tenant)

        async def read_routes(_: None) -> str | None:
            return sources.routes(await self.cluster.get())

        self.cluster = SharedReading(
            sources.cluster, interval_seconds=intervals["cluster"], clock=clock
        )
        self.doctor = SharedReading(
            sources.doctor, interval_seconds=intervals["doctor"], clock=clock
        )
        self._backends = _Readings(sources.backends, intervals["backends"], clock)
        # A sum takes tenths of a second. Until then an overview shows the old value.
        self._usage = _Readings(
            read_usage_in_turn,
            intervals["usage"],
            clock,
            pause_factor=_USAGE_PAUSE_FACTOR,
            shows_old_value=True,
        )
        self._models = _Readings(sources.models, intervals["models"], clock)
        self._jobs = _Readings(
            sources.jobs, intervals["jobs"], clock, pause_factor=_JOBS_PAUSE_FACTOR
        )
        self._routes = _Readings(read_routes, intervals["routes"], clock)
        self._formatted_cluster: ClusterBody | None = None
        self._views: BoundedDict[tuple[str, ...] | None, str] = BoundedDict(_MAX_VIEWS)

    def follow(
        self, viewer: Viewer, included_parts: Iterable[Included], find_pools: FindPools | None
    ) -> AsyncGenerator[tuple[str, str | None] | None, None]:
        """Yield the state of the cluster and each included part now, and again after each change.

        Each value is JSON, and comes with its name: ``cluster``, or the name of the part. After 15
        seconds without a change, None is yielded.

        Args:
            find_pools: determines what the viewer sees of the cluster; None to leave out the
                cluster.
        """
        streams: dict[str, AsyncGenerator[str | None, None]]
        streams = {name: self._follow_part(name, viewer) for name in included_parts}
        if find_pools is not None:
            streams["cluster"] = self._follow_cluster(find_pools)
        return merge_streams(streams)

    async def _follow_cluster(self, find_pools: FindPools) -> AsyncGenerator[str | None, None]:
        """Yield what a viewer sees of the cluster as JSON, now and after each change of that.

        A change of what the viewer does not see yields nothing. It must not even delay a heartbeat,
        which would tell when other tenants' pools are at work.
        """
        previous_view = None
        async with aclosing(self.cluster.follow()) as changes:
            async for cluster in changes:
                view = self.format_cluster(cluster, await find_pools())
                if view != previous_view:
                    yield view
                previous_view = view

    def _follow_part(self, part: Included, viewer: Viewer) -> AsyncGenerator[str | None, None]:
        match part:
            case Included.BACKENDS:
                return self._backends.follow(viewer.tenant)
            case Included.USAGE:
                return self._usage.follow(viewer.tenant)
            case Included.MODELS:
                return self._models.follow(viewer)
            case Included.JOBS:
                return self._jobs.follow(viewer.owner)
            case Included.ROUTES:
                return self._routes.follow(None)

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
        """Cancel all readings in progress."""
        await self.cluster.close()
        await self.doctor.close()
        for readings in (self._backends, self._usage, self._models, self._jobs, self._routes):
            await readings.close()
