"""Noticing that the client has left, or does not send what it announced, so that nobody works or
waits for it any longer.

A server tells of it only to who waits in ``receive``. Waiting takes a task, and most requests are
over before anybody could have left, so the task is made only for those that last.
"""

from __future__ import annotations

import asyncio

from moyin.gatekeeper.asgi import Message, Receive

__all__ = ["Departure"]

# How long a request may last before somebody watches; a part of the second within which an
# upstream request is cancelled after its client left.
_GRACE_SECONDS = 0.25
# A body may pause for so long, and take so long altogether.
_BODY_PAUSE_SECONDS = 30.0
_BODY_SECONDS = 900.0


class Departure:
    """Cancels the task of a request when its client leaves before the end, or is too slow.

    The app must take its messages from `receive`: the watcher only starts once the body is
    complete, so that it never takes a part of it.

    Attributes:
        noticed: that the cancellation came from here.
        too_slow: and that it was for the body.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._complete = False
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_GRACE_SECONDS, self._watch)
        self._began = self._heard = self._loop.time()
        self.noticed = False
        self.too_slow = False

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._complete = True
        else:
            self._heard = self._loop.time()
        return message

    def close(self) -> None:
        """The request is over."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def absorb(self) -> None:
        """Take back the cancellation that came from here: the request ends normally now."""
        if self._task is not None:
            self._task.uncancel()

    def _watch(self) -> None:
        if self._complete:
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
        return now - self._heard > _BODY_PAUSE_SECONDS or now - self._began > _BODY_SECONDS

    def _cancel(self) -> None:
        if self._task is not None:
            self.noticed = True
            self._task.cancel()
