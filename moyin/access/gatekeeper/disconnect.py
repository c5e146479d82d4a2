"""Cancels requests whose client has disconnected or sends its body too slowly.

ASGI reports a disconnect only to a task that awaits ``receive()``. Most requests end before their
client could disconnect, so the watcher starts such a task only for long-lived requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from moyin.access.gatekeeper.asgi import Message, Receive

# Seconds after which a request is watched, and seconds between checks.
_GRACE_SECONDS = 0.25
# Maximum pause (seconds) in sending a body, and minimum average rate of a body that takes longer.
_BODY_PAUSE_SECONDS = 20.0
_BODY_BYTES_PER_SECOND = 512.0
# Seconds after which a request ends if its app never reads the body; the server reports no
# disconnect meanwhile.
_UNREAD_SECONDS = 300.0


class DisconnectWatcher:
    """Cancels the task of a request when its client disconnects or sends its body too slowly.

    The app must call this object's `receive` instead of the server's. The watcher itself receives
    messages only after the body is complete, so that the app gets all of it.

    Args:
        on_long_lived: called once if the request lasts longer than 250 ms.

    Attributes:
        task: the task that runs the request, in which the watcher must be created.
        is_complete: True if the whole body was received.
        has_cancelled: True if the watcher has cancelled the task.
        was_too_slow: True if the watcher cancelled the task because the body was too slow.
    """

    def __init__(self, receive: Receive, on_long_lived: Callable[[], None] | None = None) -> None:
        self._receive = receive
        self._on_long_lived = on_long_lived
        self.is_complete = False
        self.task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_GRACE_SECONDS, self._check_request)
        # Only the time for which the app awaits the body counts, since the app may read it slowly.
        self._receive_started_at: float | None = None
        self._last_received = self._loop.time()
        self._waited_seconds = 0.0
        self._received_bytes = 0
        self.has_cancelled = False
        self.was_too_slow = False

    @property
    def is_receiving(self) -> bool:
        """True while the app awaits a part of the body."""
        return self._receive_started_at is not None

    async def receive(self) -> Message:
        """Return the next ASGI message of the request."""
        started_at = self._receive_started_at = self._loop.time()
        message = await self._receive()
        self._receive_started_at = None
        if not message.get("more_body", False):
            self.is_complete = True
        else:
            self._last_received = self._loop.time()
            self._waited_seconds += self._last_received - started_at
            self._received_bytes += len(message.get("body", b""))
        return message

    def close(self) -> None:
        """Stop watching; call this when the request has ended."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def uncancel(self) -> None:
        """Call `asyncio.Task.uncancel` on the task, so that it can send a response and end normally."""
        if self.task is not None:
            self.task.uncancel()

    def _check_request(self) -> None:
        if self._on_long_lived is not None:
            self._on_long_lived()
            self._on_long_lived = None
        if self.is_complete:
            self._watcher = self._loop.create_task(self._cancel_on_disconnect())
        elif self._is_too_slow():
            self.was_too_slow = True
            self._cancel_request()
        else:
            self._timer = self._loop.call_later(_GRACE_SECONDS, self._check_request)

    async def _cancel_on_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel_request()

    def _is_too_slow(self) -> bool:
        now = self._loop.time()
        if self._receive_started_at is None:
            return now - self._last_received > _UNREAD_SECONDS
        pause = now - self._receive_started_at
        allowed_seconds = _BODY_PAUSE_SECONDS + self._received_bytes / _BODY_BYTES_PER_SECOND
        return pause > _BODY_PAUSE_SECONDS or self._waited_seconds + pause > allowed_seconds

    def _cancel_request(self) -> None:
        if self.task is not None:
            self.has_cancelled = True
            self.task.cancel()
