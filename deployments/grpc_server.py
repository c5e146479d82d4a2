"""Contains the gRPC server of a replica, which bounds the memory of messages that arrive.

gRPC keeps a message in memory until it is complete, and Serve authenticates nobody before that. So
a client without a key could fill the memory of a replica, which is then ended with all its requests.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from grpc.aio._server import Server
from ray import serve
from ray.serve._private import grpc_util

from moyin.errors import MoyinError

if TYPE_CHECKING:
    # Not at run time: it imports the database, which processes that only build apps do not need.
    from moyin.access.gatekeeper.identity import Authenticator

# The largest message: the default of gRPC, and so the most that clients accept from a server.
_MAX_MESSAGE_BYTES = 4 * 2**20
# The most messages that may arrive at the same time, of one tenant and of all callers without a
# valid key. All of them together occupy 256 MiB at most.
_MAX_ARRIVING = 32
_MAX_ARRIVING_IN_TOTAL = 64
_SECONDS_TO_ARRIVE = 20.0
_BEARER = "bearer "
# Counts like a caller of its own, so that it leaves places to health checks.
_REFLECTION = "\0reflection"
Handler = Callable[..., Any]


class ArrivingMessages:
    """Counts the messages that arrive, by caller; the caller without a valid key is ``""``."""

    def __init__(self) -> None:
        self._arriving: Counter[str] = Counter()

    @contextmanager
    def count(self, caller: str) -> Iterator[bool]:
        """Count a message during the block; yield False, without counting, if there are too many."""
        is_allowed = (
            self._arriving[caller] < _MAX_ARRIVING
            and self._arriving.total() < _MAX_ARRIVING_IN_TOTAL
        )
        self._arriving[caller] += is_allowed
        try:
            yield is_allowed
        finally:
            self._arriving[caller] -= is_allowed
            if not self._arriving[caller]:
                del self._arriving[caller]


class ReplicaGrpcServer(grpc_util.gRPCGenericServer):  # type: ignore[misc]
    """Server that reads messages of up to 4 MiB, a bounded number at a time.

    Methods that take one message are registered as methods that take a stream, because gRPC would
    otherwise read the message before it calls any code of ours.
    """

    def __init__(
        self, service_handler_factory: Handler, *, extra_options: list[Any] | None = None
    ) -> None:
        # Serve's own constructor has no parameter for the size.
        Server.__init__(
            self, thread_pool=None, generic_handlers=(), interceptors=(), maximum_concurrent_rpcs=None,
            compression=None,
            options=[
                # The first of two values counts.
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                *grpc_util.DEFAULT_GRPC_SERVER_OPTIONS, *(extra_options or []),
            ],
        )  # fmt: skip
        self.generic_rpc_handlers: list[Any] = []
        self.service_handler_factory = service_handler_factory
        self._passthrough_service_names: set[str] = set()
        self._arriving = ArrivingMessages()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        [handlers] = generic_rpc_handlers
        handlers._method_handlers = self._bound_streams(handlers._method_handlers)
        super().add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        super().add_registered_method_handlers(service_name, self._bound_streams(method_handlers))

    def _bound_streams(self, handlers: Mapping[str, Any]) -> dict[str, Any]:
        """Bound the number of calls with a stream of messages: only reflection has such methods."""

        def bound(handler: Any) -> Any:
            if not handler.request_streaming or handler.stream_stream is None:
                return handler

            async def stream(requests: Any, context: Any) -> AsyncGenerator[Any, None]:
                with self._arriving.count(_REFLECTION) as is_allowed:
                    if not is_allowed:
                        await _refuse_message(context)
                    async for message in handler.stream_stream(requests, context):
                        yield message

            return handler._replace(stream_stream=stream)

        return {name: bound(handler) for name, handler in handlers.items()}

    def _override_method_handler(self, service_method: str, method_handler: Any) -> Any:
        handler = super()._override_method_handler(service_method, method_handler)
        if handler.request_streaming:
            return handler
        call, stream = handler.unary_unary, handler.unary_stream

        async def read_and_call(requests: AsyncIterator[Any], context: Any) -> Any:
            return await call(await self._read_request(requests, context), context)

        async def read_and_stream(
            requests: AsyncIterator[Any], context: Any
        ) -> AsyncGenerator[Any, None]:
            async for message in stream(await self._read_request(requests, context), context):
                yield message

        return handler._replace(
            request_streaming=True, stream_unary=read_and_call, stream_stream=read_and_stream
        )

    async def _read_request(self, requests: AsyncIterator[Any], context: Any) -> Any:
        """Return the only message of a call, or end the call with an error."""
        caller = await find_caller(context.invocation_metadata(), _find_authenticator())
        with self._arriving.count(caller) as is_allowed:
            if not is_allowed:
                await _refuse_message(context)
            try:
                async with asyncio.timeout(_SECONDS_TO_ARRIVE):
                    return await anext(requests)
            except TimeoutError:
                await context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not arrive in time"
                )
            except StopAsyncIteration:
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, "the call must have one message"
                )


async def _refuse_message(context: Any) -> None:
    await context.abort(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages are arriving; try again in a second"
    )


async def find_caller(metadata: Any, authenticator: Authenticator | None) -> str:
    """Return the tenant whose key the metadata of a call contain, or "" without a valid key."""
    values = {name: value for name, value in metadata or () if isinstance(value, str)}
    header = values.get("authorization", "")
    key = header[len(_BEARER) :] if header[: len(_BEARER)].lower() == _BEARER else ""
    key = key or values.get("x-api-key", "")
    if not key or authenticator is None:
        return ""
    try:
        return (await authenticator.authenticate(key)).owner
    except MoyinError:
        # The call itself is refused with the details of the error.
        return ""


def _find_authenticator() -> Authenticator | None:
    """Return the authenticator of the app that this replica serves, if it has gRPC calls."""
    authenticator: Authenticator | None = getattr(
        serve.get_replica_context().servable_object, "grpc_authenticator", None
    )
    return authenticator


def install_grpc_server() -> None:
    """Make Serve use `ReplicaGrpcServer` in this process; it has no setting for that."""
    grpc_util.gRPCGenericServer = ReplicaGrpcServer
