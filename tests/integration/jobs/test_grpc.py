"""Tests the gRPC service moyin.v1 through Serve's ingress with a plain grpcio client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import psutil
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.moyin_pb2_grpc import MoyinStub
from moyin.jobs.grpc.translate import to_job_message
from moyin.system.processes import find_processes
from tests.chaos.graphs import picture, sleepy
from tests.examples import read_example
from tests.stack import RecordMeasurement, RunningStack

# Serve has one gRPC port for all apps; calls without this are for the gateway.
APP = ("application", "gateway")
MOYIN = "moyin.v1.Moyin"


@pytest.fixture
async def stub(gateway: RunningStack) -> AsyncIterator[MoyinStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.ports.grpc}") as channel:
        yield MoyinStub(channel)


@pytest.fixture
def key_metadata(gateway: RunningStack) -> list[tuple[str, str]]:
    return [APP, ("authorization", f"Bearer {gateway.api_key}")]


async def test_chat_answer_is_streamed_over_grpc(
    stub: MoyinStub, key_metadata: list[tuple[str, str]]
) -> None:
    request = pb.ChatRequest(
        model="auto",
        messages=[pb.ChatMessage(role="user", content="Count from one to twenty.")],
        max_tokens=24,
        temperature=0,
    )
    events = [event async for event in stub.Chat(request, metadata=key_metadata)]
    assert (events[0].backend, events[0].model) == ("local", "smollm2-135m")
    assert len([event for event in events if event.text]) > 3
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"]
    [usage] = [event.usage for event in events if event.HasField("usage")]
    assert usage.completion_tokens == 24
    assert events[-1].HasField("cost_usd")


async def test_job_is_submitted_watched_and_finished(
    stub: MoyinStub, key_metadata: list[tuple[str, str]]
) -> None:
    job_json = json.dumps({"kind": "render", "workflow": picture(0x6060), "metadata": {"a": "b"}})
    request = pb.SubmitJobRequest(job_json=job_json, idempotency_key="grpc-render-once")
    job, same_job = [await stub.SubmitJob(request, metadata=key_metadata) for _ in range(2)]
    assert job.id == same_job.id
    assert dict(job.metadata) == {"a": "b"}
    events = [
        event async for event in stub.WatchJob(pb.WatchJobRequest(id=job.id), metadata=key_metadata)
    ]
    assert events[-1].type == "succeeded"
    assert {event.WhichOneof("data") for event in events} >= {"status", "step"}
    last_status = events[-1].status
    assert (last_status.job.id, last_status.job.status, last_status.attempt) == (
        job.id,
        pb.JOB_STATUS_SUCCEEDED,
        1,
    )
    resume_request = pb.WatchJobRequest(id=job.id, after=events[-2].id)
    assert [event.id async for event in stub.WatchJob(resume_request, metadata=key_metadata)] == [
        events[-1].id
    ]
    finished_job = await stub.GetJob(pb.GetJobRequest(id=job.id), metadata=key_metadata)
    assert finished_job.status == pb.JOB_STATUS_SUCCEEDED
    assert finished_job.artifacts[0].media_type == "image/png"
    assert (
        json.loads(finished_job.outputs_json)[0]["artifacts"][0]["id"]
        == finished_job.artifacts[0].id
    )


async def test_a_job_is_cancelled_retried_and_deleted(
    stub: MoyinStub, key_metadata: list[tuple[str, str]]
) -> None:
    job_json = json.dumps({"kind": "render", "workflow": sleepy(60, 0x6161), "priority": 4})
    job = await stub.SubmitJob(pb.SubmitJobRequest(job_json=job_json), metadata=key_metadata)
    assert (job.priority, job.HasField("queued_for")) == (4, True)
    for attempt in (1, 2):
        cancelled_job = await stub.CancelJob(pb.CancelJobRequest(id=job.id), metadata=key_metadata)
        assert cancelled_job.cancel_requested_by.kind == "key"
        event_stream = stub.WatchJob(pb.WatchJobRequest(id=job.id), metadata=key_metadata)
        last_event = [event async for event in event_stream][-1]
        assert (last_event.type, last_event.status.attempt) == ("cancelled", attempt)
        if attempt == 1:
            retried_job = await stub.RetryJob(pb.RetryJobRequest(id=job.id), metadata=key_metadata)
            assert (retried_job.id, retried_job.status, retried_job.attempts) == (
                job.id,
                pb.JOB_STATUS_QUEUED,
                2,
            )
    await stub.DeleteJob(pb.DeleteJobRequest(id=job.id), metadata=key_metadata)
    for request in (pb.GetJobRequest(id=job.id), pb.DeleteJobRequest(id=job.id)):
        with pytest.raises(grpc.aio.AioRpcError) as exc_info:
            await _call_method(stub, request, key_metadata)
        assert exc_info.value.code() is grpc.StatusCode.NOT_FOUND


async def test_jobs_are_listed_by_filters_and_pages(
    gateway: RunningStack, stub: MoyinStub, key_metadata: list[tuple[str, str]]
) -> None:
    run_label = uuid4().hex
    job_body = {
        "kind": "http",
        "request": {"path": "/v1/models"},
        "metadata": {"grpc list+&": run_label},
    }
    submit_request = pb.SubmitJobRequest(job_json=json.dumps(job_body))
    jobs = [await stub.SubmitJob(submit_request, metadata=key_metadata) for _ in range(3)]
    for job in jobs:
        event_stream = stub.WatchJob(pb.WatchJobRequest(id=job.id), metadata=key_metadata)
        assert [event.type async for event in event_stream][-1] == "succeeded"
    request = pb.ListJobsRequest(
        status=[pb.JOB_STATUS_SUCCEEDED, pb.JOB_STATUS_FAILED], kind="http", limit=2,
        metadata={"grpc list+&": run_label}, created_after=jobs[0].created_at,
    )  # fmt: skip
    listed_jobs: list[pb.Job] = []
    while True:
        page = await stub.ListJobs(request, metadata=key_metadata)
        assert len(page.jobs) <= 2
        listed_jobs += page.jobs
        if not page.next_cursor:
            break
        request.cursor = page.next_cursor
    assert [job.id for job in listed_jobs] == [job.id for job in reversed(jobs)]
    # The same page over HTTP.
    query = {"metadata.grpc list+&": run_label, "status": "succeeded"}
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with (
        aiohttp.ClientSession(gateway.url, headers=headers) as session,
        session.get("/jobs", params=query) as response,
    ):
        page_body = await response.json()
    assert [to_job_message(body) for body in page_body["jobs"]] == listed_jobs
    empty_request = pb.ListJobsRequest(
        metadata={"grpc list+&": run_label}, created_before=jobs[0].created_at
    )
    assert not (await stub.ListJobs(empty_request, metadata=key_metadata)).jobs


async def test_health_checks_need_no_key(gateway: RunningStack) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.ports.grpc}") as channel:
        health = HealthStub(channel)
        for service in ("", MOYIN):
            health_response = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert health_response.status == health_pb2.HealthCheckResponse.SERVING
        all_health = await health.List(health_pb2.HealthListRequest())
        assert {*all_health.statuses} == {"", MOYIN}
        for service, status in (
            (MOYIN, health_pb2.HealthCheckResponse.SERVING),
            ("models", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN),
        ):
            health_stream = health.Watch(health_pb2.HealthCheckRequest(service=service))
            assert (await anext(aiter(health_stream))).status == status
            health_stream.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as exc_info:
            await health.Check(health_pb2.HealthCheckRequest(service="models"))
        assert exc_info.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as exc_info:
            await health.Check(
                health_pb2.HealthCheckRequest(), metadata=[("application", "models")]
            )
        assert exc_info.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_channel_that_checks_health_sends_its_calls(
    gateway: RunningStack, key_metadata: list[tuple[str, str]]
) -> None:
    """A client whose channel watches the server's health finds it healthy, and so sends its calls."""
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": MOYIN},
    }
    options = [("grpc.service_config", json.dumps(config))]
    address = f"127.0.0.1:{gateway.ports.grpc}"
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        page = await MoyinStub(channel).ListJobs(
            pb.ListJobsRequest(limit=1), metadata=key_metadata, timeout=60
        )
    assert len(page.jobs) <= 1


