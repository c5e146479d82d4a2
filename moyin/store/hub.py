"""Reads many Valkey streams with one connection per process, and delivers entries to subscribers."""

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
from moyin.store.events import EVENT_PREFIX, parse_event
from moyin.store.valkey import connect

_log = logging.getLogger(__name__)
_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
_QUEUE = 256
_BLOCK_MS = 1_000
_RECONNECT_SECONDS = 0.5


class Entry(Protocol):
    """An entry of a Valkey stream, of which this module needs only the stream id."""

    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=Entry)


class SlowConsumer(Overloaded):
    """Signals that a subscriber reads too slowly; it may subscribe again from its last event."""

    code = "slow_consumer"


class Subscription(Generic[E]):
    """Queues the entries of one stream for one subscriber.

    All entries that the stream already has arrive together, so the queue has room for twice their
    number. A smaller queue would overflow at the start, and again whenever the client resubscribes.

    Attributes:
        after: the stream id of the last queued entry.
    """

    def __init__(self, after: str) -> None:
        self.after = after
        self._queue: deque[E] = deque()
        self._has_entries = asyncio.Event()
        self._is_closed = False
        self._capacity: int | None = None

    @property
    def is_half_full(self) -> bool:
        """True if the subscriber should read soon, because a full queue ends the subscription."""
        return self._capacity is not None and 2 * len(self._queue) >= self._capacity

    async def next(self, timeout_seconds: float | None = None) -> list[E]:
        """Return all queued entries; if there are none, wait for one for at most ``timeout_seconds``.

        If the queue was full, raise `SlowConsumer` after all its entries were returned.
        """
        if not self._queue and not self._is_closed:
            self._has_entries.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._has_entries.wait()
        if self._is_closed and not self._queue:
            raise SlowConsumer(
                "the client reads events too slowly; connect again with Last-Event-ID to resume"
            )
        entries = list(self._queue)
        self._queue.clear()
        return entries

    def offer(self, entries: Sequence[E]) -> bool:
        """Queue new entries; return False and close the queue if it is full."""
        position = _parse_stream_id(self.after)
        unseen_entries = [event for event in entries if _parse_stream_id(event.id) > position]
        if not unseen_entries:
            return True
        if self._capacity is None:
            self._capacity = max(_QUEUE, 2 * len(unseen_entries))
        elif len(self._queue) >= self._capacity:
            self._is_closed = True
            self._has_entries.set()
            return False
        self.after = unseen_entries[-1].id
        self._queue.extend(unseen_entries)
        self._has_entries.set()
        return True


class StreamHub(Generic[E]):
    """Reads all subscribed streams with one connection and one blocking XREAD.

    Args:
        prefix: the prefix of the streams' keys, which end with a name without colons.
        parse: creates an entry from its stream id and its fields.
    """

    def __init__(
        self, url: str, prefix: str, parse: Callable[[bytes, Mapping[bytes, bytes]], E]
    ) -> None:
        self._prefix = prefix
        self._parse = parse
        self._control = connect(url)
        # XREAD blocks for longer than any other command may take.
        self._reading = connect(url, timeout_seconds=_BLOCK_MS / 1_000 + 5)
        self._subscriptions: dict[str, set[Subscription[E]]] = {}
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
    async def subscribe(self, name: str, after: str | None) -> AsyncIterator[Subscription[E]]:
        """Subscribe to the entries of a stream after the stream id ``after``, or to all if it is None.

        After an outage of Valkey the subscription continues without gaps. An ``after`` that is not
        a stream id raises `InvalidRequest`.
        """
        if after is not None and not _EVENT_ID.fullmatch(after):
            raise InvalidRequest(
                f"Last-Event-ID must be the id of an event of this job, not {after!r}",
                field="Last-Event-ID",
            )
        subscription: Subscription[E] = Subscription(after or "0-0")
        self._subscriptions.setdefault(name, set()).add(subscription)
        # Rewinds the shared position; subscribers that already have the entries skip them by id.
        self._positions[name] = min(
            self._positions.get(name, subscription.after), subscription.after, key=_parse_stream_id
        )
        try:
            await self._wake_reader()
            yield subscription
        finally:
            self._remove_subscription(name, subscription)

    def _remove_subscription(self, name: str, subscription: Subscription[E]) -> None:
        subscriptions = self._subscriptions.get(name, set())
        subscriptions.discard(subscription)
        if not subscriptions:
            self._subscriptions.pop(name, None)
            self._positions.pop(name, None)

    async def _wake_reader(self) -> None:
        """Start or interrupt the reader task, so that it reads the changed set of streams."""
        self._changed.set()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_forever())
        elif self._connection_id is not None:
            try:
                await self._control.client_unblock(self._connection_id)
            except (RedisError, OSError) as error:
                # The reader uses the changed set after at most _BLOCK_MS anyway.
                _log.debug("could not unblock the reader of Valkey streams: %s", error)

    async def _read_forever(self) -> None:
        while True:
            if not self._positions:
                self._changed.clear()
                await self._changed.wait()
            try:
                await self._read_connected()
            except (RedisError, OSError) as error:
                _log.warning(
                    "the reader of Valkey streams lost its connection; reconnecting: %s", error
                )
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
                for raw_name, entries in _split_by_stream(response):
                    stream = raw_name.decode()
                    name = stream.removeprefix(self._prefix)
                    self._deliver(name, streams[stream], entries)

    def _deliver(self, name: str, position: str, entries: Any) -> None:
        if self._positions.get(name) != position:
            # The subscribers changed meanwhile, so the next read begins at the new position.
            return
        parsed_entries = [self._parse(entry_id, fields) for entry_id, fields in entries]
        self._positions[name] = parsed_entries[-1].id
        for subscription in list(self._subscriptions[name]):
            if not subscription.offer(parsed_entries):
                self._subscriptions[name].discard(subscription)


class EventHub(StreamHub[JobEvent]):
    """Delivers the events of jobs to subscribers; streams are named by job id."""

    def __init__(self, url: str) -> None:
        super().__init__(url, EVENT_PREFIX, parse_event)


def _split_by_stream(response: Any) -> Any:
    """Return pairs of a stream's name and its entries from an XREAD response in RESP2 or RESP3."""
    if isinstance(response, dict):
        return [(name, chunk) for name, chunks in response.items() for chunk in chunks]
    return response or []


def _parse_stream_id(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)
