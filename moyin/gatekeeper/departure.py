"""Noticing that the client has left, so that nobody works for it any longer.

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


class Departure:
    """Cancels the task of a request when its client leaves before the end.

    The app must take its messages from `receive`: the watcher only starts once the body is
    complete, so that it never takes a part of it.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._complete = False
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_GRACE_SECONDS, self._watch)
        self.noticed = False

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._complete = True
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
        else:
            self._timer = self._loop.call_later(_GRACE_SECONDS, self._watch)

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.noticed = True
            self._task.cancel()
