"""Tests the intake's broker client on a real RabbitMQ."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import aio_pika
import pytest

from moyin.jobs.intake import BrokerLost
from moyin.jobs.intake.rabbit import RabbitBroker
from tests.integration.jobs.rabbitmq import RabbitServer, rabbit

__all__ = ["rabbit"]

QUEUES = ("gone", "gone.results", "gone.dead")


async def test_a_deleted_queue_is_reported_and_created_again(rabbit: RabbitServer) -> None:
    queue, results, dead_letters = QUEUES
    broker = RabbitBroker(rabbit.url, queue=queue, results=results, dead_letters=dead_letters)
    async with await aio_pika.connect(rabbit.url) as connection, asyncio.timeout(30):
        channel = await connection.channel()

        async def send(message_id: str) -> None:
            message = aio_pika.Message(b"{}", message_id=message_id)
            await channel.default_exchange.publish(message, queue)

        async with (
            broker.connect() as session,
            aclosing(session.receive_deliveries()) as deliveries,
        ):
            await send("m1")
            assert (await anext(deliveries)).message_id == "m1"
            await channel.queue_delete(queue)
            with pytest.raises(BrokerLost):
                await anext(deliveries)
        async with (
            broker.connect() as session,
            aclosing(session.receive_deliveries()) as deliveries,
        ):
            await send("m2")
            assert (await anext(deliveries)).message_id == "m2"
        for name in QUEUES:
            await channel.queue_delete(name)


async def test_redelivered_messages_are_marked_in_every_queue_type(
    rabbit: RabbitServer,
) -> None:
    queue, results, dead_letters = QUEUES
    broker = RabbitBroker(
        rabbit.url, queue=queue, results=results, dead_letters=dead_letters, declare=False
    )
    async with await aio_pika.connect(rabbit.url) as connection, asyncio.timeout(30):
        channel = await connection.channel()
        for queue_type in ("classic", "quorum"):
            await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": queue_type})
            await channel.default_exchange.publish(aio_pika.Message(b"{}", message_id="m"), queue)
            delivery_counts = []
            for _ in range(2):
                async with (
                    broker.connect() as session,
                    aclosing(session.receive_deliveries()) as deliveries,
                ):
                    delivery_counts.append((await anext(deliveries)).count)
            assert delivery_counts == [1, 2], queue_type
            await channel.queue_delete(queue)
