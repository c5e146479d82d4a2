"""Defines the protocols through which the intake uses a message broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Broker", "BrokerLost", "Delivery", "Session"]


class BrokerLost(Exception):
    """The connection to the broker broke; unsettled messages will be delivered again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One delivery of a message.

    Attributes:
        message_id: the id that the sender chose; None if it chose none.
        count: the number of this delivery of the message, from 1.
        handle: the broker's own object for the message.
    """

    message_id: str | None
    body: bytes
    count: int
    handle: Any


class Session(Protocol):
    """Receives messages over one connection; every method may raise `BrokerLost`."""

    def deliveries(self) -> AsyncGenerator[Delivery, None]:
        """Yield messages without end, with at most the broker's ``concurrency`` of them unsettled."""
        ...

    async def complete(self, delivery: Delivery, result_id: str, result: bytes) -> None:
        """Publish the result, then settle the message; a crash in between publishes it again.

        Args:
            result_id: the same each time that the same result is published.
        """

    async def dead_letter(self, delivery: Delivery, code: str, reason: str) -> None:
        """Move the message to the dead-letter queue, with the reason."""


class Broker(Protocol):
    """Opens sessions with a message broker."""

    def session(self) -> AbstractAsyncContextManager[Session]:
        """Connect to the broker.

        Raises:
            BrokerLost: the broker cannot be reached.
        """
        ...
