"""Reads many streams with one connection per process and fans them out to watchers."""

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
from moyin.store.events import EVENT_PREFIX, event_from_entry
from moyin.store.valkey import connect

__all__ = ["Entry", "EventHub", "SlowConsumer", "StreamHub", "Watch"]

_log = logging.getLogger(__name__)
_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
_QUEUE = 256
_BLOCK_MS = 1_000
_RECONNECT_SECONDS = 0.5


class Entry(Protocol):
    """Describes an entry of a stream; ``id`` is its stream id."""

    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=Entry)


class SlowConsumer(Overloaded):
    """Signals that the watcher's queue is full; it may resume by event id."""

    code = "slow_consumer"


class Watch(Generic[E]):
    """Queues the entries of one stream for one client.

    The queue holds twice what the stream held at first. That is bounded by the stream's length, is
    delivered at once, and would be delivered again to a client disconnected for it.
    """

    def __init__(self, after: str) -> None:
        self.after = after
        self._queue: deque[E] = deque()
        self._has_entries = asyncio.Event()
        self._is_closed = False
        self._capacity: int | None = None

    async def next(self, seconds: float | None = None) -> list[E]:
        """Return all entries since the last call; wait for one, at most ``seconds``.

        Raises:
            SlowConsumer: the queue was full; raised once its entries were returned.
        """
        if not self._queue and not self._is_closed:
            self._has_entries.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._has_entries.wait()
        if self._is_closed and not self._queue:
            raise SlowConsumer("the client reads events too slowly; resume with Last-Event-ID")
        events = list(self._queue)
        self._queue.clear()
        return events

    def offer(self, events: Sequence[E]) -> bool:
        """Queue events; return False and close the queue if the watcher is too slow."""
        position = _order(self.after)
        unseen = [event for event in events if _order(event.id) > position]
        if not unseen:
            return True
        if self._capacity is None:
            self._capacity = max(_QUEUE, 2 * len(unseen))
        elif len(self._queue) >= self._capacity:
            self._is_closed = True
            self._has_entries.set()
            return False
        self.after = unseen[-1].id
        self._queue.extend(unseen)
        self._has_entries.set()
        return True


class StreamHub(Generic[E]):
    """Reads all watched streams with one connection and one blocking XREAD.

    Args:
        prefix: the prefix of the streams' keys; the rest is a name without colons.
        read: returns the entry of a stream id and its fields.
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
        """Watch one stream after the stream id ``after`` (None: from its beginning).

        After an outage of Valkey the watch continues where it was.

        Raises:
            InvalidRequest: ``after`` is not an event id.
        """
        if after is not None and not _EVENT_ID.fullmatch(after):
            raise InvalidRequest(
                "Last-Event-ID must be the id of an event of this job", field="Last-Event-ID"
            )
        watcher: Watch[E] = Watch(after or "0-0")
        self._watchers.setdefault(name, set()).add(watcher)
        # Rewinds the shared position. Watchers that have seen these events skip them by id.
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
        """Make the reader use the new set of streams now."""
        self._changed.set()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_forever())
        elif self._connection_id is not None:
            try:
                await self._control.client_unblock(self._connection_id)
            except (RedisError, OSError) as error:
                # The reader uses the new set within _BLOCK_MS anyway.
                _log.debug("could not wake the event reader: %s", error)

    async def _read_forever(self) -> None:
        while True:
            if not self._positions:
                self._changed.clear()
                await self._changed.wait()
            try:
                await self._read_connected()
            except (RedisError, OSError) as error:
                _log.warning("the event reader lost Valkey and reconnects: %s", error)
                self._connection_id = None
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _read_connected(self) -> None:
        async with self._reading.client() as connection:
            self._connection_id = await connection.client_id()
            while self._positions:
                streams: Any = {
                    self._prefix + name: position for name, position in self._positions.items()
                }
                response: Any = await connection.xread(streams, block=_BLOCK_MS)
                for raw, entries in _pairs(response):
                    stream = raw.decode()
                    name = stream.removeprefix(self._prefix)
                    self._deliver(name, streams[stream], entries)

    def _deliver(self, name: str, position: str, entries: Any) -> None:
        if self._positions.get(name) != position:
            # A watcher came or left meanwhile: the next read begins at the new position.
            return
        events = [self._read(entry_id, fields) for entry_id, fields in entries]
        self._positions[name] = events[-1].id
        for watcher in list(self._watchers[name]):
            if not watcher.offer(events):
                self._watchers[name].discard(watcher)


class EventHub(StreamHub[JobEvent]):
    """Fans out the events of jobs, by job id."""

    def __init__(self, url: str) -> None:
        super().__init__(url, EVENT_PREFIX, event_from_entry)


def _pairs(response: Any) -> Any:
    """Return name and entries of each stream: XREAD returns a list in RESP2, a dict in RESP3."""
    if isinstance(response, dict):
        return [(name, chunk) for name, chunks in response.items() for chunk in chunks]
    return response or []


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)
