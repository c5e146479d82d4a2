"""Tests jobs from a real RabbitMQ and a real Valkey, with a worker that is killed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aio_pika
import pytest
import redis.asyncio as redis
from aiohttp import web

from tests.integration.gateway.fixtures import Farm
from tests.integration.jobs.rabbitmq import RabbitServer, rabbit
from tests.integration.servers import ValkeyServer
from tests.stack import ROOT
from tests.waiting import eventually

__all__ = ["rabbit"]

MESSAGES = 12
ENOUGH = 4


class Queue(Protocol):
    """A client of a broker: sends jobs, and reads results and the messages that were rejected."""

    source: dict[str, Any]
    environ: dict[str, str]

    async def send_job(self, message_id: str, body: bytes) -> None: ...
    async def read_results(self) -> list[dict[str, Any]]: ...
    async def read_dead_letters(self) -> list[tuple[str, str]]: ...
    async def count_waiting(self) -> int: ...
    async def close(self) -> None: ...


class RabbitQueue:
    def __init__(self, url: str) -> None:
        self.source = {"type": "rabbitmq", "url_env": "RABBIT_URL", "owner": "ann"}
        self.environ = {"RABBIT_URL": url}
        self._results: list[dict[str, Any]] = []
        self._dead: list[tuple[str, str]] = []

    async def connect(self) -> None:
        self._connection = await aio_pika.connect(self.environ["RABBIT_URL"])
        self._channel = await self._connection.channel(on_return_raises=True)

    async def send_job(self, message_id: str, body: bytes) -> None:
        message = aio_pika.Message(body, message_id=message_id, delivery_mode=2)
        while True:
            try:
                await self._channel.default_exchange.publish(message, "moyin.jobs")
                return
            except aio_pika.exceptions.DeliveryError:
                # The intake has not made its queue yet.
                await asyncio.sleep(0.05)

    async def read_results(self) -> list[dict[str, Any]]:
        for message in await self._drain_queue("moyin.results"):
            assert message.correlation_id
            self._results.append(json.loads(message.body))
        return self._results

    async def read_dead_letters(self) -> list[tuple[str, str]]:
        for message in await self._drain_queue("moyin.dead"):
            self._dead.append((message.message_id or "", str(message.headers["x-moyin-code"])))
        return self._dead

    async def count_waiting(self) -> int:
        queue = await self._channel.declare_queue("moyin.jobs", passive=True)
        return queue.declaration_result.message_count or 0

    async def close(self) -> None:
        for name in ("moyin.jobs", "moyin.results", "moyin.dead"):
            await self._channel.queue_delete(name)
        await self._connection.close()

    async def _drain_queue(self, queue_name: str) -> list[Any]:
        queue = await self._channel.get_queue(queue_name)
        messages = []
        while (message := await queue.get(fail=False, no_ack=True)) is not None:
            messages.append(message)
        return messages


class StreamQueue:
    def __init__(self, url: str) -> None:
        self.source = {"type": "redis", "url_env": "STREAM_URL", "owner": "ann", "claim_after": 0.5}
        self.environ = {"STREAM_URL": url}

    async def connect(self) -> None:
        self._redis = redis.Redis.from_url(self.environ["STREAM_URL"])
        await self.delete_streams()

    async def send_job(self, message_id: str, body: bytes) -> None:
        fields: dict[Any, Any] = {"body": body}
        if message_id:
            fields["id"] = message_id
        await self._redis.xadd("moyin:jobs", fields)

    async def read_results(self) -> list[dict[str, Any]]:
        entries: Any = await self._redis.xrange("moyin:results")
        return [json.loads(fields[b"body"]) for _, fields in entries]

    async def read_dead_letters(self) -> list[tuple[str, str]]:
        entries: Any = await self._redis.xrange("moyin:dead")
        return [
            (fields.get(b"id", b"").decode(), fields[b"code"].decode()) for _, fields in entries
        ]

    async def count_waiting(self) -> int:
        return int(await self._redis.xlen("moyin:jobs"))

    async def close(self) -> None:
        await self.delete_streams()
        await self._redis.aclose()

    async def delete_streams(self) -> None:
        await self._redis.delete("moyin:jobs", "moyin:results", "moyin:dead")


@pytest.fixture(params=["rabbitmq", "redis"])
async def queue(
    request: pytest.FixtureRequest, valkey_server: ValkeyServer
) -> AsyncIterator[RabbitQueue | StreamQueue]:
    queue: RabbitQueue | StreamQueue
    if request.param == "rabbitmq":
        server: RabbitServer = request.getfixturevalue("rabbit")
        queue = RabbitQueue(server.url)
    else:
        queue = StreamQueue(valkey_server.url)
    await queue.connect()
    yield queue
    await queue.close()


async def test_kill_9_loses_and_duplicates_no_job_and_invalid_messages_block_nothing(
    working_farm: Farm, queue: Queue
) -> None:
    call_counts: Counter[str] = Counter()

    async def answer_slowly(request: web.Request) -> web.Response:
        call_counts[await request.text()] += 1
        await asyncio.sleep(0.1)
        return web.json_response({"done": True})

    working_farm.services.answers["/work"] = answer_slowly
    async with _run_intake(working_farm, queue) as process:
        for number in range(MESSAGES):
            await queue.send_job(f"m{number}", _build_job_body(f"work {number}"))
        # Twice by the sender, as after a lost confirmation.
        await queue.send_job("m0", _build_job_body("work 0"))
        await eventually(lambda: sum(call_counts.values()) >= ENOUGH)
        await queue.send_job("not-json", b"{")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await queue.send_job("no-job", b'{"kind": "dance"}')
    await queue.send_job("m0", _build_job_body("something else"))
    async with _run_intake(working_farm, queue):
        await eventually(lambda: _has_results(queue, MESSAGES), seconds=40)
        await eventually(lambda: _has_dead_letters(queue, 3))
        await eventually(lambda: _is_empty(queue))
    results = await queue.read_results()
    job_ids = {result["message_id"]: result["job"]["id"] for result in results}
    assert set(job_ids) == {f"m{number}" for number in range(MESSAGES)}
    assert len(set(job_ids.values())) == MESSAGES
    assert all(result["job"]["status"] == "succeeded" for result in results)
    assert results[0]["job"]["outputs"][0]["body"] == {"done": True}
    assert call_counts == {f"work {number}": 1 for number in range(MESSAGES)}
    assert dict(await queue.read_dead_letters()) == {
        "not-json": "invalid_json",
        "no-job": "invalid_request",
        "m0": "idempotency_key_reused",
    }
    async with working_farm.client.get("/jobs?limit=200") as response:
        assert len((await response.json())["jobs"]) == MESSAGES


def _build_job_body(text: str) -> bytes:
    request = {"method": "POST", "path": "/work", "body": text}
    return json.dumps({"kind": "http", "request": request}).encode()


async def _has_results(queue: Queue, count: int) -> bool:
    return len({result["message_id"] for result in await queue.read_results()}) >= count


async def _has_dead_letters(queue: Queue, count: int) -> bool:
    return len(await queue.read_dead_letters()) >= count


async def _is_empty(queue: Queue) -> bool:
    return await queue.count_waiting() == 0


@asynccontextmanager
async def _run_intake(farm: Farm, queue: Queue) -> AsyncIterator[asyncio.subprocess.Process]:
    args = json.dumps({"sources": [queue.source]})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.jobs.intake_process", args,
        cwd=ROOT, env=farm.build_environment() | queue.environ, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
