"""Implements `Broker` for Redis and Valkey, with streams of jobs, results and dead letters."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

from moyin.jobs.intake.broker import BrokerLost, Delivery
from moyin.store.valkey import ValkeyConnection

_BLOCK_MS = 1_000
_TIMEOUT_SECONDS = 5.0
# A consumer without pending entries is deleted after being idle for this many times
# ``claim_after``.
_DELETE_AFTER = 20
# The id of an entry, its fields, and the number of its deliveries.
_Entry = tuple[bytes, dict[bytes, bytes], int]


class StreamBroker:
    """A stream whose entries become jobs; an entry has the field ``body`` and optionally ``id``.

    If an entry has no field ``id``, the id that the stream gives it is used, so a message that the
    sender adds twice becomes two jobs. Settled entries are deleted, so no other consumer group can
    use the stream.

    Args:
        claim_after: the seconds after which other workers claim the entries of a worker that has
            not renewed its claim.
        kept: the approximate number of newest entries that are kept in the stream ``results``, and
            as many in the stream ``dead_letters``.
    """

    def __init__(
        self,
        url: str,
        *,
        stream: str,
        results: str,
        dead_letters: str,
        group: str = "moyin",
        concurrency: int = 100,
        claim_after: float = 30.0,
        kept: int = 100_000,
    ) -> None:
        self.stream = stream
        self.results = results
        self.dead_letters = dead_letters
        self.group = group
        self.concurrency = concurrency
        self.claim_ms = int(claim_after * 1000)
        self.kept = kept
        self._url = url
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[_StreamSession]:
        client = redis.Redis.from_url(
            self._url,
            connection_class=ValkeyConnection,
            protocol=2,  # RESP2 replies have the same shape from Redis and Valkey.
            socket_connect_timeout=_TIMEOUT_SECONDS,
            socket_timeout=_TIMEOUT_SECONDS,
        )
        try:
            with _raise_broker_lost():
                await self._ensure_group(client)
            session = _StreamSession(self, client, self._consumer)
            keep_alive_task = asyncio.create_task(session.keep_alive())
            try:
                yield session
            finally:
                keep_alive_task.cancel()
                await asyncio.gather(keep_alive_task, return_exceptions=True)
        finally:
            await client.aclose()

    async def _ensure_group(self, client: redis.Redis) -> None:
        try:
            await client.xgroup_create(self.stream, self.group, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


class _StreamSession:
    def __init__(self, broker: StreamBroker, client: redis.Redis, consumer: str) -> None:
        self._broker = broker
        self._client = client
        self._consumer = consumer
        self._held: set[bytes] = set()
        self._freed = asyncio.Event()

    async def receive_deliveries(self) -> AsyncGenerator[Delivery, None]:
        """Yield entries without end; entries of workers that have died come before new ones."""
        while True:
            free_count = self._broker.concurrency - len(self._held)
            if free_count <= 0:
                self._freed.clear()
                await self._freed.wait()
                continue
            with _raise_broker_lost():
                entries = await self._claim_entries(free_count) or await self._read_new_entries(
                    free_count
                )
            for entry_id, fields, count in entries:
                self._held.add(entry_id)
                yield Delivery(
                    message_id=_get_message_id(entry_id, fields),
                    body=fields.get(b"body", b""),
                    count=count,
                    handle=(entry_id, fields),
                )

    async def complete_delivery(self, delivery: Delivery, result_id: str, result: bytes) -> None:
        entry_id, _ = delivery.handle
        fields = {"id": result_id, "message_id": delivery.message_id or "", "body": result}
        await self._settle_entry(entry_id, self._broker.results, fields)

    async def dead_letter(self, delivery: Delivery, code: str, reason: str) -> None:
        entry_id, fields = delivery.handle
        await self._settle_entry(
            entry_id, self._broker.dead_letters, {**fields, "code": code, "reason": reason}
        )

    async def keep_alive(self) -> None:
        """Claim this worker's own entries regularly, so that no other worker claims them."""
        broker = self._broker
        while True:
            await asyncio.sleep(broker.claim_ms / 3000)
            held_entries: list[Any] = list(self._held)
            # Ignored here, because `receive_deliveries` reports the same outage.
            with suppress(RedisError, OSError):
                if held_entries:
                    await self._client.xclaim(
                        broker.stream,
                        broker.group,
                        self._consumer,
                        0,
                        held_entries,
                        idle=0,
                        justid=True,
                    )
                await self._delete_idle_consumers()

    async def _settle_entry(self, entry_id: bytes, stream: str, fields: dict[Any, Any]) -> None:
        """Add ``fields`` to another stream and delete the entry, in one transaction."""
        broker = self._broker
        with _raise_broker_lost():
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xadd(stream, fields, maxlen=broker.kept, approximate=True)
                pipeline.xack(broker.stream, broker.group, entry_id)
                pipeline.xdel(broker.stream, entry_id)
                await pipeline.execute()
        self._held.discard(entry_id)
        self._freed.set()

    async def _read_new_entries(self, count: int) -> list[_Entry]:
        broker = self._broker
        reply: Any = await self._client.xreadgroup(
            broker.group, self._consumer, {broker.stream: ">"}, count=count, block=_BLOCK_MS
        )
        entries = reply[0][1] if reply else []
        return [(entry_id, fields, 1) for entry_id, fields in entries]

    async def _claim_entries(self, count: int) -> list[_Entry]:
        broker = self._broker
        claim_reply: Any = await self._client.xautoclaim(
            broker.stream, broker.group, self._consumer, broker.claim_ms, count=count
        )
        entries = [
            (entry_id, fields) for entry_id, fields in claim_reply[1] if entry_id not in self._held
        ]
        if not entries:
            return []
        pending_entries: Any = await self._client.xpending_range(
            broker.stream, broker.group, entries[0][0], entries[-1][0], len(entries) + len(self._held),
            consumername=self._consumer,
        )  # fmt: skip
        counts = {item["message_id"]: item["times_delivered"] for item in pending_entries}
        return [(entry_id, fields, counts.get(entry_id, 1)) for entry_id, fields in entries]

    async def _delete_idle_consumers(self) -> None:
        broker = self._broker
        for consumer in await self._client.xinfo_consumers(broker.stream, broker.group):
            is_idle = consumer["idle"] > _DELETE_AFTER * broker.claim_ms
            if is_idle and not consumer["pending"] and consumer["name"] != self._consumer.encode():
                await self._client.xgroup_delconsumer(broker.stream, broker.group, consumer["name"])


@contextmanager
def _raise_broker_lost() -> Iterator[None]:
    """Raise `BrokerLost` for errors of the connection within the block."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise BrokerLost(f"Redis failed: {type(error).__name__}: {error}") from error


def _get_message_id(entry_id: bytes, fields: dict[bytes, bytes]) -> str:
    return (fields.get(b"id") or entry_id).decode(errors="replace")
