"""One reader of many streams per process, fanning out to any number of watchers."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

from redis.exceptions import RedisError

from moyin.domain.job import JobEvent
from moyin.errors import InvalidRequest, Overloaded
from moyin.store.events import EVENTS, connect, from_entry

__all__ = ["Entry", "EventHub", "SlowConsumer", "StreamHub", "Watch"]

_log = logging.getLogger(__name__)
_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
_QUEUE = 256
_BLOCK_MS = 1_000
_RECONNECT_SECONDS = 0.5


class Entry(Protocol):
    """What a stream holds, as its readers know it; ``id`` is the stream's own."""

    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=Entry)


class SlowConsumer(Overloaded):
    """The watcher fell behind by more than its queue holds; it may resume by event id."""

    code = "slow_consumer"


class Watch(Generic[E]):
    """One client's place in a stream, with a bounded queue.

    There is room for what the stream held when it came, and as much again: that is bounded by
    itself, comes in one piece, and would come so again to a client that was cut for it.
    """

    def __init__(self, after: str) -> None:
        self.after = after
        self._waiting: deque[E] = deque()
        self._news = asyncio.Event()
        self._cut = False
        self._most: int | None = None

    async def next(self, seconds: float | None = None) -> list[E]:
        """All that has come since the last call; waits for it, but not longer than ``seconds``.

        Raises:
            SlowConsumer: after the last of what was there when the client was cut.
        """
        if not self._waiting and not self._cut:
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
        if self._cut and not self._waiting:
            raise SlowConsumer("too slow for these events; resume with Last-Event-ID")
        events = list(self._waiting)
        self._waiting.clear()
        return events

    def offer(self, events: Sequence[E]) -> bool:
        """Queue the events of one reading; False when the watcher is too slow and has been told."""
        position = _order(self.after)
        news = [event for event in events if _order(event.id) > position]
        if not news:
            return True
        if self._most is None:
            self._most = max(_QUEUE, 2 * len(news))
        elif len(self._waiting) >= self._most:
            self._cut = True
            self._news.set()
            return False
        self.after = news[-1].id
        self._waiting.extend(news)
        self._news.set()
        return True


class StreamHub(Generic[E]):
    """Reads the streams that somebody watches, with one connection and one blocking XREAD.

    Args:
        prefix: of the streams' names; the rest is a name without colons.
        read: makes an entry of its id and its fields.
    """

    def __init__(
        self, url: str, prefix: str, read: Callable[[bytes, Mapping[bytes, bytes]], E]
    ) -> None:
        self._prefix = prefix
        self._read = read
        self._control = connect(url)
        # XREAD blocks for longer than any other command may take.
        self._reading = connect(url, timeout=_BLOCK_MS / 1_000 + 5)
        self._watchers: dict[str, set[Watch[E]]] = {}
        self._positions: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._connection_id: int | None = None

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._reading.aclose()
        await self._control.aclose()

    @asynccontextmanager
    async def subscribe(self, name: str, after: str | None) -> AsyncIterator[Watch[E]]:
        """Entries of one stream after stream id ``after`` (None: from its beginning), as they come.

        In an outage of Valkey nothing comes; it goes on where it was.

        Raises:
            InvalidRequest: ``after`` is not an event id.
        """
        if after is not None and not _EVENT_ID.fullmatch(after):
            raise InvalidRequest(
                "Last-Event-ID must be the id of an event of this job", field="Last-Event-ID"
            )
        watcher: Watch[E] = Watch(after or "0-0")
        self._watchers.setdefault(name, set()).add(watcher)
        # Rewind the shared position: watchers that have seen these events skip them by id.
        self._positions[name] = min(
            self._positions.get(name, watcher.after), watcher.after, key=_order
        )
        try:
            await self._wake()
            yield watcher
        finally:
            self._remove(name, watcher)

    def _remove(self, name: str, watcher: Watch[E]) -> None:
        watchers = self._watchers.get(name, set())
        watchers.discard(watcher)
        if not watchers:
            self._watchers.pop(name, None)
            self._positions.pop(name, None)

    async def _wake(self) -> None:
        """Make the reader look at the new set of streams now."""
        self._changed.set()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_forever())
        elif self._connection_id is not None:
            try:
                await self._control.client_unblock(self._connection_id)
            except (RedisError, OSError) as error:
                # Without it the reader finds out within _BLOCK_MS.
                _log.debug("could not wake the event reader: %s", error)

    async def _read_forever(self) -> None:
        while True:
            if not self._positions:
                self._changed.clear()
                await self._changed.wait()
            try:
                await self._read_connected()
            except (RedisError, OSError) as error:
                _log.warning("event reader: %s; connecting again", error)
                self._connection_id = None
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _read_connected(self) -> None:
        async with self._reading.client() as connection:
            self._connection_id = await connection.client_id()
            while self._positions:
                streams: Any = {
                    self._prefix + name: position for name, position in self._positions.items()
                }
                answer: Any = await connection.xread(streams, block=_BLOCK_MS)
                for raw, entries in _pairs(answer):
                    stream = raw.decode()
                    name = stream.removeprefix(self._prefix)
                    self._deliver(name, streams[stream], entries)

    def _deliver(self, name: str, position: str, entries: Any) -> None:
        if self._positions.get(name) != position:
            # Somebody left or came who needs older events: the next read begins there.
            return
        events = [self._read(entry_id, fields) for entry_id, fields in entries]
        self._positions[name] = events[-1].id
        for watcher in list(self._watchers[name]):
            if not watcher.offer(events):
                self._watchers[name].discard(watcher)


class EventHub(StreamHub[JobEvent]):
    """Of the events of jobs, by the job's id."""

    def __init__(self, url: str) -> None:
        super().__init__(url, EVENTS, from_entry)


def _pairs(answer: Any) -> Any:
    """XREAD's answer is a list in RESP2 and a dict in RESP3."""
    if isinstance(answer, dict):
        return [(name, chunk) for name, chunks in answer.items() for chunk in chunks]
    return answer or []


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)
