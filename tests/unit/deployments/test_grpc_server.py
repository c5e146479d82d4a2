"""Tests the bounds on messages that arrive at a replica's gRPC server, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Channel
from grpc_reflection.v1alpha import reflection_pb2
from ray.serve._private import grpc_util

from deployments import grpc_server
from deployments.grpc_server import ArrivingMessages, ReplicaGrpcServer, find_caller
from moyin.domain.identity import Identity
from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.moyin_pb2_grpc import MoyinServicer, MoyinStub, add_MoyinServicer_to_server
from moyin.testing.fakes import StaticAuthenticator


def _make_handler(*, service_method: str, streaming_type: Any) -> Any:
    """Return what Serve's factory returns: handlers whose responses are bytes."""
    if streaming_type.value.endswith("unary"):

        async def respond(request: Any, context: Any) -> bytes:
            return pb.Job(id=f"{len(request.job_json)}").SerializeToString()

        return respond

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        for number in range(2):
            yield pb.JobEvent(id=f"{request.id}{number}").SerializeToString()

    return stream


@pytest.fixture
async def channel(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Channel]:
    monkeypatch.setattr(grpc_server, "_find_authenticator", lambda: None)
    server = ReplicaGrpcServer(_make_handler)
    add_MoyinServicer_to_server(MoyinServicer(), server)
    grpc_util.enable_server_reflection(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield channel
    await server.stop(None)


async def test_calls_with_one_message_are_answered(channel: Channel) -> None:
    stub = MoyinStub(channel)
    assert (await stub.SubmitJob(pb.SubmitJobRequest(job_json="abc"))).id == "3"
    events = [event.id async for event in stub.WatchJob(pb.WatchJobRequest(id="j"))]
    assert events == ["j0", "j1"]


async def test_a_message_of_more_than_four_mebibytes_is_refused(channel: Channel) -> None:
    stub = MoyinStub(channel)
    job = await stub.SubmitJob(pb.SubmitJobRequest(job_json="x" * 4_000_000))
    assert job.id == "4000000"
    with pytest.raises(AioRpcError) as exc_info:
        await stub.SubmitJob(pb.SubmitJobRequest(job_json="x" * 5_000_000))
    assert exc_info.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_messages_that_do_not_arrive_are_bounded_and_ended(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "_MAX_ARRIVING", 2)
    monkeypatch.setattr(grpc_server, "_SECONDS_TO_ARRIVE", 1.0)
    start = channel.stream_unary(
        "/moyin.v1.Moyin/SubmitJob",
        request_serializer=pb.SubmitJobRequest.SerializeToString,
        response_deserializer=pb.Job.FromString,
    )
    calls = [start() for _ in range(3)]
    codes = sorted([(await call.code()).name for call in calls])
    assert codes == ["DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"]
    # Their places are free again.
    assert (await MoyinStub(channel).SubmitJob(pb.SubmitJobRequest(job_json="a"))).id == "1"


async def test_streams_of_reflection_are_bounded(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "_MAX_ARRIVING", 1)
    reflect = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    first_call = reflect()
    await first_call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    response = await first_call.read()
    names = [service.name for service in response.list_services_response.service]
    assert "moyin.v1.Moyin" in names
    assert await reflect().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await MoyinStub(channel).SubmitJob(pb.SubmitJobRequest(job_json="a"))).id == "1"
    first_call.cancel()


async def test_a_call_without_a_message_is_invalid(channel: Channel) -> None:
    call = channel.stream_unary("/moyin.v1.Moyin/SubmitJob")()
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_callers_without_a_key_leave_places_to_tenants() -> None:
    arriving = ArrivingMessages()
    blocks = [arriving.count("") for _ in range(33)]
    assert [block.__enter__() for block in blocks] == [True] * 32 + [False]
    with arriving.count("ann") as is_allowed:
        assert is_allowed
    for block in blocks:
        block.__exit__(None, None, None)
    with arriving.count("") as is_allowed:
        assert is_allowed


@pytest.mark.parametrize(
    ("metadata", "caller"),
    [
        ((("authorization", "Bearer good"),), "ann"),
        ((("x-api-key", "good"),), "ann"),
        ((("authorization", "Bearer bad"),), ""),
        ((("authorization", "Basic good"),), ""),
        ((("x-api-key", b"good"),), ""),
        ((), ""),
        (None, ""),
    ],
)
async def test_the_caller_of_a_call_is_found_by_its_key(metadata: Any, caller: str) -> None:
    authenticator = StaticAuthenticator({"good": Identity(owner="ann", key_id="k")})
    assert await find_caller(metadata, authenticator) == caller
    assert await find_caller(metadata, None) == ""


async def test_serve_creates_this_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray must use the class that `install_grpc_server` puts in place of its own."""
    monkeypatch.setattr(grpc_util, "gRPCGenericServer", grpc_util.gRPCGenericServer)
    grpc_server.install_grpc_server()
    options = grpc_util.gRPCOptions(port=0, grpc_servicer_functions=[])
    task, server = await grpc_util.start_grpc_server(
        _make_handler, options, event_loop=asyncio.get_running_loop()
    )
    assert isinstance(server, ReplicaGrpcServer)
    await server.stop(None)
    await task
