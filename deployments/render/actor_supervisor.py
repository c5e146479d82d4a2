"""`ActorSupervisor`: keeps the actors of a pool: starts or adopts them, watches them, removes them."""

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
from moyin.render.scheduling.scaling import Scale

__all__ = ["ActorCounts", "ActorSupervisor"]

_log = logging.getLogger(__name__)
_WATCH_SECONDS = 1.0
_ASK_SECONDS = 5.0
# Where there is room, an actor has its place sooner.
_SOON_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorCounts:
    """How many actors are in which state.

    Attributes:
        ready: take work, or are at it.
        starting: have their place; ComfyUI is not up, or they end as soon as they are idle.
        placing: wait for Ray to place them: for others to leave a card, or for a node to come.
    """

    ready: int
    starting: int
    placing: int


class ActorSupervisor:
    """Detached actors ``comfyui-<pool>-<i>``. They may take as long as they like to be placed: what
    they wait for is what an autoscaler goes by, and a node takes minutes to come.

    Those that an earlier replica left are adopted, also when there should be fewer now: what they
    render is rendered to its end, and found by whoever asks for it again, however late: the queue
    may be long, and the step that lost its replica stands in it like any other.

    Args:
        tell: called with the present roll every second.
    """

    def __init__(
        self,
        pool: Pool,
        spec: ComfySpec,
        scale: Scale,
        tell: Callable[[ActorCounts], None] = lambda _: None,
    ) -> None:
        self._tell = tell
        self._pool = pool
        self._spec = spec
        self._scale = scale
        self._prefix = f"comfyui-{pool.name}-"
        self._names = [f"{self._prefix}{number}" for number in range(scale.maximum)]
        self._scaling: asyncio.Task[None] | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._since: dict[str, float] = {}
        self._placing: dict[str, float] = {}
        self._patient: set[str] = set()
        self._renderers: dict[str, RayRenderer] = {}
        self._retiring: dict[str, asyncio.Task[None]] = {}
        self.statuses: dict[str, ActorStatus] = {}
        self._unseen: set[str] = set()
        # Actors whose last start or life ended in an error.
        self._failed: set[str] = set()
        self._begun = False

    @property
    def starting(self) -> bool:
        """Whether an actor that takes no work yet will soon do so, as far as is known.

        Not one that waits for a node, nor one whose ComfyUI failed to start.
        """
        return not self._begun or any(self._is_starting(name) for name in self._tasks)

    def _is_starting(self, name: str) -> bool:
        if self._pool.has(name) and not self._pool.is_draining(name):
            return False
        status = self.statuses.get(name)
        if name in self._failed or (status is not None and status.renderer.error is not None):
            return False
        return self.placing.get(name, 0.0) <= _SOON_SECONDS

    @property
    def placing(self) -> dict[str, float]:
        """Actors without a place yet, and for how many seconds."""
        now = time.monotonic()
        return {name: now - since for name, since in self._placing.items()}

    def start(self) -> None:
        self._pool.settled.clear()
        self._scaling = asyncio.create_task(self._run())

    def check(self) -> None:
        """
        Raises:
            RuntimeError: nobody looks after the actors any more, which is a bug.
        """
        tasks = [*self._tasks.values(), *([self._scaling] if self._scaling else [])]
        if any(task.done() for task in tasks):
            raise RuntimeError("an actor is no longer looked after")

    async def remove(self) -> None:
        """Remove the actors for good, but for those at work, and those that have finished what
        nobody has fetched: a later pool adopts them."""
        tasks = [*self._tasks.values(), *([self._scaling] if self._scaling else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._retiring.values(), return_exceptions=True)
        left = self._pool.left
        await asyncio.gather(
            *(
                _retire_if_idle(renderer, placed=name not in self._placing)
                for name, renderer in self._renderers.items()
                if name not in left
            )
        )

    async def _run(self) -> None:
        found = await asyncio.to_thread(existing, self._prefix)
        self._unseen.update(found)
        for name in found:
            self._add(name)
        self._saw(None)
        while True:
            self._adjust()
            self._begun = True
            self._tell(self._roll())
            await asyncio.sleep(_WATCH_SECONDS)

    def _adjust(self) -> None:
        waiting = self._pool.waiting
        missing = self._scale.needed(waiting, self._pool.service) - len(self._tasks)
        unused = [n for n in self._names if n not in self._tasks and n not in self._retiring]
        for name in unused[: max(0, missing)]:
            self._add(name)
        names = list(self._tasks)
        idle = [self._idle(name) for name in names]
        for place in self._scale.removable(idle, waiting):
            self._dismiss(names[place])

    def _roll(self) -> ActorCounts:
        placing = self.placing
        for name in placing.keys() - self._patient:
            if placing[name] > _SOON_SECONDS:
                self._patient.add(name)
                _log.info("actor %s waits for a node with room for %s", name, self._spec.room)
        ready = sum(self._pool.has(name) for name in self._tasks)
        return ActorCounts(
            ready=ready,
            starting=len(self._tasks) - ready - len(placing),
            placing=len(placing),
        )

    def _add(self, name: str) -> None:
        self._since[name] = time.monotonic()
        self._tasks[name] = asyncio.create_task(self._keep(name))

    def _dismiss(self, name: str) -> None:
        """It gets nothing more, and ends."""
        _log.info("nobody needs actor %s; removing it", name)
        self._tasks.pop(name).cancel()
        self.statuses.pop(name, None)
        self._placed(name)
        self._pool.down(name)
        task = asyncio.create_task(self._renderers.pop(name).retire())
        self._retiring[name] = task
        task.add_done_callback(lambda _: self._retiring.pop(name, None))

    def _idle(self, name: str) -> float | None:
        if name not in self._renderers:
            return None
        if self._pool.follows(name):
            return None
        if self._pool.has(name):
            return self._pool.idle(name)
        if self.placing.get(name, 0.0) > _SOON_SECONDS:
            return math.inf  # the node that it waits for would come for nobody
        return time.monotonic() - self._since[name]

    async def _keep(self, name: str) -> None:
        told = ""
        while True:
            self._placing[name] = time.monotonic()
            try:
                handle = await asyncio.to_thread(find_or_start, name, self._spec)
                await self._watch(name, RayRenderer(handle))
            except (MoyinError, RayError, ValueError) as error:
                # It is tried again every second: what is still wrong is told once.
                if (reason := str(error)) != told or name in self.statuses:
                    _log.warning("actor %s: %s", name, reason)
                told = reason
                self._failed.add(name)
            self._saw(name)
            self._placed(name)
            self.statuses.pop(name, None)
            self._pool.down(name)
            if name not in self._names:
                self._renderers.pop(name, None)
                self._failed.discard(name)
                del self._tasks[name]
                return
            await asyncio.sleep(_WATCH_SECONDS)

    async def _watch(self, name: str, renderer: RayRenderer) -> None:
        """Follow an actor until it dies, or must go and has nothing more to do."""
        self._renderers[name] = renderer
        while True:
            status = await renderer.actor_status()
            self.statuses[name] = status
            self._placed(name)
            if status.spec != self._spec or name not in self._names:
                self._pool.drain(name, renderer)
                if not status.renderer.running and not self._pool.follows(name):
                    _log.info("actor %s belongs to another configuration; removing it", name)
                    self._pool.inherit(name, await renderer.results())
                    await renderer.retire()
                    return
            elif status.renderer.ready:
                self._pool.up(name, renderer, status.renderer)
                self._failed.discard(name)
            else:
                self._pool.down(name)
            self._saw(name)
            await asyncio.sleep(_WATCH_SECONDS)

    def _placed(self, name: str) -> None:
        self._placing.pop(name, None)
        self._patient.discard(name)

    def _saw(self, name: str | None) -> None:
        """Nobody looks for prompts on the actors that were there before until all have been seen."""
        self._unseen.discard(name or "")
        if not self._unseen:
            self._pool.settled.set()


async def _retire_if_idle(renderer: RayRenderer, *, placed: bool) -> None:
    running: tuple[str, ...] = ()
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            running = (await renderer.actor_status()).renderer.running
    except TimeoutError:
        if placed:
            return  # too busy to say with what; it ends by itself when nobody comes for it
    except (MoyinError, RayError) as error:
        _log.info("an actor is dead already: %s", error)
    if not running:
        await renderer.retire()
