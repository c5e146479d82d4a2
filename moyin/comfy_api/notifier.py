"""Sends the messages about prompts to the ComfyUI clients that submitted them.

Workers publish the messages of a prompt in its client's Valkey stream, one frame for each. The
replica to which the client's WebSocket is connected forwards the frames. The end of a prompt is
read from the job's row instead. So the end is never sent before the history shows it, and is also
sent for jobs that never reached ComfyUI. A periodic query of the rows finds ends that were missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from pydantic_core import from_json, to_json
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from moyin.comfy_api.counts import OpenPromptCounter
from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.protocol.response import build_end_message, show_prompt_id
from moyin.domain.job import Job, JobStatus
from moyin.domain.prompt import build_channel_name
from moyin.errors import ServiceUnavailable
from moyin.render.protocol.binary import to_plain_preview
from moyin.store.blobs import BlobStore
from moyin.store.frames import Frame, FrameHub, FrameKind, FrameStore
from moyin.store.hub import Subscription
from moyin.store.prompts import PromptStore
from moyin.store.sql import now
from moyin.system.bounded import BoundedDict

_log = logging.getLogger(__name__)
# Seconds between status messages. Some clients disconnect after two minutes without a message.
_TICK_SECONDS = 3.0
_MAX_EARLIER_FRAMES = 256
_MAX_PROMPTS = 1_024
# A job's row may be written this many seconds after the finish time in the row.
_WRITE_DELAY = timedelta(seconds=10)
# Changes of the queue within so many seconds cause one message; a small picture causes three
# changes.
_SETTLE_SECONDS = 0.05
# How many seconds a history request waits at most until the client has received the prompt's end.
_NOTIFY_WAIT = timedelta(seconds=0.5)
# Wait after the end was sent, because an HTTP response may overtake the message on the WebSocket.
_OVERTAKE_SECONDS = 0.02
_PROGRESS = b'{"type":"progress",'
_START = b'{"type":"execution_start",'
# How many seconds a prompt's first message waits at most until the job's row shows that it runs.
_START_WAIT_SECONDS = 3.0
_START_POLL_SECONDS = 0.02
# Errors that the stores raise while they are unavailable. They do not end the connection.
_STORE_ERRORS = (SQLAlchemyError, OSError, ServiceUnavailable)
_STORE_WARNING = "messages to a ComfyUI client are delayed, as a store is unavailable: %s"
# A client that connects while a prompt runs receives the latest message of each of these types.
_STATE_TYPES = ("progress_state", "executing")
SendMessage = Callable[[str | bytes], Awaitable[None]]


@dataclass(kw_only=True, eq=False)
class PromptNotifiers:
    """Creates and registers the notifiers of one replica, and holds the stores that they share."""

    prompts: PromptStore
    files: ComfyFiles
    blobs: BlobStore
    frames: FrameStore
    hub: FrameHub
    tick: float = _TICK_SECONDS

    def __post_init__(self) -> None:
        self.counts = OpenPromptCounter(self.prompts)
        self._notifiers: dict[str, set[PromptNotifier]] = {}

    def new_notifier(self, owner: str, client_id: str, send: SendMessage) -> PromptNotifier:
        """Return a notifier for a client; the caller must call its method `run`."""
        return PromptNotifier(self, owner, client_id, send)

    @contextlib.contextmanager
    def register(self, channel: str, notifier: PromptNotifier) -> Iterator[None]:
        """Register a notifier until the block ends.

        Args:
            channel: the name of the client's stream.
        """
        notifiers = self._notifiers.setdefault(channel, set())
        notifiers.add(notifier)
        try:
            yield
        finally:
            notifiers.discard(notifier)
            if not notifiers:
                self._notifiers.pop(channel, None)

    async def wait_until_notified(self, job: Job) -> None:
        """Wait until every connected client of an ended job has received the message about its end.

        As messages arrive in order, these clients then have the message about its start, too. Some
        clients hang if the history shows the end of a prompt before they have that message.
        """
        for notifier in tuple(self._notifiers.get(job.channel or "", ())):
            await notifier.wait_until_notified(job)


class PromptNotifier:
    """Sends the messages about prompts to one connected client.

    Attributes:
        supports_preview_metadata: True if the client can read previews that name their node.
    """

    def __init__(
        self, notifiers: PromptNotifiers, owner: str, client_id: str, send: SendMessage
    ) -> None:
        self._notifiers = notifiers
        self._owner = owner
        self._client_id = client_id
        self._channel = build_channel_name(owner, client_id)
        self._send_raw = send
        self._send_lock = asyncio.Lock()
        # By job and attempt: True if the end has been sent, False while the end is being sent.
        self._ends_sent: BoundedDict[tuple[str, int], bool] = BoundedDict(_MAX_PROMPTS)
        self._end_sent = asyncio.Condition()
        # The ids of prompts that have ended and have not been retried.
        self._ended: BoundedDict[str, None] = BoundedDict(_MAX_PROMPTS)
        # By the job's id: the job if the client has chosen its prompt's id, else None.
        self._jobs_with_chosen_id: BoundedDict[str, Job | None] = BoundedDict(_MAX_PROMPTS)
        self._preview: bytes | None = None
        self._connected_at = self._ends_checked_until = now()
        # Set while there is a change of the queue that the client has not received.
        self._queue_changed = asyncio.Event()
        self.supports_preview_metadata = False

    async def run(self) -> None:
        """Send messages until cancelled or until ``send`` raises.

        Raises:
            SlowConsumer: the client reads its messages too slowly.
        """
        with self._notifiers.register(self._channel, self):
            await self._run_registered()

    async def wait_until_notified(self, job: Job) -> None:
        """Wait until the client has been sent the job's end, but no longer than half a second."""
        earliest_end = max(self._connected_at, now() - _NOTIFY_WAIT)
        if job.finished_at is None or job.finished_at < earliest_end:
            return
        if self._ends_sent.get(_get_attempt_key(job)):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTIFY_WAIT.total_seconds()), self._end_sent:
                await self._end_sent.wait_for(
                    lambda: self._ends_sent.get(_get_attempt_key(job), False)
                )
            await asyncio.sleep(_OVERTAKE_SECONDS)

    async def _run_registered(self) -> None:
        newest_frames = await self._read_newest_frames()
        after_id = newest_frames[-1].id if newest_frames else None
        async with self._notifiers.hub.subscribe(self._channel, after_id) as subscription:
            await self.send(
                "status", {"status": await self._read_queue_status(), "sid": self._client_id}
            )
            await self._send_running_prompts(newest_frames)
            tasks = [
                asyncio.create_task(self._forward_frames(subscription)),
                asyncio.create_task(self._send_periodically()),
                asyncio.create_task(self._send_queue_changes()),
            ]
            try:
                # A task ends only by an error, for example because the client has disconnected.
                done_tasks, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done_tasks:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward_frames(self, subscription: Subscription[Frame]) -> None:
        while True:
            for frame in await subscription.next():
                try:
                    await self._process_frame(frame, subscription)
                except _STORE_ERRORS as error:
                    # If the frame announced a prompt's end, `_send_missed_ends` sends the end
                    # later.
                    _log.warning(_STORE_WARNING, error)

    async def send(self, kind: str, data: Mapping[str, Any]) -> None:
        """Send a message of the type ``kind``."""
        async with self._send_lock:
            await self._send_unlocked(kind, data)

    async def _send_unlocked(self, kind: str, data: Mapping[str, Any]) -> None:
        await self._send_raw(to_json({"type": kind, "data": data}).decode())

    async def _read_newest_frames(self) -> list[Frame]:
        try:
            return await self._notifiers.frames.list_newest(self._channel, _MAX_EARLIER_FRAMES)
        except (RedisError, OSError) as error:
            _log.warning(
                "cannot read the earlier messages of a ComfyUI client from Valkey: %s",
                error,
            )
            return []

    async def _send_running_prompts(self, newest_frames: list[Frame]) -> None:
        """Send the state of the running prompts to the client, which has just connected.

        Args:
            newest_frames: the latest frames in the client's stream, from which the state is taken.
        """
        for job in await self._notifiers.prompts.list_running(self._channel):
            latest_messages = {}
            for frame in newest_frames:
                if frame.prompt == job.id and frame.kind is FrameKind.TEXT:
                    latest_messages[from_json(frame.body)["type"]] = frame.body
            if "executing" not in latest_messages and "progress_state" in latest_messages:
                # No frame that was read tells which node is running, so derive it from the
                # progress.
                latest_messages |= _derive_executing(job.id, latest_messages["progress_state"])
            for kind in _STATE_TYPES:
                if kind in latest_messages:
                    message = show_prompt_id(latest_messages[kind], job)
                    async with self._send_lock:
                        await self._send_raw(message.decode())

    async def _process_frame(self, frame: Frame, subscription: Subscription[Frame]) -> None:
        if frame.kind is FrameKind.STATUS:
            await self._resume_if_retried(frame.prompt)
            self._queue_changed.set()
        elif frame.kind is FrameKind.END:
            for job in await self._notifiers.prompts.get(
                self._owner, [frame.prompt], with_hidden=True
            ):
                await self._send_end(job)
        elif frame.prompt in self._ended:
            # ComfyUI may send messages for a moment after a prompt has been cancelled.
            return
        elif frame.kind is FrameKind.TEXT:
            if frame.body.startswith(_START):
                await self._wait_until_running(frame.prompt, subscription)
            await self._send_text(await self._show_chosen_id(frame))
        else:
            await self._send_preview(await self._show_chosen_id(frame))

    async def _show_chosen_id(self, frame: Frame) -> Frame:
        """Return the frame with the id that the client has chosen for its prompt, if any."""
        if frame.prompt not in self._jobs_with_chosen_id:
            try:
                jobs = await self._notifiers.prompts.get(
                    self._owner, [frame.prompt], with_hidden=True
                )
            except _STORE_ERRORS:
                # Messages do not wait for the database, since few clients choose ids.
                return frame
            chosen = [job for job in jobs if job.chosen_id is not None]
            self._jobs_with_chosen_id[frame.prompt] = chosen[0] if chosen else None
        job = self._jobs_with_chosen_id[frame.prompt]
        return frame if job is None else replace(frame, body=show_prompt_id(frame.body, job))

    async def _wait_until_running(self, prompt_id: str, subscription: Subscription[Frame]) -> None:
        """Wait until the queue shows the prompt as running, before its first message is sent.

        A frame may arrive before the pool's worker has written the status to the job's row. The
        wait ends after three seconds, or earlier if many frames are waiting.
        """
        with contextlib.suppress(TimeoutError, *_STORE_ERRORS):
            async with asyncio.timeout(_START_WAIT_SECONDS):
                while not subscription.is_half_full:
                    jobs = await self._notifiers.prompts.get(
                        self._owner, [prompt_id], with_hidden=True
                    )
                    if all(job.status is not JobStatus.QUEUED for job in jobs):
                        return
                    await asyncio.sleep(_START_POLL_SECONDS)

    async def _resume_if_retried(self, prompt_id: str) -> None:
        """Resume forwarding the messages of an ended prompt if its job has been retried."""
        if prompt_id in self._ended:
            jobs = await self._notifiers.prompts.get(self._owner, [prompt_id], with_hidden=True)
            if any(not job.status.is_final for job in jobs):
                del self._ended[prompt_id]

    async def _send_text(self, frame: Frame) -> None:
        async with self._send_lock:
            await self._send_raw(frame.body.decode())
            # Clients expect a plain preview after the progress message of the step. Workers send
            # previews with metadata before that message.
            if self._preview is not None and frame.body.startswith(_PROGRESS):
                preview, self._preview = self._preview, None
                await self._send_raw(preview)

    async def _send_preview(self, frame: Frame) -> None:
        body = frame.body
        if frame.kind is FrameKind.BLOB:
            try:
                body += await self._notifiers.blobs.get(frame.blob)
            except FileNotFoundError:
                _log.warning(
                    "a preview of prompt %s is not sent, because its blob has been deleted",
                    frame.prompt,
                )
                return
        async with self._send_lock:
            if self.supports_preview_metadata or to_plain_preview(body) == body:
                await self._send_raw(body)
            else:
                self._preview = to_plain_preview(body)

    async def _send_end(self, job: Job) -> None:
        if not job.status.is_final or _get_attempt_key(job) in self._ends_sent:
            return
        self._ends_sent[_get_attempt_key(job)] = False
        self._ended[job.id] = None
        try:
            record = await self._notifiers.files.read_record(job)
        except BaseException:
            # `_send_missed_ends` tries again later.
            del self._ends_sent[_get_attempt_key(job)]
            raise
        kind, data = build_end_message(job, record)
        message = show_prompt_id(to_json({"type": kind, "data": data}), job)
        async with self._send_lock:
            await self._send_raw(message.decode())
        self._queue_changed.clear()
        async with self._end_sent:
            self._ends_sent[_get_attempt_key(job)] = True
            self._end_sent.notify_all()
        with contextlib.suppress(*_STORE_ERRORS):
            # An error here is ignored, because `_send_periodically` repeats the status. An error
            # below is not.
            await self.send("status", {"status": await self._read_queue_status()})
        await self.send("executing", {"node": None, "prompt_id": job.prompt_id})

    async def _send_queue_changes(self) -> None:
        """Send the length of the queue after changes, without delaying other messages."""
        while True:
            await self._queue_changed.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            if not self._queue_changed.is_set():
                # Meanwhile, `_send_end` has sent the length of the queue.
                continue
            self._queue_changed.clear()
            try:
                count = await self._notifiers.counts.count_now(self._owner)
            except _STORE_ERRORS as error:
                _log.warning(_STORE_WARNING, error)
                continue
            async with self._send_lock:
                # `_send_end` may have sent a newer count while this task waited for the lock.
                latest_count = self._notifiers.counts.get_latest_count(self._owner, count)
                await self._send_unlocked("status", {"status": _build_status(latest_count)})

    async def _send_periodically(self) -> None:
        """Send the queue's length and the missed ends of prompts at regular intervals."""
        while True:
            await asyncio.sleep(self._notifiers.tick)
            try:
                count = await self._notifiers.counts.count_recent(self._owner, self._notifiers.tick)
                await self.send("status", {"status": _build_status(count)})
                await self._send_missed_ends()
            except _STORE_ERRORS as error:
                _log.warning(_STORE_WARNING, error)

    async def _send_missed_ends(self) -> None:
        """Send the ends of jobs that ended at least one polling interval ago and were not sent."""
        # Skip the ends before the client connected: an earlier connection has sent them.
        checked_until = max(self._connected_at, now() - _WRITE_DELAY)
        overdue_before = now() - timedelta(seconds=self._notifiers.tick)
        for job in await self._notifiers.prompts.list_ended_since(
            self._channel, self._ends_checked_until
        ):
            if job.finished_at is not None and job.finished_at <= overdue_before:
                await self._send_end(job)
                if not self._ends_sent.get(_get_attempt_key(job)):
                    # Another task is sending the end. It may fail, so check the job again.
                    checked_until = min(checked_until, job.finished_at)
        # Updated last, so that the same jobs are checked again if a store has failed.
        self._ends_checked_until = checked_until

    async def _read_queue_status(self) -> dict[str, Any]:
        return _build_status(await self._notifiers.counts.count_now(self._owner))


def _get_attempt_key(job: Job) -> tuple[str, int]:
    return job.id, job.attempts


def _build_status(open_count: int) -> dict[str, Any]:
    return {"exec_info": {"queue_remaining": open_count}}


def _derive_executing(prompt_id: str, progress_message: bytes) -> dict[str, bytes]:
    """Derive the message ``executing`` of a running prompt from its message ``progress_state``.

    Returns the message by its type, or an empty dictionary if no node is running.

    Args:
        progress_message: the JSON of the message ``progress_state``.
    """
    nodes = from_json(progress_message)["data"].get("nodes", {})
    running_nodes = [node for node, state in nodes.items() if state.get("state") == "running"]
    if not running_nodes:
        return {}
    node = running_nodes[-1]
    display_node = nodes[node].get("display_node_id", node)
    data = {"node": node, "display_node": display_node, "prompt_id": prompt_id}
    return {"executing": to_json({"type": "executing", "data": data})}
