"""Implements `Broker` for RabbitMQ (AMQP 0-9-1), with quorum queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError

from moyin.jobs.intake.broker import BrokerLost, Delivery

_CONNECT_SECONDS = 5.0
_CONFIRM_SECONDS = 15.0
# Overrides RabbitMQ's default of redelivering unsettled messages after half an hour, because jobs
# may take days.
_CONSUMER_TIMEOUT_MS = 7 * 24 * 3600 * 1000
_LOST = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)


class RabbitBroker:
    """A queue of RabbitMQ whose messages become jobs; each message needs a ``message_id``.

    The result of a message is published to the queue that the message's ``reply_to`` names, or else
    to the queue ``results``. The ``correlation_id`` of the result is the ``correlation_id`` of the
    message, or else the ``message_id`` of the message.

    Args:
        url: ``amqp://user:password@host:port/vhost``.
        declare: True to declare the queues; False if an operator has created them.
        concurrency: the largest number of messages that are processed at a time.
    """

    def __init__(
        self,
        url: str,
        *,
        queue: str,
        results: str,
        dead_letters: str,
        declare: bool = True,
        concurrency: int = 100,
        max_deliveries: int = 20,
    ) -> None:
        self._url = url
        self._queue = queue
        self._results = results
        self._dead_letters = dead_letters
        self._declare = declare
        self._concurrency = concurrency
        self._max_deliveries = max_deliveries

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[_RabbitSession]:
        with _raise_broker_lost():
            connection = await aio_pika.connect(self._url, timeout=_CONNECT_SECONDS)
        async with connection:
            with _raise_broker_lost():
                # Publishing raises an error if no queue receives the message.
                channel = await connection.channel(on_return_raises=True)
                await channel.set_qos(prefetch_count=self._concurrency)
                await self._declare_queues(channel)
            session = _RabbitSession(channel, self._queue, self._results, self._dead_letters)
            connection.close_callbacks.add(session.end)
            channel.close_callbacks.add(session.end)
            with _raise_broker_lost():
                raw_channel = await channel.get_underlay_channel()
            # When the queue is deleted, RabbitMQ cancels the consumer, but the channel stays open.
            raw_channel.on_consumer_cancel_callbacks.add(session.end)
            yield session

    async def _declare_queues(self, channel: AbstractChannel) -> None:
        if not self._declare:
            return
        for name in (self._results, self._dead_letters):
            await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.declare_queue(
            self._queue,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                # RabbitMQ counts deliveries, because workers can't count those of a message that
                # crashes them.
                "x-delivery-limit": self._max_deliveries,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": self._dead_letters,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-consumer-timeout": _CONSUMER_TIMEOUT_MS,
            },
        )


class _RabbitSession:
    def __init__(
        self, channel: AbstractChannel, queue: str, results: str, dead_letters: str
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._results = results
        self._dead_letters = dead_letters
        # RabbitMQ's prefetch count limits the length of this queue. None marks the end of the
        # session.
        self._arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()

    def end(self, *_: Any) -> None:
        """End the session, after the connection or channel has closed or the queue was deleted."""
        self._arrived.put_nowait(None)

    async def receive_deliveries(self) -> AsyncGenerator[Delivery, None]:
        with _raise_broker_lost():
            queue = await self._channel.get_queue(self._queue, ensure=False)
            await queue.consume(self._arrived.put)
        while True:
            message = await self._arrived.get()
            if message is None:
                raise BrokerLost(
                    f"RabbitMQ closed the connection, or the queue {self._queue!r} was deleted"
                )
            yield Delivery(
                message_id=message.message_id,
                body=message.body,
                count=_count_previous_deliveries(message) + 1,
                handle=message,
            )

    async def complete_delivery(self, delivery: Delivery, result_id: str, result: bytes) -> None:
        message: AbstractIncomingMessage = delivery.handle
        await self._publish(
            message.reply_to or self._results,
            aio_pika.Message(
                result,
                message_id=result_id,
                correlation_id=message.correlation_id or delivery.message_id,
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            ),
            # The reply queue does not exist, because the client may have deleted it.
            mandatory=not message.reply_to,
        )
        with _raise_broker_lost():
            await message.ack()

    async def dead_letter(self, delivery: Delivery, code: str, reason: str) -> None:
        message: AbstractIncomingMessage = delivery.handle
        await self._publish(
            self._dead_letters,
            aio_pika.Message(
                message.body,
                headers={**message.headers, "x-moyin-code": code, "x-moyin-reason": reason},
                message_id=message.message_id,
                correlation_id=message.correlation_id,
                content_type=message.content_type,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            ),
            mandatory=True,
        )
        with _raise_broker_lost():
            await message.ack()

    async def _publish(self, queue: str, message: aio_pika.Message, *, mandatory: bool) -> None:
        """Publish a message and wait until RabbitMQ confirms that it is stored.

        Args:
            mandatory: True to fail if the queue does not exist.
        """
        with _raise_broker_lost():
            await self._channel.default_exchange.publish(
                message, queue, mandatory=mandatory, timeout=_CONFIRM_SECONDS
            )


@contextmanager
def _raise_broker_lost() -> Iterator[None]:
    """Raise `BrokerLost` for errors of the connection within the block."""
    try:
        yield
    except _LOST as error:
        raise BrokerLost(f"RabbitMQ failed: {type(error).__name__}: {error}") from error


def _count_previous_deliveries(message: AbstractIncomingMessage) -> int:
    """Return how often a message was delivered before.

    Of a classic queue, the result is 0 or 1, because such a queue does not count deliveries.
    """
    count = message.headers.get("x-delivery-count", 0)
    return max(count if isinstance(count, int) else 0, int(bool(message.redelivered)))
