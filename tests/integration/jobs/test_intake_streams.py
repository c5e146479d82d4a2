"""Tests which worker owns a message of a Valkey stream, and when another may take it over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import redis.asyncio as redis

from moyin.jobs.intake import BrokerLost, Delivery, Session
from moyin.jobs.intake.streams import StreamBroker
from tests.integration.servers import ValkeyServer, free_port

CLAIM_AFTER = 0.5


@pytest.fixture
async def client(valkey_server: ValkeyServer) -> AsyncIterator[redis.Redis]:
    async with redis.Redis.from_url(valkey_server.url) as client:
        await client.delete("in", "out", "dead")
        yield client
        await client.delete("in", "out", "dead")


def create_broker(server: ValkeyServer, concurrency: int = 10) -> StreamBroker:
    return StreamBroker(
        server.url, stream="in", results="out", dead_letters="dead",
        claim_after=CLAIM_AFTER, concurrency=concurrency,
    )  # fmt: skip


async def test_live_consumer_keeps_its_entry_and_dead_one_loses_it(
    valkey_server: ValkeyServer, client: redis.Redis
) -> None:
    await client.xadd("in", {"id": "m1", "body": b"x"})
    async with create_broker(valkey_server).connect() as second_session:
        async with create_broker(valkey_server).connect() as first_session:
            assert (await _take_delivery(first_session)).count == 1
            assert await _receives_nothing(second_session, CLAIM_AFTER * 3)
        delivery = await _take_delivery(second_session)
        assert (delivery.message_id, delivery.body, delivery.count) == ("m1", b"x", 2)
        await second_session.complete_delivery(delivery, "r1", b"done")
    entries: Any = await client.xrange("out")
    assert [fields for _, fields in entries] == [
        {b"id": b"r1", b"message_id": b"m1", b"body": b"done"}
    ]
    assert await client.xlen("in") == 0


async def test_broker_takes_no_more_messages_than_its_capacity(
    valkey_server: ValkeyServer, client: redis.Redis
) -> None:
    for number in range(3):
        await client.xadd("in", {"id": str(number), "body": b"x"})
    async with (
        create_broker(valkey_server, concurrency=2).connect() as session,
        aclosing(session.receive_deliveries()) as deliveries,
    ):
        first_delivery, _ = [await anext(deliveries) for _ in range(2)]
        next_delivery = asyncio.ensure_future(anext(deliveries))
        await asyncio.sleep(0.3)
        assert not next_delivery.done()
        await session.dead_letter(first_delivery, "poison", "it is")
        assert (await next_delivery).message_id == "2"
    entries: Any = await client.xrange("dead")
    assert [fields[b"code"] for _, fields in entries] == [b"poison"]


async def test_an_unreachable_server_is_reported() -> None:
    unreachable_broker = StreamBroker(
        f"redis://127.0.0.1:{free_port()}", stream="in", results="out", dead_letters="dead"
    )
    with pytest.raises(BrokerLost):
        async with unreachable_broker.connect():
            pass


async def _take_delivery(session: Session) -> Delivery:
    async with aclosing(session.receive_deliveries()) as deliveries, asyncio.timeout(10):
        return await anext(deliveries)


async def _receives_nothing(session: Session, seconds: float) -> bool:
    try:
        async with aclosing(session.receive_deliveries()) as deliveries, asyncio.timeout(seconds):
            await anext(deliveries)
    except TimeoutError:
        return True
    return False
