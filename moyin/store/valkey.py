"""Connects to Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

__all__ = ["ValkeyConnection", "connect", "connect_cache"]

_TIMEOUT_SECONDS = 2.0


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


def connect(url: str, *, timeout: float | None = _TIMEOUT_SECONDS) -> redis.Redis:
    """Return a client that retries twice within short timeouts, since Valkey must not delay a job."""
    return redis.Redis.from_url(
        url,
        connection_class=ValkeyConnection,
        socket_connect_timeout=_TIMEOUT_SECONDS,
        socket_timeout=timeout,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )


def connect_cache(url: str, timeout: float) -> redis.Redis:
    """Return a client that never retries, for caches, which requests do not wait for."""
    return redis.Redis.from_url(
        url,
        connection_class=ValkeyConnection,
        socket_connect_timeout=timeout,
        socket_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
    )
