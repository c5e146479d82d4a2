"""Connects to Valkey without a fault of redis-py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import redis.asyncio as redis
from redis.exceptions import TimeoutError as RedisTimeoutError

__all__ = ["ValkeyConnection"]


class ValkeyConnection(redis.Connection):
    """Replaces redis-py's timeout for sending.

    redis-py uses `asyncio.wait_for`, which in Python 3.11 loses a cancellation that arrives while
    sending completes; in a loop of commands that is every third one.

    URLs with ``rediss://`` and ``unix://`` use redis-py's own classes and keep the fault.
    """

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        limit, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(limit):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            # The connection is closed by now, as after any interrupted sending.
            raise RedisTimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = limit
