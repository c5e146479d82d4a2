"""`ActorSupervisor`: starts or adopts the actors of a pool, watches them, and removes them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ray.exceptions import RayError

from actors.comfyui import ActorStatus, ComfySpec, existing, find_or_start
from deployments.render.pool import Pool
from deployments.render.remote import RayRenderer
from moyin.errors import MoyinError
from moyin.render.scheduling.rules import ScalingPolicy

__all__ = ["ActorCounts", "ActorSupervisor"]

_log = logging.getLogger(__name__)
_WATCH_SECONDS = 1.0
_STATUS_SECONDS = 5.0
# On a node with room, Ray places an actor within this time.
_PLACEMENT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorCounts:
    """The number of a pool's actors in each state.

    Attributes:
        ready: actors that take work or are busy.
        starting: placed actors whose ComfyUI is not up yet, or that end as soon as they are idle.
        placing: actors that wait for Ray to place them, until a card is free or a node is added.
    """

    ready: int
    starting: int
    placing: int


class ActorSupervisor:
    """Supervises the detached actors ``comfyui-<pool>-<i>``.

    An actor may wait for its placement for any time: its request for resources is what makes an
    autoscaler add a node, which takes minutes.

    Actors of an earlier replica are adopted, even when the pool should now have fewer. They finish
    their renders, whose results remain available however late the step's retry comes: it waits in
    the queue like any other step.

    Args:
        on_counts: called with the present counts every second.
    """

    def __init__(
        self,
        pool: Pool,
        spec: ComfySpec,
        scale: ScalingPolicy,
        on_counts: Callable[[ActorCounts], None] = lambda _: None,
    ) -> None:
        self._on_counts = on_counts
        self._pool = pool
        self._spec = spec
        self._scale = scale
        self._prefix = f"comfyui-{pool.name}-"
        self._names = [f"{self._prefix}{number}" for number in range(scale.maximum)]
        self._scaling: asyncio.Task[None] | None = None
        # By actor: the task that supervises it, and when that began.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._since: dict[str, float] = {}
        # When each unplaced actor was requested, and those whose long wait has been logged.
        self._requested: dict[str, float] = {}
        self._logged_waits: set[str] = set()
        self._renderers: dict[str, RayRenderer] = {}
        self._retiring: dict[str, asyncio.Task[None]] = {}
        self.statuses: dict[str, ActorStatus] = {}
        # Actors of an earlier replica that have not been seen yet.
        self._unseen: set[str] = set()
        # Actors whose last start or life ended in an error.
        self._failed: set[str] = set()
        self._has_begun = False

    @property
    def is_starting(self) -> bool:
        """Whether an actor that takes no work yet will probably do so soon.

        Actors that wait for a node, or whose ComfyUI failed to start, do not count.
        """
        return not self._has_begun or any(self._is_starting(name) for name in self._tasks)

    def _is_starting(self, name: str) -> bool:
        if self._pool.has_renderer(name) and not self._pool.is_draining(name):
            return False
        status = self.statuses.get(name)
        if name in self._failed or (status is not None and status.renderer.error is not None):
            return False
        return self.placing_seconds.get(name, 0.0) <= _PLACEMENT_SECONDS

    @property
    def placing_seconds(self) -> dict[str, float]:
        """How long each unplaced actor has waited, in seconds, by name."""
        now = time.monotonic()
        return {name: now - since for name, since in self._requested.items()}

    def start(self) -> None:
        """Start and supervise actors in the background."""
        self._pool.settled.clear()
        self._scaling = asyncio.create_task(self._run())

    def check(self) -> None:
        """Check that every actor is still supervised.

        Raises:
            RuntimeError: a supervising task has ended, which is a bug.
        """
        if any(task.done() for task in self._all_tasks()):
            raise RuntimeError("a task that supervises render actors has ended")

    async def remove_idle(self) -> None:
        """Stop supervising, and remove the idle actors for good.

        Actors that are busy, or have a result that no attempt has fetched, are left to a later pool.
        """
        tasks = self._all_tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._retiring.values(), return_exceptions=True)
        abandoned = self._pool.abandoned_renderers
        await asyncio.gather(
            *(
                _retire_if_idle(renderer, is_placed=name not in self._requested)
                for name, renderer in self._renderers.items()
                if name not in abandoned
            )
        )

    def _all_tasks(self) -> list[asyncio.Task[None]]:
        return [*self._tasks.values(), *([self._scaling] if self._scaling else [])]

    async def _run(self) -> None:
        names = await asyncio.to_thread(existing, self._prefix)
        self._unseen.update(names)
        for name in names:
            self._add(name)
        self._mark_seen(None)
        while True:
            self._adjust()
            self._has_begun = True
            self._on_counts(self._count())
            await asyncio.sleep(_WATCH_SECONDS)

    def _adjust(self) -> None:
        waiting = self._pool.waiting
        missing = self._scale.count_needed(waiting, self._pool.mean_seconds) - len(self._tasks)
        unused = [n for n in self._names if n not in self._tasks and n not in self._retiring]
        for name in unused[: max(0, missing)]:
            self._add(name)
        names = list(self._tasks)
        idle_seconds = [self._idle_seconds(name) for name in names]
        for position in self._scale.select_removable(idle_seconds, waiting):
            self._remove(names[position])

    def _count(self) -> ActorCounts:
        placing = self.placing_seconds
        for name in placing.keys() - self._logged_waits:
            if placing[name] > _PLACEMENT_SECONDS:
                self._logged_waits.add(name)
                _log.info("actor %s waits for a node with room for %s", name, self._spec.resources)
        ready = sum(self._pool.has_renderer(name) for name in self._tasks)
        return ActorCounts(
            ready=ready,
            starting=len(self._tasks) - ready - len(placing),
            placing=len(placing),
        )

    def _add(self, name: str) -> None:
        self._since[name] = time.monotonic()
        self._tasks[name] = asyncio.create_task(self._supervise(name))

    def _remove(self, name: str) -> None:
        """Stop assigning work to the actor and shut it down."""
        _log.info("actor %s is idle and not needed; removing it", name)
        self._tasks.pop(name).cancel()
        self.statuses.pop(name, None)
        self._mark_placed(name)
        self._pool.remove_renderer(name)
        task = asyncio.create_task(self._renderers.pop(name).retire())
        self._retiring[name] = task
        task.add_done_callback(lambda _: self._retiring.pop(name, None))

    def _idle_seconds(self, name: str) -> float | None:
        if name not in self._renderers:
            return None
        if self._pool.is_followed(name):
            return None
        if self._pool.has_renderer(name):
            return self._pool.idle_seconds(name)
        if self.placing_seconds.get(name, 0.0) > _PLACEMENT_SECONDS:
            return math.inf  # a node that is added for it would have nothing to do
        return time.monotonic() - self._since[name]

    async def _supervise(self, name: str) -> None:
        """Start or adopt the actor, and start it again whenever it is lost."""
        logged = ""
        while True:
            self._requested[name] = time.monotonic()
            try:
                handle = await asyncio.to_thread(find_or_start, name, self._spec)
                await self._watch(name, RayRenderer(handle))
            except (MoyinError, RayError, ValueError) as error:
                # This is retried every second: log the same reason only once.
                if (reason := str(error)) != logged or name in self.statuses:
                    _log.warning("actor %s: %s", name, reason)
                logged = reason
                self._failed.add(name)
            self._mark_seen(name)
            self._mark_placed(name)
            self.statuses.pop(name, None)
            self._pool.remove_renderer(name)
            if name not in self._names:
                self._renderers.pop(name, None)
                self._failed.discard(name)
                del self._tasks[name]
                return
            await asyncio.sleep(_WATCH_SECONDS)

    async def _watch(self, name: str, renderer: RayRenderer) -> None:
        """Follow an actor until it dies, or until a surplus or outdated actor has finished."""
        self._renderers[name] = renderer
        while True:
            status = await renderer.actor_status()
            self.statuses[name] = status
            self._mark_placed(name)
            if status.spec != self._spec or name not in self._names:
                self._pool.drain_renderer(name, renderer)
                if not status.renderer.running and not self._pool.is_followed(name):
                    _log.info("actor %s belongs to another configuration; removing it", name)
                    self._pool.inherit(name, await renderer.results())
                    await renderer.retire()
                    return
            elif status.renderer.ready:
                self._pool.add_renderer(name, renderer, status.renderer)
                self._failed.discard(name)
            else:
                self._pool.remove_renderer(name)
            self._mark_seen(name)
            await asyncio.sleep(_WATCH_SECONDS)

    def _mark_placed(self, name: str) -> None:
        self._requested.pop(name, None)
        self._logged_waits.discard(name)

    def _mark_seen(self, name: str | None) -> None:
        """Let the pool search the actors for prompts once all earlier actors have been seen."""
        self._unseen.discard(name or "")
        if not self._unseen:
            self._pool.settled.set()


async def _retire_if_idle(renderer: RayRenderer, *, is_placed: bool) -> None:
    running: tuple[str, ...] = ()
    try:
        async with asyncio.timeout(_STATUS_SECONDS):
            running = (await renderer.actor_status()).renderer.running
    except TimeoutError:
        if is_placed:
            return  # too busy to answer; its lease ends it if no pool adopts it
    except (MoyinError, RayError) as error:
        _log.info("an actor is dead already: %s", error)
    if not running:
        await renderer.retire()
