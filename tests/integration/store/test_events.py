"""Tests event streams on a real Valkey: replay, live events, resuming, slow clients, an outage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from moyin.domain.job import EventType, JobEvent
from moyin.errors import InvalidRequest
from moyin.store import hub as hub_module
from moyin.store.events import EventStore
from moyin.store.hub import EventHub, SlowConsumer, Subscription
from tests.integration.servers import ValkeyServer


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path, durable=True)
    yield server
    server.kill()


@pytest.fixture
async def store(valkey: ValkeyServer) -> AsyncIterator[EventStore]:
    store = EventStore(valkey.url, retention=timedelta(minutes=1))
    yield store
    await store.close()


@pytest.fixture
async def hub(valkey: ValkeyServer) -> AsyncIterator[EventHub]:
    hub = EventHub(valkey.url)
    yield hub
    await hub.close()


async def take_numbers(subscription: Subscription[JobEvent], count: int) -> list[int]:
    """Return the member ``n`` of the next ``count`` events, which may arrive in several batches."""
    numbers: list[int] = []
    async with asyncio.timeout(10):
        while len(numbers) < count:
            numbers += [event.data["n"] for event in await subscription.next()]
    return numbers


async def publish_numbers(store: EventStore, job_id: str, numbers: range) -> None:
    for n in numbers:
        await store.publish(job_id, EventType.PROGRESS, {"n": n})


async def test_watcher_receives_old_and_new_events_in_order(
    store: EventStore, hub: EventHub
) -> None:
    await publish_numbers(store, "a", range(3))
    await publish_numbers(store, "b", range(100, 103))
    async with hub.subscribe("a", None) as events:
        assert await take_numbers(events, 3) == [0, 1, 2]
        await publish_numbers(store, "a", range(3, 6))
        assert await take_numbers(events, 3) == [3, 4, 5]


async def test_late_watcher_gets_earlier_events_that_others_do_not_get_again(
    store: EventStore, hub: EventHub
) -> None:
    async with hub.subscribe("a", None) as first_watch:
        await publish_numbers(store, "a", range(4))
        assert await take_numbers(first_watch, 4) == [0, 1, 2, 3]
        async with hub.subscribe("a", None) as second_watch:
            assert await take_numbers(second_watch, 4) == [0, 1, 2, 3]
            await publish_numbers(store, "a", range(4, 6))
            assert await take_numbers(first_watch, 2) == [4, 5]
            assert await take_numbers(second_watch, 2) == [4, 5]


async def test_subscription_resumes_after_an_event_id(store: EventStore, hub: EventHub) -> None:
    started_at = time.time()
    await publish_numbers(store, "a", range(5))
    stored_events = await store.replay("a", None)
    # An id begins with the milliseconds when the event was published.
    published_ms = [int(e.id.partition("-")[0]) for e in stored_events]
    assert int(started_at * 1000) <= published_ms[0] <= published_ms[-1] <= time.time() * 1000
    assert [e.data["n"] for e in stored_events] == [0, 1, 2, 3, 4]
    assert [e.data["n"] for e in await store.replay("a", stored_events[2].id)] == [3, 4]
    async with hub.subscribe("a", stored_events[2].id) as events:
        assert await take_numbers(events, 2) == [3, 4]
    with pytest.raises(InvalidRequest):
        async with hub.subscribe("a", "nonsense"):
            pass


async def test_fifty_watchers_use_one_reader(store: EventStore, hub: EventHub) -> None:
    async def follow_job(job_id: str) -> list[int]:
        async with hub.subscribe(job_id, None) as events:
            return await take_numbers(events, 10)

    watch_tasks = [asyncio.create_task(follow_job(f"job{i % 5}")) for i in range(50)]
    await asyncio.sleep(0.1)
    for i in range(5):
        await publish_numbers(store, f"job{i}", range(10))
    assert await asyncio.gather(*watch_tasks) == [list(range(10))] * 50
    assert hub._subscriptions == {}
    assert hub._positions == {}


async def test_slow_watcher_is_disconnected_and_others_are_not(
    store: EventStore, hub: EventHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_QUEUE", 8)
    async with hub.subscribe("a", None) as slow_watch, hub.subscribe("a", None) as quick_watch:
        for n in range(20):
            await publish_numbers(store, "a", range(n, n + 1))
            assert await take_numbers(quick_watch, 1) == [n]
        assert await take_numbers(slow_watch, 8) == list(range(8))
        with pytest.raises(SlowConsumer):
            await take_numbers(slow_watch, 1)


async def test_long_event_history_does_not_disconnect_watchers(
    store: EventStore, hub: EventHub
) -> None:
    published_events = [(EventType.PROGRESS, {"n": n}) for n in range(900)]
    await store.publish_all("a", published_events)
    async with hub.subscribe("a", None) as events:
        assert await take_numbers(events, 900) == list(range(900))
        await publish_numbers(store, "a", range(900, 903))
        assert await take_numbers(events, 3) == [900, 901, 902]


async def test_outage_pauses_watchers_but_not_publishers(
    valkey: ValkeyServer, store: EventStore, hub: EventHub
) -> None:
    async with hub.subscribe("a", None) as events:
        await publish_numbers(store, "a", range(2))
        assert await take_numbers(events, 2) == [0, 1]
        await asyncio.sleep(1.1)  # appendfsync everysec: what was written a second ago is on disk
        valkey.kill()
        await publish_numbers(store, "a", range(99, 100))
        assert store.lost_count == 1
        await asyncio.to_thread(valkey.start)
        await publish_numbers(store, "a", range(2, 4))
        assert await take_numbers(events, 2) == [2, 3]


async def test_streams_are_bounded_and_expire(valkey: ValkeyServer, store: EventStore) -> None:
    await publish_numbers(store, "a", range(1500))
    with redis.Redis.from_url(valkey.url) as client:
        assert client.xlen("moyin:events:a") <= 1200
        assert 0 < client.ttl("moyin:events:a") <= 60
