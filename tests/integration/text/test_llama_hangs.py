"""Tests that an embedded llama.cpp is replaced if it hangs, but not if it is only busy."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace

import aiohttp
import pytest
import ray

from actors.llama import LlamaSpec
from deployments.models.llama import LlamaBackend, LlamaEndpoints
from moyin.domain.chat import ChatRequest
from moyin.errors import BackendError, BackendUnavailable, StreamInterrupted
from moyin.text.backends.http import Endpoint
from tests.integration.text.test_llama_actor import HI, find_server_process
from tests.stack import RecordMeasurement

SPEC = LlamaSpec(gguf=None, alias="smollm2", context=1024, parallel=2, cpus=1, gpus=0)
# What no model's answer fits for long, and what llama.cpp never gets done with.
LONG = replace(HI, max_tokens=900)
BOMB = {"type": "string", "pattern": "^((((a?){9}){9}){9}){9}$"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # Ray's sockets need a short path, which pytest's folders are not.
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100_000_000,
        _temp_dir=folder,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def get_loop_time() -> float:
    return asyncio.get_running_loop().time()


async def find_endpoint(
    endpoints: LlamaEndpoints, old_endpoint: Endpoint | None = None
) -> Endpoint:
    """Return the server's endpoint, once it differs from ``old_endpoint``."""
    async with asyncio.timeout(150):
        while True:
            with suppress(BackendError):
                endpoint = await endpoints.find()
                if endpoint != old_endpoint:
                    return endpoint
            await asyncio.sleep(0.2)


async def stream_deltas(backend: LlamaBackend, request: ChatRequest) -> AsyncIterator[object]:
    async for delta in backend.stream(request, get_loop_time() + 300):
        yield delta


async def test_a_stopped_server_is_replaced_and_its_streams_end(
    record_measurement: RecordMeasurement,
) -> None:
    endpoints = LlamaEndpoints("stopped", SPEC, restart_after_seconds=3.0)
    endpoint = await find_endpoint(endpoints)
    backend = LlamaBackend(endpoints, connections=4)
    stream = stream_deltas(backend, LONG)
    await anext(stream)
    started_at = time.monotonic()
    os.kill(find_server_process(endpoint).pid, signal.SIGSTOP)
    with pytest.raises(BackendUnavailable):
        await backend.probe()
    detection_seconds = time.monotonic() - started_at
    find_task = asyncio.create_task(find_endpoint(endpoints, old_endpoint=endpoint))
    with pytest.raises(StreamInterrupted):
        async for _ in stream:
            pass
    assert (await find_task).key != endpoint.key
    assert (await backend.chat(HI, get_loop_time() + 60)).usage.output_tokens > 0
    replacement_seconds = time.monotonic() - started_at
    record_measurement(
        f"a stopped llama.cpp was noticed after {detection_seconds:.1f} s and another answered after "
        f"{replacement_seconds:.1f} s"
    )
    await backend.close()


async def test_an_actor_with_a_stuck_computation_is_replaced() -> None:
    endpoints = LlamaEndpoints("stuck", replace(SPEC, stalled_seconds=3.0, restart_seconds=8.0))
    endpoint = await find_endpoint(endpoints)
    backend = LlamaBackend(endpoints, connections=4)
    # Past the bounds on schemas, which it would not get through.
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": BOMB}}
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 8,
        "response_format": response_format,
    }
    headers = {"authorization": f"Bearer {endpoint.key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        chat_task = asyncio.create_task(session.post(f"{endpoint.url}/chat/completions", json=body))
        # Its HTTP server goes on answering: only the computation hangs.
        async with asyncio.timeout(60):
            while True:
                try:
                    await backend.probe()
                except BackendUnavailable as error:
                    assert (
                        error.message
                        == "the embedded llama.cpp server makes no progress; try again"
                    )
                    break
                await asyncio.sleep(0.2)
        with pytest.raises(aiohttp.ClientError):
            await chat_task
    assert (await find_endpoint(endpoints, old_endpoint=endpoint)).key != endpoint.key
    assert (await backend.chat(HI, get_loop_time() + 60)).usage.output_tokens > 0
    await backend.close()


async def test_a_busy_server_is_not_restarted() -> None:
    """The calls take longer than a server may go without progress, but they make progress."""
    endpoints = LlamaEndpoints("busy", replace(SPEC, stalled_seconds=4.0, restart_seconds=8.0))
    endpoint = await find_endpoint(endpoints)
    backend = LlamaBackend(endpoints, connections=8)
    # Twice as many as it has places: the rest wait inside.
    long_request = replace(LONG, max_tokens=300)
    chat_tasks = [
        asyncio.create_task(backend.chat(long_request, get_loop_time() + 300)) for _ in range(4)
    ]
    check_count = 0
    while not all(chat_task.done() for chat_task in chat_tasks):
        await backend.probe()
        check_count += 1
        await asyncio.sleep(1)
    assert check_count > 1
    assert all([(await chat_task).usage.output_tokens > 0 for chat_task in chat_tasks])
    assert await endpoints.find() == endpoint
    await backend.close()
