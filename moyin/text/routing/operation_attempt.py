"""Calls one back end once for an operation such as speech, and records usage, cost and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_core import from_json

from moyin.domain.backend import OpenRequest, OpenResponse
from moyin.domain.money import Usage, format_usd
from moyin.domain.operation import UNITS, Operation, OperationUsage
from moyin.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ModelNotFound,
    MoyinError,
)
from moyin.http.sse import FrameSplitter, encode_cost_comment, parse_event
from moyin.store.usage import CANCELLED
from moyin.text.protocol.openai.errors import render_error_event
from moyin.text.protocol.openai.operations import (
    EVENT_STREAM_TYPE,
    JSON_TYPE,
    OperationRequest,
)
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.backend_runtime import Lease
from moyin.text.routing.compiled_route import RouteTarget
from moyin.text.routing.ledger import build_usage_entry
from moyin.text.routing.metered_stream import to_client_error
from moyin.text.routing.routed_call import CallAccounting
from moyin.text.routing.telemetry import CallRecord

_ESTIMATED_HEADER = (b"x-moyin-estimated", b"true")
_NO_CACHE_HEADER = (b"cache-control", b"no-cache")
_DONE = b"[DONE]"


def compute_pico_cost(
    target: RouteTarget,
    operation: Operation,
    usage: OperationUsage,
    seconds: float,
    *,
    shares_gpu: bool = True,
) -> int:
    """Return the cost of a call in picodollars.

    For a model with a GPU rate, the GPU time determines the cost. For other models, the tokens and
    the operation's units, such as images or seconds of audio, determine it.

    Args:
        seconds: the duration of the call.
        shares_gpu: True if concurrent calls share the cost of the GPU.
    """
    model = target.model
    if model.gpu is not None:
        return model.gpu.compute_pico_cost(seconds, target.runtime.load if shares_gpu else 1)
    return target.get_price().compute_pico_cost(usage.tokens) + model.unit_rates.compute_pico_cost(
        UNITS[operation], usage.quantity
    )


# Not frozen, because `run` sets its times.
@dataclass(kw_only=True, slots=True)
class OperationAttempt:
    """One call to a back end for an operation such as speech or a moderation.

    `run` may be called only once.

    Attributes:
        reason: the reason why this target was chosen, for the header ``x-moyin-route``.
        lease: the back-end slot that the call holds. A streamed answer releases it when it ends;
            for other answers the caller releases it.
    """

    request: OperationRequest
    context: RoutingContext
    accounting: CallAccounting
    target: RouteTarget
    reason: str
    lease: Lease
    traceparent: bytes | None
    _started_at: float = field(default=0.0, init=False)
    _first_piece_seconds: float | None = field(default=None, init=False)

    async def run(self, deadline: float) -> Answer:
        """Call the target and return its answer; a stream is returned after its first bytes.

        Args:
            deadline: the ``loop.time()`` by which the request must end.

        Raises:
            MoyinError: the call failed before the first byte.
        """
        runtime = self.target.runtime
        self._started_at = asyncio.get_running_loop().time()
        try:
            return await self._call_backend(min(self._started_at + runtime.timeout, deadline))
        except asyncio.CancelledError:
            # The back end has probably read the request and charges for it.
            self.record(self.request.expected_usage, error=CANCELLED)
            raise
        except MoyinError as error:
            if isinstance(error, ModelNotFound):
                self.target.model_breaker.fail()
            if isinstance(error, BackendError) and error.may_be_billed:
                usage = self.request.expected_usage
                self.record(usage, error=error.code, charges_budget=False)
            else:
                self._report_call(Usage(), error.code)
            raise

    async def _call_backend(self, deadline: float) -> Answer:
        request, target = self.request, self.target
        backend = target.runtime.operations
        assert backend is not None, f"the back end {target.runtime.name!r} has no operations"
        body = request.to_upstream(target.model.upstream)
        response = await backend.open(
            OpenRequest(
                path=request.path,
                content_type=body.content_type,
                get_content=body.get_content,
                length=body.length,
                deadline=deadline,
            )
        )
        try:
            if not request.accepts(response.media_type):
                raise BackendUnavailable(
                    f"the back end's response to {request.path} has the unexpected media type "
                    f"{response.media_type[:64] or 'none'!r}",
                    may_be_billed=True,
                )
            if response.media_type == JSON_TYPE:
                return await self._read_json(response)
            if response.media_type.startswith("text/") and not _has_events(response):
                return await self._read_text(response)
            return await self._open_stream(response)
        except BaseException:
            response.close()
            raise

    async def _read_json(self, response: OpenResponse) -> Answer:
        raw = await response.read()
        try:
            data = from_json(raw)
        except ValueError:
            raise BackendUnavailable(
                "the back end's response is not valid JSON; check its URL in the configuration",
                may_be_billed=True,
            ) from None
        if not isinstance(data, dict):
            raise BackendUnavailable(
                "the back end's response must be a JSON object; check its URL in the configuration",
                may_be_billed=True,
            )
        if data.get("error"):
            # Some servers report errors with status 200.
            raise BackendUnavailable(
                "the back end returned an error in a response with status 200; retry later"
            )
        usage = self.request.read_usage(data)
        body = self.request.complete_response(raw, data, self.context.request_id)
        return self._build_answer(JSON_TYPE, body, usage)

    async def _read_text(self, response: OpenResponse) -> Answer:
        body = await response.read()
        return self._build_answer(response.content_type, body, self.request.read_usage(None))

    def _build_answer(self, content_type: str, body: bytes, usage: OperationUsage) -> Answer:
        self.target.model_breaker.succeed()
        cost = self.record(usage)
        return Answer(
            headers=(*self._build_headers(content_type, usage), (b"x-moyin-cost-usd", cost)),
            body=body,
            usage=usage.tokens,
        )

    async def _open_stream(self, response: OpenResponse) -> Answer:
        first_byte_timeout = self.target.runtime.first_byte_timeout
        pieces = response.iterate_pieces()
        try:
            async with asyncio.timeout(first_byte_timeout):
                first_piece = await anext(pieces)
        except StopAsyncIteration:
            raise BackendUnavailable(
                "the back end ended the stream without sending data; retry later",
                may_be_billed=True,
            ) from None
        except TimeoutError:
            raise BackendTimeout(
                f"the back end did not send the first byte within {first_byte_timeout:g} seconds; retry later"
            ) from None
        self._first_piece_seconds = asyncio.get_running_loop().time() - self._started_at
        self.target.model_breaker.succeed()
        self.lease.transfer_to_stream()
        usage = self.request.read_usage(None)
        headers = (*self._build_headers(response.content_type, usage), _NO_CACHE_HEADER)
        has_events = _has_events(response)
        if not has_events:
            # The request alone determines the units of such a call.
            pico_cost = compute_pico_cost(
                self.target, self.request.operation, usage, self._first_piece_seconds
            )
            if self.target.model.gpu is None:
                headers = (*headers, (b"x-moyin-cost-usd", format_usd(pico_cost).encode()))
        stream = OperationStream(
            self.context.request_id,
            first_piece,
            pieces,
            tap=_EventTap() if has_events else None,
            finish=self._finish_stream,
        )
        return Answer(headers=headers, stream=stream)

    def _build_headers(
        self, content_type: str, usage: OperationUsage
    ) -> tuple[tuple[bytes, bytes], ...]:
        return (
            (b"content-type", content_type.encode("latin-1", "replace")),
            *self.target.headers,
            (b"x-moyin-route", self.reason.encode()),
            *((_ESTIMATED_HEADER,) if usage.is_estimated else ()),
        )

    def _finish_stream(
        self, last_event: Mapping[str, Any] | None, error: BaseException | None
    ) -> bytes:
        """Record a stream, release its slot, and return its cost as text."""
        error_code = None
        if error is not None:
            is_cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
            error_code = CANCELLED if is_cancelled else getattr(error, "code", MoyinError.code)
        cost = self.record(self.request.read_usage(last_event), error=error_code)
        self.lease.release(error)
        return cost

    def record(
        self, usage: OperationUsage, *, error: str | None = None, charges_budget: bool = True
    ) -> bytes:
        """Record the call in the ledger and return its cost in US dollars as text.

        Args:
            error: the code of the error that ended the answer early, if there was one.
            charges_budget: False for the estimated usage of a failed call, which is not charged to
                the caller's budgets, because they reserved money for one answer only.
        """
        context, target, operation = self.context, self.target, self.request.operation
        if error is not None:
            usage = self._estimate_missing_tokens(usage)
        seconds = self._report_call(usage.tokens, error)
        pico_cost = compute_pico_cost(target, operation, usage, seconds)
        entry = build_usage_entry(
            context,
            self.request.model,
            target.runtime.name,
            target.model.name,
            usage.tokens,
            pico_cost=pico_cost,
            error=error,
        )
        entry.operation, entry.unit = operation.value, UNITS[operation].value
        entry.quantity = usage.quantity
        self.accounting.ledger.record(entry)
        if charges_budget and context.budget is not None:
            token_count = usage.tokens.prompt_tokens + usage.tokens.output_tokens
            context.budget.record(entry.cost_usd, token_count)
        if error is None:
            target.runtime.record_service_time(seconds)
        return format_usd(pico_cost).encode()

    def _estimate_missing_tokens(self, usage: OperationUsage) -> OperationUsage:
        """Return the usage of an answer that ended early, with the maximum tokens if it has none.

        Nothing is added if the target has no price per token, or never reports tokens.
        """
        request, target = self.request, self.target
        # Audio streams never report tokens, so their tokens are not billed.
        may_report = request.accepts(JSON_TYPE) or request.accepts(EVENT_STREAM_TYPE)
        has_token_price = target.model.gpu is None and not target.is_free
        if usage.tokens != Usage() or not may_report or not has_token_price:
            return usage
        return replace(usage, tokens=request.max_usage.tokens, is_estimated=True)

    def _report_call(self, usage: Usage, error: str | None) -> float:
        context, target = self.context, self.target
        seconds = asyncio.get_running_loop().time() - self._started_at
        self.accounting.telemetry.record_call(
            CallRecord(
                operation=self.request.operation.value,
                provider=target.runtime.provider,
                backend=target.runtime.name,
                requested_model=self.request.model,
                model=target.model.name,
                request_id=context.request_id,
                usage=usage,
                seconds=seconds,
                first_token_seconds=self._first_piece_seconds,
                error=error,
                ended_at=time.time(),
                traceparent=self.traceparent,
            )
        )
        return seconds


class OperationStream:
    """Stream of an answer (audio bytes or events) that records its usage at the end.

    ``finish`` is called exactly once, whether the stream ends, fails or is closed.

    Args:
        first_piece: the first bytes of the stream, which were already read.
        tap: reads the usage from events; None for other bytes.
        finish: called with the last event that has usage, or None, and with the error that ended
            the stream, or None. It returns the cost as text.
    """

    final_usage: Usage | None = None

    def __init__(
        self,
        request_id: str,
        first_piece: bytes,
        pieces: AsyncGenerator[bytes, None],
        *,
        tap: _EventTap | None,
        finish: Callable[[Mapping[str, Any] | None, BaseException | None], bytes],
    ) -> None:
        self._request_id = request_id
        self._pieces = pieces
        self._tap = tap
        self._finish = finish
        self._is_finished = False
        self._chunks = self._iterate_pieces(first_piece)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """Close the stream, and cancel the request to the back end if it still runs."""
        await self._chunks.aclose()
        if not self._is_finished:
            # The stream was closed before its first piece was read.
            self._finish_stream(asyncio.CancelledError())
            await self._pieces.aclose()

    async def _iterate_pieces(self, first_piece: bytes) -> AsyncGenerator[bytes, None]:
        tap = self._tap
        try:
            async with aclosing(self._pieces) as pieces:
                yield self._feed_tap(first_piece)
                async for piece in pieces:
                    yield self._feed_tap(piece)
        except MoyinError as error:
            cost = self._finish_stream(error)
            if tap is None:
                # Breaking the connection is the only way to show the client that the audio is
                # incomplete.
                raise to_client_error(error) from None
            event = render_error_event(to_client_error(error), self._request_id)
            # Terminates an event that was received only partly.
            yield (b"\n\n" if tap.is_within_event else b"") + event + encode_cost_comment(cost)
        except BaseException as error:
            self._finish_stream(error)
            raise
        else:
            cost = self._finish_stream(None)
            if tap is not None:
                yield encode_cost_comment(cost)

    def _feed_tap(self, piece: bytes) -> bytes:
        if self._tap is not None:
            self._tap.feed(piece)
        return piece

    def _finish_stream(self, error: BaseException | None) -> bytes:
        self._is_finished = True
        return self._finish(None if self._tap is None else self._tap.last_event, error)


class _EventTap:
    """Reads the last event with usage from a stream of events.

    Attributes:
        last_event: the event; None if no event had usage.
    """

    def __init__(self) -> None:
        self.last_event: Mapping[str, Any] | None = None
        self._frames = FrameSplitter()

    @property
    def is_within_event(self) -> bool:
        return self._frames.is_within_event

    def feed(self, piece: bytes) -> None:
        for frame in self._frames.feed(piece):
            if frame.data and frame.data != _DONE and b'"usage"' in frame.data:
                event = parse_event(frame)
                if isinstance(event.get("usage"), Mapping):
                    self.last_event = event


def _has_events(response: OpenResponse) -> bool:
    return response.media_type == EVENT_STREAM_TYPE
