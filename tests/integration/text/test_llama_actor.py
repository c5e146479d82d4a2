"""Tests the embedded llama.cpp as a real Ray actor: shared, restarted, and ended when unused."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
import ray

from actors.llama import LlamaSpec
from deployments.models.llama import LlamaBackend, LlamaEndpoints
from moyin.domain.chat import ChatRequest, Message, Role, Text
from moyin.errors import BackendError
from moyin.text.backends.http import Endpoint
from tests.stack import RecordMeasurement
from tests.waiting import eventually

HI = ChatRequest(
    model="smollm2",
    messages=(Message(role=Role.USER, parts=(Text(text="Say hello."),)),),
    max_tokens=4,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # Ray's sockets need a short path, which pytest's folders are not.
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        _temp_dir=folder,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def build_spec(**changes: Any) -> LlamaSpec:
    options = {
        "gguf": None,
        "alias": "smollm2",
        "context": 512,
        "parallel": 1,
        "cpus": 1,
        "gpus": 0,
    }
    return LlamaSpec(**{**options, **changes})


async def find_endpoint(endpoints: LlamaEndpoints, seconds: float = 60) -> Endpoint:
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await endpoints.find()
            except BackendError:
                await asyncio.sleep(0.2)


def find_server_process(endpoint: Endpoint) -> psutil.Process:
    port = int(endpoint.url.rpartition(":")[2].removesuffix("/v1"))
    for c in psutil.net_connections("tcp"):
        if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid:
            return psutil.Process(c.pid)
    raise LookupError(f"no process listens at {endpoint.url}")


async def test_replicas_share_a_server_and_a_killed_one_is_replaced(
    cluster: None, record_measurement: RecordMeasurement
) -> None:
    first_endpoints, second_endpoints = (
        LlamaEndpoints("a", build_spec()),
        LlamaEndpoints("a", build_spec()),
    )
    endpoint = await find_endpoint(first_endpoints)
    assert await find_endpoint(second_endpoints) == endpoint
    backend = LlamaBackend(first_endpoints, connections=4)
    assert (await backend.chat(HI, asyncio.get_running_loop().time() + 60)).usage.output_tokens > 0

    find_server_process(endpoint).kill()
    started_at = time.monotonic()
    with pytest.raises(BackendError):
        await backend.chat(HI, asyncio.get_running_loop().time() + 5)
    new_endpoint = await find_endpoint(first_endpoints)
    assert (new_endpoint.url, new_endpoint.key) != (endpoint.url, endpoint.key)
    assert (await backend.chat(HI, asyncio.get_running_loop().time() + 60)).usage.output_tokens > 0
    record_measurement(
        f"the embedded server answered again after {time.monotonic() - started_at:.1f} s"
    )
    await backend.close()


async def test_an_unused_actor_is_removed(cluster: None) -> None:
    endpoints = LlamaEndpoints("b", build_spec(lease_seconds=1.0))

    async def find_process() -> psutil.Process | None:
        with suppress(LookupError, psutil.NoSuchProcess):
            return find_server_process(await find_endpoint(endpoints))
        return None

    # On a busy machine, the lease may end before this test has found the process.
    process = await eventually(find_process)
    await asyncio.to_thread(process.wait, 20)
    assert not process.is_running()


async def test_a_missing_model_is_an_unavailable_back_end(cluster: None) -> None:
    endpoints = LlamaEndpoints("c", build_spec(gguf="/nowhere/model.gguf"))
    for _ in range(2):
        with pytest.raises(BackendError):
            await endpoints.find()
    assert endpoints.known_endpoint is None


async def test_a_back_end_may_have_several_servers(cluster: None) -> None:
    served_endpoints = []
    for number in range(2):
        endpoints = LlamaEndpoints(f"d-{number}", build_spec(cpus=0.1, lease_seconds=20.0))
        served_endpoints.append(await find_endpoint(endpoints))
        backend = LlamaBackend(endpoints, connections=4)
        response = await backend.chat(HI, asyncio.get_running_loop().time() + 60)
        assert response.usage.output_tokens > 0
        await backend.close()
    assert served_endpoints[0].url != served_endpoints[1].url
