"""Implements grpc.health.v1, without authentication, for load balancers and clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb

from moyin.jobs.grpc import moyin_pb2
from moyin.jobs.grpc.faults import Fault, Metadata, answer_call, stream_call

_log = logging.getLogger(__name__)
_SERVICES = ("", moyin_pb2.DESCRIPTOR.services_by_name["Moyin"].full_name)
# Minimum seconds between two reads of the state, independent of the number of calls.
_INTERVAL_SECONDS = 2.0
# The most watchers. They need no key, so they must not occupy all of the replica's requests.
_MAX_WATCHERS = 64
_Status = pb.HealthCheckResponse


class HealthMonitor:
    """Answers health checks from a cached state, which is refreshed after some seconds.

    Args:
        is_ready: returns True if calls can be served. If it raises `Fault`, the state is "not
            serving". A `Fault` with the status UNIMPLEMENTED is returned to the client instead.
    """

    def __init__(
        self, is_ready: Callable[[], Awaitable[bool]], *, interval: float = _INTERVAL_SECONDS
    ) -> None:
        self._is_ready = is_ready
        self._interval = interval
        self._reading = asyncio.Lock()
        self._read_at: float | None = None
        self._status = _Status.UNKNOWN
        self._watchers = 0

    async def check(
        self, request: pb.HealthCheckRequest, _: Metadata = ()
    ) -> pb.HealthCheckResponse:
        """Return the state of a service; raise `Fault` for a service that does not exist."""
        if request.service not in _SERVICES:
            raise Fault(
                grpc.StatusCode.NOT_FOUND,
                "not_found",
                "service must be empty or a service of this server, such as moyin.v1.Moyin",
            )
        return _Status(status=await self._read_status())

    async def list_states(
        self, request: pb.HealthListRequest, _: Metadata = ()
    ) -> pb.HealthListResponse:
        """Return the states of all services by name."""
        response = _Status(status=await self._read_status())
        return pb.HealthListResponse(statuses=dict.fromkeys(_SERVICES, response))

    async def watch(
        self, request: pb.HealthCheckRequest, _: Metadata = ()
    ) -> AsyncGenerator[pb.HealthCheckResponse, None]:
        """Yield the state of a service now and after each change.

        The state of an unknown service is SERVICE_UNKNOWN.
        """
        if self._watchers >= _MAX_WATCHERS:
            message = f"there are {_MAX_WATCHERS} watchers already; use Check"
            # After UNIMPLEMENTED, gRPC's clients send calls without watching. After any other error
            # they would send none, so that watchers without a key could lock out all clients.
            raise Fault(grpc.StatusCode.UNIMPLEMENTED, "overloaded", message)
        self._watchers += 1
        try:
            sent_status = None
            while True:
                is_known = request.service in _SERVICES
                status = await self._read_status() if is_known else _Status.SERVICE_UNKNOWN
                if status != sent_status:
                    yield _Status(status=status)
                    sent_status = status
                await asyncio.sleep(self._interval)
        finally:
            self._watchers -= 1

    async def _read_status(self) -> int:
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._read_at is None or now - self._read_at >= self._interval:
                try:
                    is_ready = await self._is_ready()
                except Fault as fault:
                    if fault.status is grpc.StatusCode.UNIMPLEMENTED:
                        raise
                    # Cached, because otherwise each anonymous call would cause a request to the
                    # gateway.
                    _log.warning("cannot read whether the gateway is ready: %s", fault)
                    is_ready = False
                self._status = _Status.SERVING if is_ready else _Status.NOT_SERVING
                self._read_at = asyncio.get_running_loop().time()
            return int(self._status)


class HealthCalls:
    """Serves the calls of grpc.health.v1; gRPC and Ray Serve prescribe the names of the methods."""

    grpc_health: HealthMonitor

    async def Check(
        self, request: pb.HealthCheckRequest, grpc_context: Any
    ) -> pb.HealthCheckResponse:
        return await answer_call(self.grpc_health.check, request, grpc_context, _Status())

    async def List(self, request: pb.HealthListRequest, grpc_context: Any) -> pb.HealthListResponse:
        empty_response = pb.HealthListResponse()
        return await answer_call(
            self.grpc_health.list_states, request, grpc_context, empty_response
        )

    async def Watch(
        self, request: pb.HealthCheckRequest, grpc_context: Any
    ) -> AsyncGenerator[pb.HealthCheckResponse, None]:
        responses = stream_call(self.grpc_health.watch, request, grpc_context)
        async with aclosing(responses) as statuses:
            async for status in statuses:
                yield status
