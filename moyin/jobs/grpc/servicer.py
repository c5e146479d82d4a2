"""Defines `MoyinCalls`, the service as methods that a gRPC server or Ray Serve calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.bridge import GrpcBridge
from moyin.jobs.grpc.faults import Fault, end_call

__all__ = ["MoyinCalls"]


class MoyinCalls:
    """Answers the calls of moyin.v1: a mix-in of a Serve deployment, or a `grpc.aio` servicer.

    The names of methods and parameters are given by gRPC and Serve.
    """

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
            end_call(grpc_context, fault)

    async def SubmitJob(self, request: pb.SubmitJobRequest, grpc_context: Any) -> pb.Job:
        return await _respond(self.grpc_bridge.submit_job, request, grpc_context)

    async def GetJob(self, request: pb.GetJobRequest, grpc_context: Any) -> pb.Job:
        return await _respond(self.grpc_bridge.get_job, request, grpc_context)

    async def CancelJob(self, request: pb.CancelJobRequest, grpc_context: Any) -> pb.Job:
        return await _respond(self.grpc_bridge.cancel_job, request, grpc_context)

    async def WatchJob(
        self, request: pb.WatchJobRequest, grpc_context: Any
    ) -> AsyncGenerator[pb.JobEvent, None]:
        metadata = grpc_context.invocation_metadata()
        try:
            async with aclosing(self.grpc_bridge.watch_job(request, metadata)) as events:
                async for event in events:
                    yield event
        except Fault as fault:
            end_call(grpc_context, fault)


async def _respond(call: Any, request: Any, grpc_context: Any) -> pb.Job:
    try:
        job: pb.Job = await call(request, grpc_context.invocation_metadata())
    except Fault as fault:
        end_call(grpc_context, fault)
        return pb.Job()
    return job
