"""Tests commands to Valkey that are cancelled, or sent to a server that does not read them."""

from __future__ import annotations

import asyncio
import socket

import pytest
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError

from moyin.store.valkey import ValkeyConnection
from tests.integration.servers import ValkeyServer


async def test_every_cancelled_command_ends(valkey_server: ValkeyServer) -> None:
    """A cancelled command ends soon; with redis-py's own connection, every third one runs on."""
    client = _create_client(valkey_server.url, 2.0)

    async def ping_forever() -> None:
        while True:
            await client.ping()

    try:
        for turn in range(100):
            ping_task = asyncio.create_task(ping_forever())
            for _ in range(turn % 40):
                await asyncio.sleep(0)
            ping_task.cancel()
            done_tasks, _ = await asyncio.wait([ping_task], timeout=2)
            assert ping_task in done_tasks and ping_task.cancelled(), turn
        assert await client.ping()
    finally:
        await client.aclose()


async def test_sending_to_a_server_that_does_not_read_times_out() -> None:
    with socket.socket() as silent_server:
        silent_server.bind(("127.0.0.1", 0))
        silent_server.listen()
        client = _create_client(
            f"redis://127.0.0.1:{silent_server.getsockname()[1]}/0?protocol=2", 0.3
        )
        with pytest.raises(RedisTimeoutError):
            await client.set("large", bytes(64 * 1024 * 1024))
        await client.aclose()
    # What was not sent is dropped only when the other side is gone.
    await asyncio.sleep(0.1)


def _create_client(url: str, timeout_seconds: float) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        connection_class=ValkeyConnection,
        socket_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        # Else it would greet first, and wait for an answer.
        driver_info=None,
    )
