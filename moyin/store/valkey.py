"""`ValkeyConnection`: what the clients of Valkey in this house send through."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import redis.asyncio as redis
from redis.exceptions import TimeoutError as RedisTimeoutError

__all__ = ["ValkeyConnection"]


class ValkeyConnection(redis.Connection):
    """redis-py's connection, but for how it holds sending to ``socket_timeout``.

    redis-py uses `asyncio.wait_for`, which in Python 3.11 loses a cancellation that comes in one of
    the turns of the loop around the end of sending: of a loop of commands, every third one.

    URLs of other kinds, ``rediss://`` and ``unix://``, get redis-py's own classes and keep the fault.
    """

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        limit, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(limit):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            # By then the connection is closed, as by any end in the middle of sending.
            raise RedisTimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = limit
