"""What the intake needs of a message broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Broker", "BrokerLost", "Delivery", "Session"]


class BrokerLost(Exception):
    """The connection is gone. What was not settled will be delivered again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One message on one of its ways to us.

    Attributes:
        message_id: the sender's; None when it gave none.
        count: which delivery of the message this is, from 1.
        handle: the broker's own object.
    """

    message_id: str | None
    body: bytes
    count: int
    handle: Any


class Session(Protocol):
    """A connection that takes messages. Every method may raise `BrokerLost`."""

    def deliveries(self) -> AsyncGenerator[Delivery, None]:
        """Messages as they come, no more of them unsettled than the broker was told; for ever."""
        ...

    async def complete(self, delivery: Delivery, result_id: str, result: bytes) -> None:
        """Publish the result, then settle the message. A crash in between publishes again.

        Args:
            result_id: the same whenever the same result is published.
        """

    async def bury(self, delivery: Delivery, code: str, reason: str) -> None:
        """Move the message to the dead letters, with the reason."""


class Broker(Protocol):
    """Opens sessions."""

    def session(self) -> AbstractAsyncContextManager[Session]:
        """Connect.

        Raises:
            BrokerLost: nobody is there.
        """
        ...
