"""`Listener`: one WebSocket of a ComfyUI client, apart from the socket itself.

Workers say what happens to a prompt on its client's stream; a socket on any replica passes it on.
The end is told from the job's row, so never before the history knows of it, and also of jobs that
no ComfyUI could tell the end of. What a stream lost, the rows make good at the next tick.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from pydantic_core import from_json, to_json
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from moyin.comfy_api.counts import OpenCounts
from moyin.comfy_api.files import FarmFiles
from moyin.comfy_api.protocol.response import ending
from moyin.domain.job import Job
from moyin.domain.prompt import channel_name
from moyin.errors import ServiceUnavailable
from moyin.render.comfyui.prompts import BoundedDict
from moyin.render.protocol.binary import plain
from moyin.store.blobs import BlobStore
from moyin.store.frames import Frame, FrameHub, FrameKind, FrameStore
from moyin.store.hub import Watch
from moyin.store.prompts import PromptStore
from moyin.store.sql import now

__all__ = ["FarmEvents", "Listener"]

_log = logging.getLogger(__name__)
# Also a sign of life: some clients give up after two minutes of silence.
_TICK_SECONDS = 3.0
_LOOK_BACK = 256
_REMEMBERED = 1_024
# A row may be written a little after the moment that stands in it.
_MARGIN = timedelta(seconds=10)
# A small picture is done by then, and its three changes of the queue are told as one.
_SETTLED_SECONDS = 0.05
# For so long after its end a prompt's history waits until its client has heard of it. Later than
# that the news is lost, and the next tick's business.
_ON_ITS_WAY = timedelta(seconds=0.5)
# Two connections to one client: what is said first on one may still come after the other's answer.
_OVERTAKING_SECONDS = 0.02
_PROGRESS = b'{"type":"progress",'
# What the stores raise when they are away. None of it is the client's fault, or the end of it.
_AWAY = (SQLAlchemyError, OSError, ServiceUnavailable)
# Of what runs, told to who connects in the middle.
_STATE = ("progress_state", "executing")
Send = Callable[[str | bytes], Awaitable[None]]


class FarmEvents:
    """What listeners are made of."""

    def __init__(
        self,
        *,
        prompts: PromptStore,
        files: FarmFiles,
        blobs: BlobStore,
        frames: FrameStore,
        hub: FrameHub,
        tick: float = _TICK_SECONDS,
    ) -> None:
        self.prompts = prompts
        self.counts = OpenCounts(prompts)
        self.files = files
        self.blobs = blobs
        self.frames = frames
        self.hub = hub
        self.tick = tick
        self._listening: dict[str, set[Listener]] = {}

    def listener(self, owner: str, client_id: str, send: Send) -> Listener:
        return Listener(self, owner, client_id, send)

    @contextlib.contextmanager
    def listening(self, channel: str, listener: Listener) -> Iterator[None]:
        """For as long as the listener runs."""
        listeners = self._listening.setdefault(channel, set())
        listeners.add(listener)
        try:
            yield
        finally:
            listeners.discard(listener)
            if not listeners:
                self._listening.pop(channel, None)

    async def heard(self, job: Job) -> None:
        """Return when the job's client, if it listens on this replica, has heard that it ended.

        Some clients ask about a prompt whenever the queue changes, and wait for ever when they find
        that it ended before they have heard that it began.
        """
        for listener in tuple(self._listening.get(job.channel or "", ())):
            await listener.heard(job)


class Listener:
    """Tells one client about its prompts, by ``send``, until cancelled or until that raises.

    Attributes:
        metadata: whether the client understands previews that say what they are of.
    """

    def __init__(self, events: FarmEvents, owner: str, client_id: str, send: Send) -> None:
        self._events = events
        self._owner = owner
        self._client_id = client_id
        self._channel = channel_name(owner, client_id)
        self._send = send
        # One after the other, whoever speaks.
        self._turn = asyncio.Lock()
        # Of which ends it has been told, or (False) is just being told.
        self._told_end: BoundedDict[tuple[str, int], bool] = BoundedDict(_REMEMBERED)
        self._one_told = asyncio.Condition()
        # Prompts of which the client has heard the last, unless somebody retries them.
        self._over: BoundedDict[str, None] = BoundedDict(_REMEMBERED)
        self._preview: bytes | None = None
        self._since = self._looked = now()
        # The queue has changed, and the client has not been told by how much.
        self._changed = asyncio.Event()
        self.metadata = False

    async def run(self) -> None:
        """
        Raises:
            SlowConsumer: the client does not keep up.
        """
        with self._events.listening(self._channel, self):
            await self._listen()

    async def heard(self, job: Job) -> None:
        """Return when the client has been told that the job ended, or that is not to be expected."""
        earliest = max(self._since, now() - _ON_ITS_WAY)
        if job.finished_at is None or job.finished_at < earliest:
            return
        if self._told_end.get(_key(job)):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ON_ITS_WAY.total_seconds()), self._one_told:
                await self._one_told.wait_for(lambda: self._told_end.get(_key(job), False))
            await asyncio.sleep(_OVERTAKING_SECONDS)

    async def _listen(self) -> None:
        newest = await self._newest()
        after = newest[-1].id if newest else None
        async with self._events.hub.subscribe(self._channel, after) as watch:
            await self.say("status", {"status": await self._queue(), "sid": self._client_id})
            await self._tell_state(newest)
            tasks = [
                asyncio.create_task(self._read(watch)),
                asyncio.create_task(self._tick()),
                asyncio.create_task(self._tell_queue()),
            ]
            try:
                # None ends by itself: each may find out that the client is gone.
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, watch: Watch[Frame]) -> None:
        while True:
            for frame in await watch.next():
                try:
                    await self._take(frame)
                except _AWAY as error:
                    # If it was about an end, the next tick tells that.
                    _log.warning("a client has to wait for the stores: %s", error)

    async def say(self, kind: str, data: Mapping[str, Any]) -> None:
        """Send one message."""
        async with self._turn:
            await self._say(kind, data)

    async def _say(self, kind: str, data: Mapping[str, Any]) -> None:
        await self._send(to_json({"type": kind, "data": data}).decode())

    async def _newest(self) -> list[Frame]:
        try:
            return await self._events.frames.newest(self._channel, _LOOK_BACK)
        except (RedisError, OSError) as error:
            _log.warning("a client's stream can't be read: %s", error)
            return []

    async def _tell_state(self, newest: list[Frame]) -> None:
        """What runs at the moment, for who was away."""
        for job in await self._events.prompts.running(self._channel):
            last = {}
            for frame in newest:
                if frame.prompt == job.id and frame.kind is FrameKind.TEXT:
                    last[from_json(frame.body)["type"]] = frame.body
            if "executing" not in last and "progress_state" in last:
                # A node that tells of much progress has pushed the news of its beginning out.
                last |= _executing(job.id, last["progress_state"])
            for kind in _STATE:
                if kind in last:
                    async with self._turn:
                        await self._send(last[kind].decode())

    async def _take(self, frame: Frame) -> None:
        if frame.kind is FrameKind.STATUS:
            await self._reopen(frame.prompt)
            self._changed.set()
        elif frame.kind is FrameKind.END:
            for job in await self._events.prompts.get(self._owner, [frame.prompt], hidden=True):
                await self._tell_end(job)
        elif frame.prompt in self._over:
            # A prompt ends when it is cancelled; its ComfyUI hears of that a moment later.
            return
        elif frame.kind is FrameKind.TEXT:
            await self._pass_on(frame)
        else:
            await self._show(frame)

    async def _reopen(self, prompt_id: str) -> None:
        """A job that has ended may be retried under the same id."""
        if prompt_id in self._over:
            found = await self._events.prompts.get(self._owner, [prompt_id], hidden=True)
            if any(not job.status.is_final for job in found):
                del self._over[prompt_id]

    async def _pass_on(self, frame: Frame) -> None:
        async with self._turn:
            await self._send(frame.body.decode())
            # Who reads the plain kind expects it after the progress that it belongs to, but the
            # worker, which sends us the other kind, puts it before.
            if self._preview is not None and frame.body.startswith(_PROGRESS):
                preview, self._preview = self._preview, None
                await self._send(preview)

    async def _show(self, frame: Frame) -> None:
        body = frame.body
        if frame.kind is FrameKind.BLOB:
            try:
                body += await self._events.blobs.get(frame.blob)
            except FileNotFoundError:
                _log.warning("a picture of prompt %s is gone", frame.prompt)
                return
        async with self._turn:
            if self.metadata or plain(body) == body:
                await self._send(body)
            else:
                self._preview = plain(body)

    async def _tell_end(self, job: Job) -> None:
        if not job.status.is_final or _key(job) in self._told_end:
            return
        self._told_end[_key(job)] = False
        self._over[job.id] = None
        try:
            record = await self._events.files.record(job)
        except BaseException:
            # Somebody else's turn to tell it.
            del self._told_end[_key(job)]
            raise
        await self.say(*ending(job, record))
        self._changed.clear()
        async with self._one_told:
            self._told_end[_key(job)] = True
            self._one_told.notify_all()
        with contextlib.suppress(*_AWAY):
            # The next tick says it too; what follows it is what most scripts wait for.
            await self.say("status", {"status": await self._queue()})
        await self.say("executing", {"node": None, "prompt_id": job.id})

    async def _tell_queue(self) -> None:
        """Beside the rest and a moment later: counting must not hold up what happens to a prompt."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_SETTLED_SECONDS)
            if not self._changed.is_set():
                # It was told with an end.
                continue
            self._changed.clear()
            try:
                count = await self._events.counts.now(self._owner)
            except _AWAY as error:
                _log.warning("a client has to wait for the stores: %s", error)
                continue
            async with self._turn:
                # While this turn was waited for an end may have been told, and a newer count.
                newest = self._events.counts.newest(self._owner, count)
                await self._say("status", {"status": _queue(newest)})

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._events.tick)
            try:
                lately = await self._events.counts.lately(self._owner, self._events.tick)
                await self.say("status", {"status": _queue(lately)})
                await self._tell_lost_ends()
            except _AWAY as error:
                _log.warning("a client has to wait for the stores: %s", error)

    async def _tell_lost_ends(self) -> None:
        """Of jobs whose end the stream should have told by now, in its place after all else."""
        looked = now() - _MARGIN
        overdue = now() - timedelta(seconds=self._events.tick)
        for job in await self._events.prompts.ended_since(self._channel, self._looked):
            if job.finished_at is not None and job.finished_at <= overdue:
                await self._tell_end(job)
                if not self._told_end.get(_key(job)):
                    # It is just being told, which may fail yet.
                    looked = min(looked, job.finished_at)
        # Not before all are told: what has ended while a store was away is looked for again.
        self._looked = looked

    async def _queue(self) -> dict[str, Any]:
        return _queue(await self._events.counts.now(self._owner))


def _key(job: Job) -> tuple[str, int]:
    return job.id, job.attempts


def _queue(remaining: int) -> dict[str, Any]:
    return {"exec_info": {"queue_remaining": remaining}}


def _executing(prompt_id: str, progress: bytes) -> dict[str, bytes]:
    """Which node is executed, by what is said of all nodes' progress; nothing between two nodes."""
    nodes = from_json(progress)["data"].get("nodes", {})
    running = [node for node, state in nodes.items() if state.get("state") == "running"]
    if not running:
        return {}
    node = running[-1]
    shown = nodes[node].get("display_node_id", node)
    data = {"node": node, "display_node": shown, "prompt_id": prompt_id}
    return {"executing": to_json({"type": "executing", "data": data})}
