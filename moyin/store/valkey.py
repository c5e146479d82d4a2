"""Creates clients of Valkey with the timeouts and retries that requests and jobs need."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

_TIMEOUT_SECONDS = 2.0


class ValkeyConnection(redis.Connection):
    """A connection to Valkey that does not lose a task's cancellation while it sends a command.

    redis-py sends with `asyncio.wait_for`, which in Python 3.11 loses a cancellation that arrives
    just when sending ends. This is not fixed for URLs with ``rediss://`` and ``unix://``, for which
    redis-py uses other classes.
    """

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        timeout, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(timeout):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            # redis-py has closed the connection, as after any interrupted sending.
            raise RedisTimeoutError(
                f"Valkey did not accept a command in {timeout} s; check that it runs"
            ) from None
        finally:
            self.socket_timeout = timeout


def connect(url: str, *, timeout_seconds: float | None = _TIMEOUT_SECONDS) -> redis.Redis:
    """Return a client with a short timeout, which retries a failed command twice."""
    return redis.Redis.from_url(
        url,
        connection_class=ValkeyConnection,
        socket_connect_timeout=_TIMEOUT_SECONDS,
        socket_timeout=timeout_seconds,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )


def connect_cache(url: str, timeout_seconds: float) -> redis.Redis:
    """Return a client that never retries, for caches, since requests must not wait for them."""
    return redis.Redis.from_url(
        url,
        connection_class=ValkeyConnection,
        socket_connect_timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )
