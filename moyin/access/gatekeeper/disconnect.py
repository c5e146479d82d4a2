"""Noticing that the client has left, or does not send what it announced, so that nobody works or
waits for it any longer.

A server tells of it only to who waits in ``receive``. Waiting takes a task, and most requests are
over before anybody could have left, so the task is made only for those that last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from moyin.access.gatekeeper.asgi import Message, Receive

__all__ = ["DisconnectWatcher"]

# How long a request may last before somebody watches; a part of the second within which an
# upstream request is cancelled after its client left.
_GRACE_SECONDS = 0.25
# A body may pause for so long; a client that sends it in crumbs must keep up this pace after that.
_BODY_PAUSE_SECONDS = 20.0
_BODY_BYTES_PER_SECOND = 512.0
# Nobody can see a client leave while a part of its body is left untaken.
_UNTAKEN_SECONDS = 300.0


class DisconnectWatcher:
    """Cancels the task of a request when its client leaves before the end, or is too slow.

    The app must take its messages from `receive`: the watcher only starts once the body is
    complete, so that it never takes a part of it.

    Args:
        on_lasting: called once when the request has lasted longer than most do.

    Attributes:
        task: of the request.
        complete: the whole body was received.
        noticed: that the cancellation came from here.
        too_slow: and that it was for the body.
    """

    def __init__(self, receive: Receive, on_lasting: Callable[[], None] | None = None) -> None:
        self._receive = receive
        self._on_lasting = on_lasting
        self.complete = False
        self.task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_GRACE_SECONDS, self._watch)
        # Only what the app waits for is the client's: a service may be slow to take a body.
        self._asked: float | None = None
        self._heard = self._loop.time()
        self._waited = 0.0
        self._came = 0
        self.noticed = False
        self.too_slow = False

    @property
    def is_receiving(self) -> bool:
        """Whether the app waits for a part of the body right now."""
        return self._asked is not None

    async def receive(self) -> Message:
        asked = self._asked = self._loop.time()
        message = await self._receive()
        self._asked = None
        if not message.get("more_body", False):
            self.complete = True
        else:
            self._heard = self._loop.time()
            self._waited += self._heard - asked
            self._came += len(message.get("body", b""))
        return message

    def close(self) -> None:
        """The request is over."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def absorb(self) -> None:
        """Take back the cancellation that came from here: the request ends normally now."""
        if self.task is not None:
            self.task.uncancel()

    def _watch(self) -> None:
        if self._on_lasting is not None:
            self._on_lasting()
            self._on_lasting = None
        if self.complete:
            self._watcher = self._loop.create_task(self._wait())
        elif self._is_too_slow():
            self.too_slow = True
            self._cancel()
        else:
            self._timer = self._loop.call_later(_GRACE_SECONDS, self._watch)

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel()

    def _is_too_slow(self) -> bool:
        now = self._loop.time()
        if self._asked is None:
            return now - self._heard > _UNTAKEN_SECONDS
        pause = now - self._asked
        fair = _BODY_PAUSE_SECONDS + self._came / _BODY_BYTES_PER_SECOND
        return pause > _BODY_PAUSE_SECONDS or self._waited + pause > fair

    def _cancel(self) -> None:
        if self.task is not None:
            self.noticed = True
            self.task.cancel()
