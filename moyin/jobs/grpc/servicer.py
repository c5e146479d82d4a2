"""`MoyinCalls`: the service as methods of a class that gRPC servers, and Ray Serve's, call."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.bridge import GrpcBridge
from moyin.jobs.grpc.faults import Fault, tell

__all__ = ["MoyinCalls"]


class MoyinCalls:
    """Mix it in, or add it to a `grpc.aio.server`. Names and parameters are gRPC's and Serve's."""

    grpc_bridge: GrpcBridge

    async def Chat(
        self, request: pb.ChatRequest, grpc_context: Any
    ) -> AsyncGenerator[pb.ChatEvent, None]:
        metadata = grpc_context.invocation_metadata()
        try:
            async with aclosing(self.grpc_bridge.chat(request, metadata)) as events:
                async for event in events:
                    yield event
        except Fault as fault:
            tell(grpc_context, fault)

    async def SubmitJob(self, request: pb.SubmitJobRequest, grpc_context: Any) -> pb.Job:
        return await _answer(self.grpc_bridge.submit_job, request, grpc_context)

    async def GetJob(self, request: pb.GetJobRequest, grpc_context: Any) -> pb.Job:
        return await _answer(self.grpc_bridge.get_job, request, grpc_context)

    async def CancelJob(self, request: pb.CancelJobRequest, grpc_context: Any) -> pb.Job:
        return await _answer(self.grpc_bridge.cancel_job, request, grpc_context)

    async def WatchJob(
        self, request: pb.WatchJobRequest, grpc_context: Any
    ) -> AsyncGenerator[pb.JobEvent, None]:
        metadata = grpc_context.invocation_metadata()
        try:
            async with aclosing(self.grpc_bridge.watch_job(request, metadata)) as events:
                async for event in events:
                    yield event
        except Fault as fault:
            tell(grpc_context, fault)


async def _answer(call: Any, request: Any, grpc_context: Any) -> pb.Job:
    try:
        job: pb.Job = await call(request, grpc_context.invocation_metadata())
    except Fault as fault:
        tell(grpc_context, fault)
        return pb.Job()
    return job
