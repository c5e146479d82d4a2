"""Sends a ComfyUI client the messages about its prompts; the WebSocket itself is not in here.

Workers publish a prompt's messages on its client's stream, and any replica with the client's
WebSocket forwards them. The end of a prompt is read from the job's row. So it is never sent before
the history shows it, and it is also sent for jobs that never reached a ComfyUI. If the stream loses
an end, the next tick finds it in the rows.
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

from moyin.comfy_api.counts import OpenPromptCounts
from moyin.comfy_api.files import FarmFiles
from moyin.comfy_api.protocol.response import end_message
from moyin.domain.job import Job
from moyin.domain.prompt import build_channel_name
from moyin.errors import ServiceUnavailable
from moyin.render.protocol.binary import to_plain_preview
from moyin.store.blobs import BlobStore
from moyin.store.frames import Frame, FrameHub, FrameKind, FrameStore
from moyin.store.hub import Subscription
from moyin.store.prompts import PromptStore
from moyin.store.sql import now
from moyin.system.bounded import BoundedDict

__all__ = ["FarmEvents", "PromptNotifier"]

_log = logging.getLogger(__name__)
# Each tick sends a status. Some clients give up after two minutes without a message.
_TICK_SECONDS = 3.0
_LOOK_BACK_FRAMES = 256
_MAX_PROMPTS = 1_024
# A row may be written a little later than the finish time that it contains.
_WRITE_DELAY = timedelta(seconds=10)
# Changes of the queue within this time are merged: a small picture causes three.
_SETTLE_SECONDS = 0.05
# A history request waits at most this long for the end's message. A later one comes with a tick.
_NOTIFY_WAIT = timedelta(seconds=0.5)
# The client has two connections: the WebSocket's message may arrive after the HTTP response.
_OVERTAKE_SECONDS = 0.02
_PROGRESS = b'{"type":"progress",'
# Raised by the stores while they are unavailable; the connection survives these.
_STORE_ERRORS = (SQLAlchemyError, OSError, ServiceUnavailable)
_STORE_WARNING = "messages to a client are delayed because a store is unavailable: %s"
# Message types that describe the running prompt; a client that connects meanwhile gets the latest.
_STATE_TYPES = ("progress_state", "executing")
Send = Callable[[str | bytes], Awaitable[None]]


class FarmEvents:
    """Creates the notifiers of one replica and holds what they share."""

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
        self.counts = OpenPromptCounts(prompts)
        self.files = files
        self.blobs = blobs
        self.frames = frames
        self.hub = hub
        self.tick = tick
        self._notifiers: dict[str, set[PromptNotifier]] = {}

    def notifier(self, owner: str, client_id: str, send: Send) -> PromptNotifier:
        """Return a notifier that is not running yet."""
        return PromptNotifier(self, owner, client_id, send)

    @contextlib.contextmanager
    def registered(self, channel: str, notifier: PromptNotifier) -> Iterator[None]:
        """Register a running notifier while the context is open."""
        notifiers = self._notifiers.setdefault(channel, set())
        notifiers.add(notifier)
        try:
            yield
        finally:
            notifiers.discard(notifier)
            if not notifiers:
                self._notifiers.pop(channel, None)

    async def wait_until_notified(self, job: Job) -> None:
        """Wait until the clients of an ended job that are connected here have been notified.

        Some clients query a prompt whenever the queue changes. They hang if the history shows its
        end before they have received the message that it started.
        """
        for notifier in tuple(self._notifiers.get(job.channel or "", ())):
            await notifier.wait_until_notified(job)


class PromptNotifier:
    """Sends one client the messages about its prompts, until cancelled or until ``send`` raises.

    Attributes:
        metadata: True if the client understands previews with metadata about their node.
    """

    def __init__(self, events: FarmEvents, owner: str, client_id: str, send: Send) -> None:
        self._events = events
        self._owner = owner
        self._client_id = client_id
        self._channel = build_channel_name(owner, client_id)
        self._send_raw = send
        # Messages are sent one at a time.
        self._send_lock = asyncio.Lock()
        # By job and attempt: True if its end has been sent, False while it is being sent.
        self._ends_sent: BoundedDict[tuple[str, int], bool] = BoundedDict(_MAX_PROMPTS)
        self._end_sent = asyncio.Condition()
        # Ended prompts; a retry removes them.
        self._ended: BoundedDict[str, None] = BoundedDict(_MAX_PROMPTS)
        self._preview: bytes | None = None
        self._connected_at = self._ends_checked_until = now()
        # Set while a change of the queue has not been sent.
        self._queue_changed = asyncio.Event()
        self.metadata = False

    async def run(self) -> None:
        """Send messages for as long as the client is connected.

        Raises:
            SlowConsumer: the client does not keep up.
        """
        with self._events.registered(self._channel, self):
            await self._run()

    async def wait_until_notified(self, job: Job) -> None:
        """Wait until the job's end has been sent, or until that is no longer to be expected."""
        earliest = max(self._connected_at, now() - _NOTIFY_WAIT)
        if job.finished_at is None or job.finished_at < earliest:
            return
        if self._ends_sent.get(_key(job)):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTIFY_WAIT.total_seconds()), self._end_sent:
                await self._end_sent.wait_for(lambda: self._ends_sent.get(_key(job), False))
            await asyncio.sleep(_OVERTAKE_SECONDS)

    async def _run(self) -> None:
        newest = await self._newest_frames()
        after = newest[-1].id if newest else None
        async with self._events.hub.subscribe(self._channel, after) as watch:
            await self.send(
                "status", {"status": await self._queue_status(), "sid": self._client_id}
            )
            await self._send_running(newest)
            tasks = [
                asyncio.create_task(self._forward_frames(watch)),
                asyncio.create_task(self._tick()),
                asyncio.create_task(self._send_queue_changes()),
            ]
            try:
                # Each task runs until it fails, for example because the client disconnected.
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward_frames(self, watch: Subscription[Frame]) -> None:
        while True:
            for frame in await watch.next():
                try:
                    await self._handle(frame)
                except _STORE_ERRORS as error:
                    # If the frame announced an end, the next tick sends that end.
                    _log.warning(_STORE_WARNING, error)

    async def send(self, kind: str, data: Mapping[str, Any]) -> None:
        """Send one message."""
        async with self._send_lock:
            await self._send_unlocked(kind, data)

    async def _send_unlocked(self, kind: str, data: Mapping[str, Any]) -> None:
        await self._send_raw(to_json({"type": kind, "data": data}).decode())

    async def _newest_frames(self) -> list[Frame]:
        try:
            return await self._events.frames.list_newest(self._channel, _LOOK_BACK_FRAMES)
        except (RedisError, OSError) as error:
            _log.warning("cannot read the event stream of a client: %s", error)
            return []

    async def _send_running(self, newest: list[Frame]) -> None:
        """Send the state of the running prompts to a client that has just connected."""
        for job in await self._events.prompts.list_running(self._channel):
            latest = {}
            for frame in newest:
                if frame.prompt == job.id and frame.kind is FrameKind.TEXT:
                    latest[from_json(frame.body)["type"]] = frame.body
            if "executing" not in latest and "progress_state" in latest:
                # Many progress messages have displaced the node's start from the look-back.
                latest |= _executing_from_progress(job.id, latest["progress_state"])
            for kind in _STATE_TYPES:
                if kind in latest:
                    async with self._send_lock:
                        await self._send_raw(latest[kind].decode())

    async def _handle(self, frame: Frame) -> None:
        if frame.kind is FrameKind.STATUS:
            await self._reopen(frame.prompt)
            self._queue_changed.set()
        elif frame.kind is FrameKind.END:
            for job in await self._events.prompts.get(self._owner, [frame.prompt], hidden=True):
                await self._send_end(job)
        elif frame.prompt in self._ended:
            # A cancelled prompt ends at once, but its ComfyUI runs on for a moment.
            return
        elif frame.kind is FrameKind.TEXT:
            await self._send_text(frame)
        else:
            await self._send_preview(frame)

    async def _reopen(self, prompt_id: str) -> None:
        """Forward messages again if an ended job has been retried under the same id."""
        if prompt_id in self._ended:
            jobs = await self._events.prompts.get(self._owner, [prompt_id], hidden=True)
            if any(not job.status.is_final for job in jobs):
                del self._ended[prompt_id]

    async def _send_text(self, frame: Frame) -> None:
        async with self._send_lock:
            await self._send_raw(frame.body.decode())
            # Clients expect a plain preview after its progress message. Workers send previews with
            # metadata, which come before it.
            if self._preview is not None and frame.body.startswith(_PROGRESS):
                preview, self._preview = self._preview, None
                await self._send_raw(preview)

    async def _send_preview(self, frame: Frame) -> None:
        body = frame.body
        if frame.kind is FrameKind.BLOB:
            try:
                body += await self._events.blobs.get(frame.blob)
            except FileNotFoundError:
                _log.warning("the picture of prompt %s is no longer stored", frame.prompt)
                return
        async with self._send_lock:
            if self.metadata or to_plain_preview(body) == body:
                await self._send_raw(body)
            else:
                self._preview = to_plain_preview(body)

    async def _send_end(self, job: Job) -> None:
        if not job.status.is_final or _key(job) in self._ends_sent:
            return
        self._ends_sent[_key(job)] = False
        self._ended[job.id] = None
        try:
            record = await self._events.files.read_record(job)
        except BaseException:
            # Leave it to the next tick.
            del self._ends_sent[_key(job)]
            raise
        await self.send(*end_message(job, record))
        self._queue_changed.clear()
        async with self._end_sent:
            self._ends_sent[_key(job)] = True
            self._end_sent.notify_all()
        with contextlib.suppress(*_STORE_ERRORS):
            # Optional, as the next tick sends it too. Most scripts wait for the message after it.
            await self.send("status", {"status": await self._queue_status()})
        await self.send("executing", {"node": None, "prompt_id": job.id})

    async def _send_queue_changes(self) -> None:
        """Send the queue's length after changes, in its own task: counting must not delay others."""
        while True:
            await self._queue_changed.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            if not self._queue_changed.is_set():
                # The end of a prompt has sent it.
                continue
            self._queue_changed.clear()
            try:
                count = await self._events.counts.count_now(self._owner)
            except _STORE_ERRORS as error:
                _log.warning(_STORE_WARNING, error)
                continue
            async with self._send_lock:
                # While this task waited for the lock, an end may have sent a newer count.
                latest = self._events.counts.latest(self._owner, count)
                await self._send_unlocked("status", {"status": _status(latest)})

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._events.tick)
            try:
                count = await self._events.counts.count_recent(self._owner, self._events.tick)
                await self.send("status", {"status": _status(count)})
                await self._send_missed_ends()
            except _STORE_ERRORS as error:
                _log.warning(_STORE_WARNING, error)

    async def _send_missed_ends(self) -> None:
        """Send the ends of jobs that the stream should have announced at least one tick ago."""
        checked_until = now() - _WRITE_DELAY
        overdue = now() - timedelta(seconds=self._events.tick)
        for job in await self._events.prompts.list_ended_since(
            self._channel, self._ends_checked_until
        ):
            if job.finished_at is not None and job.finished_at <= overdue:
                await self._send_end(job)
                if not self._ends_sent.get(_key(job)):
                    # Another task is sending it and may still fail.
                    checked_until = min(checked_until, job.finished_at)
        # Only now: if a store fails in between, the next tick checks the same jobs again.
        self._ends_checked_until = checked_until

    async def _queue_status(self) -> dict[str, Any]:
        return _status(await self._events.counts.count_now(self._owner))


def _key(job: Job) -> tuple[str, int]:
    return job.id, job.attempts


def _status(remaining: int) -> dict[str, Any]:
    return {"exec_info": {"queue_remaining": remaining}}


def _executing_from_progress(prompt_id: str, progress: bytes) -> dict[str, bytes]:
    """Derive the ``executing`` message from the progress of all nodes; empty between two nodes."""
    nodes = from_json(progress)["data"].get("nodes", {})
    running = [node for node, state in nodes.items() if state.get("state") == "running"]
    if not running:
        return {}
    node = running[-1]
    display_node = nodes[node].get("display_node_id", node)
    data = {"node": node, "display_node": display_node, "prompt_id": prompt_id}
    return {"executing": to_json({"type": "executing", "data": data})}
