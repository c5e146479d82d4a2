"""Defines the interface of a message broker, which RabbitMQ and Redis streams implement."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol


class BrokerLost(Exception):
    """Reports a broken connection; the broker will deliver all unsettled messages again.

    A message is unsettled until `Session.complete_delivery` or `Session.dead_letter` has succeeded.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One delivery of a message by the broker.

    Attributes:
        message_id: the id that the sender chose, if any.
        count: 1 for the message's first delivery, 2 for its second.
        handle: what the session that made the delivery needs to settle the message.
    """

    message_id: str | None
    body: bytes
    count: int
    handle: Any


class Session(Protocol):
    """The interface of one connection to the broker; every method may raise `BrokerLost`."""

    def receive_deliveries(self) -> AsyncGenerator[Delivery, None]:
        """Yield messages without end; pause while too many of them have no result yet."""
        ...

    async def complete_delivery(self, delivery: Delivery, result_id: str, result: bytes) -> None:
        """Publish the result of a message, then settle the message.

        The broker does not deliver a settled message again.

        Args:
            result_id: the id by which receivers recognise a duplicate. A result is published again
                if the worker crashed before it settled the message.
        """

    async def dead_letter(self, delivery: Delivery, code: str, reason: str) -> None:
        """Move a message that cannot become a job to the dead-letter queue.

        Args:
            code: the stable code of the error, such as ``invalid_request``.
            reason: the error's message.
        """


class Broker(Protocol):
    """The interface of a message broker with a queue whose messages become jobs."""

    def connect(self) -> AbstractAsyncContextManager[Session]:
        """Connect to the broker until the block ends; raise `BrokerLost` if that fails."""
        ...
