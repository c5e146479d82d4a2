"""Contains `ActorSupervisor`, which starts, adopts, watches and removes the actors of a pool."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from ray.exceptions import RayError

from actors.comfyui import ActorStatus, ComfySpec, find_or_start, list_actors
from deployments.render.bookkeeper import RunBookkeeper
from deployments.render.loss_log import LossLog
from deployments.render.pool import Pool
from deployments.render.remote import RayRenderer
from deployments.render.telemetry import ActorCounts
from moyin.domain.cluster import GpuReading
from moyin.errors import MoyinError
from moyin.render.scheduling.rules import ScalingPolicy

_log = logging.getLogger(__name__)
_WATCH_SECONDS = 1.0
_STATUS_SECONDS = 5.0
# Seconds within which Ray places an actor if a node has enough resources.
_PLACEMENT_SECONDS = 10.0


class ActorSupervisor:
    """Supervises the detached actors ``comfyui-<pool>-<number>`` of a pool.

    An actor may wait for a node without a time limit: its request for resources makes an autoscaler
    add a node, which takes minutes.

    The supervisor adopts all actors of an earlier replica. Those that the pool no longer needs
    finish their renders and are removed; the pool keeps the results for later retries of the steps.

    Args:
        bookkeeper: records the runs that the actors report.
        on_counts: called with the current counts every second.

    Attributes:
        losses: counts how often each actor was lost.
        unready_since: Unix time since which no actor has been ready; None while one is ready.
    """

    def __init__(
        self,
        pool: Pool,
        spec: ComfySpec,
        scaling_policy: ScalingPolicy,
        bookkeeper: RunBookkeeper,
        on_counts: Callable[[ActorCounts], None] = lambda _: None,
    ) -> None:
        self._on_counts = on_counts
        self._pool = pool
        self._spec = spec
        self._scaling_policy = scaling_policy
        self._bookkeeper = bookkeeper
        self._prefix = f"comfyui-{pool.name}-"
        self._names = [f"{self._prefix}{number}" for number in range(scaling_policy.maximum)]
        self._scaling: asyncio.Task[None] | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._supervised_since: dict[str, float] = {}
        # Times at which unplaced actors were requested, and unplaced actors whose long wait was
        # logged.
        self._requested_at: dict[str, float] = {}
        self._logged_waits: set[str] = set()
        self._renderers: dict[str, RayRenderer] = {}
        self._retiring: dict[str, asyncio.Task[None]] = {}
        self.statuses: dict[str, ActorStatus] = {}
        # Actors of an earlier replica whose status is not known yet.
        self._unseen: set[str] = set()
        # Actors that failed to start or were lost, until they are ready again.
        self._failed: set[str] = set()
        self._has_scaled = False
        self.losses = LossLog()
        self.unready_since: float | None = time.time()

    @property
    def is_starting(self) -> bool:
        """True if an actor will probably be ready soon.

        Actors that wait for a node, or whose ComfyUI failed to start, do not count.
        """
        return not self._has_scaled or any(self._is_actor_starting(name) for name in self._tasks)

    def _is_actor_starting(self, name: str) -> bool:
        if self._pool.has_renderer(name) and not self._pool.is_draining(name):
            return False
        status = self.statuses.get(name)
        if name in self._failed or (status is not None and status.renderer.error is not None):
            return False
        return self.placing_seconds.get(name, 0.0) <= _PLACEMENT_SECONDS

    @property
    def names(self) -> list[str]:
        """The names of all supervised actors."""
        return sorted(self._tasks)

    async def read_gpus(self, name: str) -> tuple[GpuReading, ...]:
        """Return the measurements of an actor's graphics cards; empty if the actor is unknown."""
        renderer = self._renderers.get(name)
        return () if renderer is None else await renderer.read_gpus()

    @property
    def placing_seconds(self) -> dict[str, float]:
        """The seconds for which each unplaced actor has waited for a node so far, by name."""
        now = time.monotonic()
        return {name: now - since for name, since in self._requested_at.items()}

    def start(self) -> None:
        """Start the background tasks that start and supervise actors."""
        self._pool.settled.clear()
        self._scaling = asyncio.create_task(self._run_forever())

    def check_running(self) -> None:
        """Raise RuntimeError if a task that supervises actors has ended because of a bug."""
        if any(task.done() for task in self._list_tasks()):
            raise RuntimeError(
                f"a task that supervises the actors of render pool {self._pool.name!r} has ended, so "
                "Serve replaces the replica"
            )

    async def remove_idle_actors(self) -> None:
        """Stop supervising all actors, and remove idle ones.

        Busy actors, and actors with a result that no attempt has fetched, remain for a later replica.
        """
        tasks = self._list_tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._retiring.values(), return_exceptions=True)
        abandoned_names = self._pool.abandoned_renderers
        await asyncio.gather(
            *(
                self._retire_if_idle(name, renderer, is_placed=name not in self._requested_at)
                for name, renderer in self._renderers.items()
                if name not in abandoned_names
            )
        )

    def _list_tasks(self) -> list[asyncio.Task[None]]:
        return [*self._tasks.values(), *([self._scaling] if self._scaling else [])]

    async def _run_forever(self) -> None:
        names = await asyncio.to_thread(list_actors, self._prefix)
        self._unseen.update(names)
        for name in names:
            self._start_supervising(name)
        self._mark_status_known(None)
        while True:
            self._scale_actors()
            self._has_scaled = True
            self._on_counts(self._count_actors())
            await asyncio.sleep(_WATCH_SECONDS)

    def _scale_actors(self) -> None:
        waiting_count = self._pool.waiting_renders
        missing_count = self._scaling_policy.count_needed_renderers(
            waiting_count, self._pool.mean_render_seconds
        ) - len(self._tasks)
        unused_names = [n for n in self._names if n not in self._tasks and n not in self._retiring]
        for name in unused_names[: max(0, missing_count)]:
            self._start_supervising(name)
        names = list(self._tasks)
        idle_seconds = [self._measure_idle_seconds(name) for name in names]
        for position in self._scaling_policy.select_removable_renderers(
            idle_seconds, waiting_count
        ):
            self._remove_actor(names[position])

    def _count_actors(self) -> ActorCounts:
        seconds_by_name = self.placing_seconds
        for name in seconds_by_name.keys() - self._logged_waits:
            if seconds_by_name[name] > _PLACEMENT_SECONDS:
                self._logged_waits.add(name)
                _log.info("actor %s is waiting for a node with %s", name, self._spec.resources)
        ready_count = sum(self._pool.has_renderer(name) for name in self._tasks)
        if ready_count:
            self.unready_since = None
        elif self.unready_since is None:
            self.unready_since = time.time()
        return ActorCounts(
            ready=ready_count,
            starting=len(self._tasks) - ready_count - len(seconds_by_name),
            placing=len(seconds_by_name),
        )

    def _start_supervising(self, name: str) -> None:
        self._supervised_since[name] = time.monotonic()
        self._tasks[name] = asyncio.create_task(self._supervise_actor(name))

    def _remove_actor(self, name: str) -> None:
        """Stop assigning renders to the actor and terminate it."""
        _log.info("removing actor %s, which is idle and not needed", name)
        self._tasks.pop(name).cancel()
        self.statuses.pop(name, None)
        self.losses.remove_actor(name)
        self._mark_placed(name)
        self._pool.remove_renderer(name)
        task = asyncio.create_task(self._renderers.pop(name).retire())
        self._retiring[name] = task
        task.add_done_callback(lambda _: self._retiring.pop(name, None))

    def _measure_idle_seconds(self, name: str) -> float | None:
        if name not in self._renderers:
            return None
        if self._pool.is_followed(name) or self._has_unsettled_runs(name):
            return None
        if self._pool.has_renderer(name):
            return self._pool.measure_idle_seconds(name)
        if self.placing_seconds.get(name, 0.0) > _PLACEMENT_SECONDS:
            return math.inf  # An autoscaler must not add a node for an idle actor.
        return time.monotonic() - self._supervised_since[name]

    def _has_unsettled_runs(self, name: str) -> bool:
        status = self.statuses.get(name)
        return status is not None and bool(status.renderer.runs)

    async def _supervise_actor(self, name: str) -> None:
        """Start or adopt the actor, and restart it whenever it is lost."""
        logged_reason = ""
        while True:
            self._requested_at[name] = time.monotonic()
            try:
                handle = await asyncio.to_thread(find_or_start, name, self._spec)
                await self._follow_actor(name, RayRenderer(handle))
            except (MoyinError, RayError, ValueError) as error:
                # The start is tried every second, so the same error is logged only once.
                if (reason := str(error)) != logged_reason or name in self.statuses:
                    _log.warning("actor %s failed and is started again: %s", name, reason)
                logged_reason = reason
                self._failed.add(name)
                self.losses.record(name)
            self._mark_status_known(name)
            self._mark_placed(name)
            self.statuses.pop(name, None)
            self._pool.remove_renderer(name)
            # Settled last, because the database may hang.
            await self._bookkeeper.settle(name, ())
            if name not in self._names:
                self._renderers.pop(name, None)
                self._failed.discard(name)
                self.losses.remove_actor(name)
                del self._tasks[name]
                return
            await asyncio.sleep(_WATCH_SECONDS)

    async def _follow_actor(self, name: str, renderer: RayRenderer) -> None:
        """Poll the status of an actor until it is lost or removed.

        An actor of an earlier configuration or version is removed when it has no prompts left.
        """
        self._renderers[name] = renderer
        while True:
            status = await renderer.get_actor_status()
            self.statuses[name] = status
            self.losses.observe_pid(name, status.renderer.pid, status.renderer.tenant_changes)
            self._mark_placed(name)
            if run_ids := await self._bookkeeper.settle(name, status.renderer.runs):
                await renderer.settle(run_ids)
            if self._is_outdated(name, renderer, status):
                self._pool.drain_renderer(name, renderer)
                is_unused = not status.renderer.running and not self._has_unsettled_runs(name)
                if is_unused and not self._pool.is_followed(name):
                    _log.info("removing actor %s of an earlier configuration or version", name)
                    self._pool.inherit_results(name, await renderer.results())
                    await renderer.retire()
                    return
            elif status.renderer.ready:
                self._pool.add_renderer(name, renderer, status.renderer)
                self._failed.discard(name)
            else:
                self._pool.remove_renderer(name)
            self._mark_status_known(name)
            await asyncio.sleep(_WATCH_SECONDS)

    def _is_outdated(self, name: str, renderer: RayRenderer, status: ActorStatus) -> bool:
        # The spec of an earlier version may equal this one, although its code lacks what is new.
        return (
            renderer.is_of_earlier_version or status.spec != self._spec or name not in self._names
        )

    async def _retire_if_idle(self, name: str, renderer: RayRenderer, *, is_placed: bool) -> None:
        try:
            async with asyncio.timeout(_STATUS_SECONDS):
                status = (await renderer.get_actor_status()).renderer
        except TimeoutError:
            if is_placed:
                return  # The actor is too busy to respond. If no pool adopts it, its lease will expire.
        except (MoyinError, RayError) as error:
            _log.info("removing an actor that has died already: %s", error)
        else:
            runs = status.runs
            settled_ids = await self._bookkeeper.settle(name, runs)
            if status.running or len(settled_ids) < len(runs):
                return
        await renderer.retire()

    def _mark_placed(self, name: str) -> None:
        self._requested_at.pop(name, None)
        self._logged_waits.discard(name)

    def _mark_status_known(self, name: str | None) -> None:
        """Set `Pool.settled` once the status of every actor of an earlier replica is known.

        Args:
            name: the actor whose status is now known; None to check without a new status.
        """
        self._unseen.discard(name or "")
        if not self._unseen:
            self._pool.settled.set()