def test_reflection_describes_the_services(gateway: RunningStack) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports.grpc}") as channel:
        reflection_database = ProtoReflectionDescriptorDatabase(channel)
        services = {*reflection_database.get_services()}
        pool = DescriptorPool(reflection_database)
        service = pool.FindServiceByName(MOYIN)
        method_names = {method.name for method in service.methods}
        with pytest.raises(KeyError):
            pool.FindServiceByName("moyin.v1.NoSuch")
    assert services == {MOYIN, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert method_names == {
        method.name for method in pb.DESCRIPTOR.services_by_name["Moyin"].methods
    }
    fields = pool.FindMessageTypeByName("moyin.v1.Job").fields_by_name
    assert {*fields} == {*pb.Job.DESCRIPTOR.fields_by_name}


async def test_watch_ends_soon_after_its_key_is_revoked(
    gateway: RunningStack,
    stub: MoyinStub,
    key_metadata: list[tuple[str, str]],
    record_measurement: RecordMeasurement,
) -> None:
    key_output = gateway.run("keys", "create", "admin", "--scope", "jobs:read").stdout.split()
    [secret] = [word for word in key_output if word.startswith("moyin_")]
    job_json = json.dumps({"kind": "render", "workflow": sleepy(60, 0x6262)})
    job = await stub.SubmitJob(pb.SubmitJobRequest(job_json=job_json), metadata=key_metadata)
    own_metadata = [APP, ("authorization", f"Bearer {secret}")]
    event_stream = stub.WatchJob(pb.WatchJobRequest(id=job.id), metadata=own_metadata)
    try:
        await anext(aiter(event_stream))
        await asyncio.to_thread(gateway.run, "keys", "revoke", secret.split("_")[1])
        started_at = asyncio.get_running_loop().time()
        with pytest.raises(grpc.aio.AioRpcError) as exc_info:
            async with asyncio.timeout(10):
                async for _ in event_stream:
                    continue
        record_measurement(
            f"gRPC: ended {asyncio.get_running_loop().time() - started_at:.1f} s after its key"
        )
        assert exc_info.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        await stub.CancelJob(pb.CancelJobRequest(id=job.id), metadata=key_metadata)


@pytest.mark.parametrize(
    ("metadata", "request_", "status", "code"),
    [
        ([APP], pb.GetJobRequest(id="x"), grpc.StatusCode.UNAUTHENTICATED, "missing_api_key"),
        (
            [("application", "models")],
            pb.GetJobRequest(id="x"),
            grpc.StatusCode.UNIMPLEMENTED,
            "route_not_found",
        ),
        (
            [("application", "models")],
            pb.ChatRequest(model="auto", messages=[pb.ChatMessage(role="user", content="x")]),
            grpc.StatusCode.UNIMPLEMENTED,
            "route_not_found",
        ),
        (
            [APP, ("x-api-key", "moy_wrong_key")],
            pb.GetJobRequest(id="x"),
            grpc.StatusCode.UNAUTHENTICATED,
            "invalid_api_key",
        ),
        (None, pb.GetJobRequest(id="a b"), grpc.StatusCode.NOT_FOUND, "job_not_found"),
        (
            None,
            pb.GetJobRequest(id="../jobs"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_request",
        ),
        (None, pb.GetJobRequest(id=".."), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (
            None,
            pb.SubmitJobRequest(job_json='{"kind": "dance"}'),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_request",
        ),
        (None, pb.SubmitJobRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_json"),
        (
            None,
            pb.ChatRequest(model="no-such", messages=[pb.ChatMessage(role="user", content="x")]),
            grpc.StatusCode.NOT_FOUND,
            "model_not_found",
        ),
        (None, pb.WatchJobRequest(id="none"), grpc.StatusCode.NOT_FOUND, "job_not_found"),
        (None, pb.RetryJobRequest(id="none"), grpc.StatusCode.NOT_FOUND, "job_not_found"),
        (None, pb.DeleteJobRequest(id="none"), grpc.StatusCode.NOT_FOUND, "job_not_found"),
        (None, pb.DeleteJobRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        *(
            (None, request, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
            for request in (
                pb.ListJobsRequest(limit=0),
                pb.ListJobsRequest(limit=201),
                pb.ListJobsRequest(cursor="none"),
                pb.ListJobsRequest(kind="dance"),
                pb.ListJobsRequest(pool=""),
                pb.ListJobsRequest(status=[pb.JOB_STATUS_UNSPECIFIED]),
                pb.ListJobsRequest(metadata={"": "x"}),
                pb.ListJobsRequest(metadata={"a": "\0"}),
                pb.ListJobsRequest(metadata={"a": "x" * 11_900}),
                pb.ListJobsRequest(metadata={"a": "x" * 200_000}),
            )
        ),
        ([APP], pb.ListJobsRequest(limit=0), grpc.StatusCode.UNAUTHENTICATED, "missing_api_key"),
    ],
)
async def test_errors_keep_their_codes(
    stub: MoyinStub,
    key_metadata: list[tuple[str, str]],
    metadata: list[tuple[str, str]] | None,
    request_: Any,
    status: grpc.StatusCode,
    code: str,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as exc_info:
        await _call_method(
            stub, request_, [*(metadata or key_metadata), ("x-request-id", "grpc-test-1")]
        )
    assert exc_info.value.code() is status
    trailers = dict(exc_info.value.trailing_metadata() or ())
    status_details = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status_details.code == status.value[0]
    error_info, request_info = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert status_details.details[0].Unpack(error_info) and status_details.details[1].Unpack(
        request_info
    )
    assert (error_info.reason, request_info.request_id) == (code, "grpc-test-1")


async def test_grpc_listens_on_loopback_only(gateway: RunningStack, stub: MoyinStub) -> None:
    ports = gateway.ports
    own_ports = {ports.grpc, ports.fallback_grpc, *range(ports.replicas, ports.replicas + 200)}
    listening_addresses = {
        (connection.laddr.ip, connection.laddr.port)
        for process in find_processes(str(gateway.data))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in own_ports
    }
    assert ports.grpc in {port for _, port in listening_addresses}
    assert {ip.removeprefix("::ffff:") for ip, _ in listening_addresses} == {"127.0.0.1"}


async def _call_method(stub: MoyinStub, request: Any, metadata: list[tuple[str, str]]) -> None:
    method_name = type(request).__name__.removesuffix("Request")
    call = getattr(stub, method_name)(request, metadata=metadata)
    async with asyncio.timeout(20):
        if method_name in ("Chat", "WatchJob"):
            async for _ in call:
                continue
        else:
            await call


def test_reflection_example_prints_the_state_and_the_methods(
    gateway: RunningStack, capsys: pytest.CaptureFixture[str]
) -> None:
    example = read_example("docs/grpc.md", "reflection", "python")
    exec(example.replace("127.0.0.1:9000", f"127.0.0.1:{gateway.ports.grpc}"), {})
    state, *calls = capsys.readouterr().out.splitlines()
    assert state == "SERVING"
    assert "ListJobs ListJobsRequest ListJobsResponse" in calls
    assert len(calls) == len(pb.DESCRIPTOR.services_by_name["Moyin"].methods)
