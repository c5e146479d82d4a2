"""Connects to Temporal, in the namespace of jobs and with Moyin's encoding of payloads."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from pydantic import TypeAdapter
from pydantic_core import to_json
from temporalio.api.common.v1 import Payload
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.converter import (
    BinaryNullPayloadConverter,
    CompositePayloadConverter,
    DataConverter,
    EncodingPayloadConverter,
)
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from moyin.errors import ServiceUnavailable

_log = logging.getLogger(__name__)
RPC_TIMEOUT = timedelta(seconds=3)
# A worker that does not complete a workflow task within this time counts as lost.
TASK_TIMEOUT = timedelta(seconds=5)
# For so many seconds after a failure, further requests fail at once instead of waiting for a
# timeout.
_PAUSE_SECONDS = 1.0
_ENCODING = "json/plain"
# One pydantic adapter for each type of payload, because creating an adapter takes most of the time
# of decoding. Temporal's own pydantic converter caches adapters only within a workflow.
_adapters: dict[Any, TypeAdapter[Any]] = {}


class _JsonConverter(EncodingPayloadConverter):
    """Encodes payloads as JSON, byte for byte as ``temporalio.contrib.pydantic`` does."""

    @property
    def encoding(self) -> str:
        return _ENCODING

    def to_payload(self, value: Any) -> Payload | None:
        return Payload(metadata={"encoding": _ENCODING.encode()}, data=to_json(value))

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        hint: Any = Any if type_hint is None else type_hint
        adapter = _adapters.get(hint)
        if adapter is None:
            adapter = _adapters[hint] = TypeAdapter(hint)
        return adapter.validate_json(payload.data)


class _PayloadConverter(CompositePayloadConverter):
    def __init__(self) -> None:
        super().__init__(BinaryNullPayloadConverter(), _JsonConverter())


DATA_CONVERTER = DataConverter(payload_converter_class=_PayloadConverter)


class TemporalConnection:
    """The shared connection to Temporal's namespace of jobs, opened when it is first used."""

    def __init__(self, address: str, namespace: str, *, retention: timedelta) -> None:
        self._address = address
        self._namespace = namespace
        self._retention = retention
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._paused_until = 0.0

    async def get_client(self) -> Client:
        """Return the connected client; raise ServiceUnavailable if Temporal does not respond."""
        if time.monotonic() < self._paused_until:
            raise _new_unavailable_error()
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def ping(self) -> None:
        """Raise ServiceUnavailable if Temporal does not respond."""
        client = await self.get_client()
        try:
            if await client.service_client.check_health(timeout=RPC_TIMEOUT):
                return
        except RPCError as error:
            raise self.report_outage(error) from error
        raise _new_unavailable_error()

    def report_outage(self, error: Exception) -> ServiceUnavailable:
        """Log a failed call and return the error to raise.

        For the next second, `get_client` raises an error at once instead of trying to connect.
        """
        _log.warning("Temporal at %s is unavailable: %s", self._address, error)
        self._paused_until = time.monotonic() + _PAUSE_SECONDS
        return _new_unavailable_error()

    async def _connect(self) -> Client:
        try:
            async with asyncio.timeout(RPC_TIMEOUT.total_seconds() * 2):
                client = await Client.connect(
                    self._address,
                    namespace=self._namespace,
                    data_converter=DATA_CONVERTER,
                    retry_config=RetryConfig(max_retries=2, max_elapsed_time_millis=2_000),
                )
                await self._ensure_namespace(client)
        except (RPCError, RuntimeError, TimeoutError) as error:
            # The SDK raises RuntimeError if it cannot connect.
            raise self.report_outage(error) from error
        return client

    async def _ensure_namespace(self, client: Client) -> None:
        request = RegisterNamespaceRequest(
            namespace=self._namespace,
            workflow_execution_retention_period=Duration(
                seconds=int(self._retention.total_seconds())
            ),
        )
        try:
            await client.workflow_service.register_namespace(request, timeout=RPC_TIMEOUT)
        except RPCError as error:
            # Not fatal: on a shared Temporal server, only its operator may register namespaces.
            if error.status not in (
                RPCStatusCode.ALREADY_EXISTS,
                RPCStatusCode.PERMISSION_DENIED,
                RPCStatusCode.UNIMPLEMENTED,
            ):
                raise


async def check_address(address: str) -> None:
    """Raise ServiceUnavailable if no Temporal server responds at the address."""
    try:
        async with asyncio.timeout(RPC_TIMEOUT.total_seconds()):
            await Client.connect(address)
    except (RuntimeError, TimeoutError) as error:
        # The SDK raises RuntimeError if it cannot connect.
        raise _new_unavailable_error() from error


def _new_unavailable_error() -> ServiceUnavailable:
    return ServiceUnavailable(
        "the job queue (Temporal) is not available; try again later", retry_after=2
    )
