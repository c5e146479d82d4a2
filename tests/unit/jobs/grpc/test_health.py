from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from moyin.jobs.grpc import health
from moyin.jobs.grpc.faults import Fault
from moyin.jobs.grpc.health import HealthMonitor

MOYIN = "moyin.v1.Moyin"
SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING


class FakeGateway:
    """A fake gateway that counts how often its state is read."""

    def __init__(self) -> None:
        self.ready = True
        self.reads = 0

    async def is_ready(self) -> bool:
        self.reads += 1
        await asyncio.sleep(0)
        return self.ready


def new_check_request(service: str = MOYIN) -> Any:
    return pb.HealthCheckRequest(service=service)


@pytest.mark.parametrize("service", ["", MOYIN])
@pytest.mark.parametrize(("is_ready", "status"), [(True, SERVING), (False, NOT_SERVING)])
async def test_health_check_returns_the_state(service: str, is_ready: bool, status: int) -> None:
    gateway = FakeGateway()
    gateway.ready = is_ready
    assert (
        await HealthMonitor(gateway.is_ready).check(new_check_request(service))
    ).status == status


@pytest.mark.parametrize("service", ["moyin.v1.moyin", "grpc.health.v1.Health", "x" * 10_000])
async def test_an_unknown_service_is_not_found(service: str) -> None:
    gateway = FakeGateway()
    with pytest.raises(Fault) as exc_info:
        await HealthMonitor(gateway.is_ready).check(new_check_request(service))
    assert (exc_info.value.status, gateway.reads) == (grpc.StatusCode.NOT_FOUND, 0)


async def test_many_checks_read_the_state_once() -> None:
    gateway = FakeGateway()
    monitor = HealthMonitor(gateway.is_ready, interval=3600)
    await asyncio.gather(*(monitor.check(new_check_request()) for _ in range(100)))
    assert {*(await monitor.list_states(pb.HealthListRequest())).statuses} == {"", MOYIN}
    assert gateway.reads == 1


async def test_a_failure_is_read_once_per_interval_and_counts_as_not_serving() -> None:
    read_count = 0

    async def fail() -> bool:
        nonlocal read_count
        read_count += 1
        raise Fault(grpc.StatusCode.INTERNAL, "internal_error", "a bug")

    monitor = HealthMonitor(fail, interval=3600)
    checks = await asyncio.gather(*(monitor.check(new_check_request()) for _ in range(100)))
    assert {check.status for check in checks} == {NOT_SERVING}
    async with aclosing(monitor.watch(new_check_request())) as statuses:
        assert (await anext(statuses)).status == NOT_SERVING
    assert read_count == 1


async def test_a_watcher_gets_every_change() -> None:
    gateway = FakeGateway()
    async with aclosing(
        HealthMonitor(gateway.is_ready, interval=0.01).watch(new_check_request())
    ) as statuses:
        assert (await anext(statuses)).status == SERVING
        for is_ready, status in ((False, NOT_SERVING), (True, SERVING)):
            gateway.ready = is_ready
            assert (await anext(statuses)).status == status


async def test_a_watcher_of_an_unknown_service_stays() -> None:
    gateway = FakeGateway()
    async with aclosing(
        HealthMonitor(gateway.is_ready, interval=0.01).watch(new_check_request("x"))
    ) as statuses:
        assert (await anext(statuses)).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await anext(statuses)
    assert gateway.reads == 0


async def test_client_can_call_when_no_watcher_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client whose channel watches the server's health can send calls, even if it may not watch.

    The number of watchers is limited, and as watching needs no key, others could take all places.
    """
    monkeypatch.setattr(health, "_MAX_WATCHERS", 0)
    calls = health.HealthCalls()
    calls.grpc_health = HealthMonitor(FakeGateway().is_ready)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(calls, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": MOYIN},
    }
    options = [("grpc.service_config", json.dumps(config))]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            response = await stub.Check(new_check_request(), timeout=60, wait_for_ready=False)
    finally:
        await server.stop(None)
    assert response.status == SERVING


async def test_the_number_of_watchers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_MAX_WATCHERS", 1)
    monitor = HealthMonitor(FakeGateway().is_ready)
    async with aclosing(monitor.watch(new_check_request())) as first_watch:
        await anext(first_watch)
        with pytest.raises(Fault) as exc_info:
            await anext(monitor.watch(new_check_request()))
        assert exc_info.value.status is grpc.StatusCode.UNIMPLEMENTED
    async with aclosing(monitor.watch(new_check_request())) as second_watch:
        assert (await anext(second_watch)).status == SERVING
