"""Calls one back end once for a request, and records usage, cost and latency of the call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_core import from_json

from moyin.domain.backend import PassThroughBackend, RawRequest
from moyin.domain.chat import ChatRequest, ChatResponse, EmbeddingRequest, EmbeddingResponse
from moyin.domain.money import Usage, format_usd
from moyin.domain.needs import estimate_tokens, estimate_tokens_from_bytes
from moyin.domain.transcript import Transcript
from moyin.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ModelNotFound,
    MoyinError,
    Overloaded,
)
from moyin.store.usage import CANCELLED, UsageEntry
from moyin.text.routing.answer import Answer
from moyin.text.routing.backend_runtime import BackendRuntime, Lease
from moyin.text.routing.compiled_route import RouteTarget
from moyin.text.routing.ledger import build_usage_entry
from moyin.text.routing.metered_stream import MeteredStream
from moyin.text.routing.omission import describe_omission, omit_unusable_effort
from moyin.text.routing.request_gaps import OPTIONAL_PATHS, needs_translation, require_no_urls
from moyin.text.routing.routed_call import RoutedCall, StreamHold
from moyin.text.routing.stream_sources import ForwardedSource, StreamSource, TranslatedSource
from moyin.text.routing.telemetry import CallRecord

_JSON_HEADER = (b"content-type", b"application/json")
_NO_CACHE_HEADER = (b"cache-control", b"no-cache")
_NO_USAGE = Usage()
# Seconds after which a call that a server lacked is tried again, because the server may have been
# updated.
_MISSING_CALL_SECONDS = 300.0
# Response header of answers whose usage is estimated because the back end does not report it.
_ESTIMATED_HEADER = (b"x-moyin-estimated", b"true")


# Not frozen: freezing doubles the cost of creating one per request.
@dataclass(kw_only=True, slots=True)
class Attempt:
    """One call to a back end for a chat or embedding request; `run` may be called only once.

    Attributes:
        reason: the reason why this target was chosen, for the header ``x-moyin-route``.
        lease: the back-end slot that the call holds. A streamed answer releases it when it ends;
            for other answers the caller releases it.
    """

    call: RoutedCall
    target: RouteTarget
    reason: str
    lease: Lease
    _started_at: float = field(default=0.0, init=False)
    _first_token_seconds: float | None = field(default=None, init=False)
    _usage_so_far: Usage | None = field(default=None, init=False)
    _starts_loading: bool = field(default=False, init=False)
    _was_loaded: bool = field(default=False, init=False)

    @property
    def runtime(self) -> BackendRuntime:
        return self.target.runtime

    async def run(self) -> Answer:
        """Call the target and return its answer; a stream is returned after its first bytes.

        Raises:
            MoyinError: the call failed before the first byte.
        """
        call, runtime = self.call, self.runtime
        if not runtime.backend.fetches_pictures:
            require_no_urls(call.needs)
            if call.needs.vision:
                await call.fetch_pictures()
        self._started_at = asyncio.get_running_loop().time()
        deadline = min(self._started_at + runtime.timeout, call.deadline)
        if runtime.loaded is not None:
            self._starts_loading = runtime.loaded.record_call_start(self._upstream)
        try:
            return await self._call_or_translate(deadline)
        except asyncio.CancelledError:
            # The back end has probably read the prompt and charges for it.
            self._record_failure()
            usage = self._usage_so_far or self._estimate_usage(0)
            self.record(usage, error=CANCELLED)
            raise
        except (BackendError, ModelNotFound, Overloaded) as error:
            self._record_failure()
            # If the request has a file id, the file may be missing instead of the model.
            if isinstance(error, ModelNotFound) and not call.needs.has_external_content:
                self.target.model_breaker.fail()
            billed_usage = self._find_billed_usage(error)
            if billed_usage is None:
                self._record_call(Usage(), error.code)
                call.note_failure(self._build_entry(Usage(), pico_cost=0, error=error.code))
            else:
                is_usage_known = self._usage_so_far is not None
                self.record(billed_usage, error=error.code, charges_budget=is_usage_known)
            raise
        except Exception as error:
            if self._usage_so_far is not None:
                # The client's protocol cannot express the answer, but the provider bills it.
                self.record(self._usage_so_far, error=_get_error_code(error))
            # The request may not have been sent, so the back end may not load the model for it.
            if self._starts_loading:
                self._record_failure()
            raise

    async def _call_or_translate(self, deadline: float) -> Answer:
        """Forward the request, or translate it if the back end does not support the request's path.

        Args:
            deadline: the ``loop.time()`` by which the call must end.
        """
        runtime, path = self.runtime, self.call.codec.path
        pass_through = runtime.pass_through
        if pass_through is None or needs_translation(self.target, path, self.call.needs):
            return await self._call_backend(None, deadline)
        try:
            return await self._call_backend(pass_through, deadline)
        except ModelNotFound:
            if path not in OPTIONAL_PATHS:
                raise
        # If the model is missing instead of the call, the translated request fails with the same
        # error.
        answer = await self._call_backend(None, deadline)
        runtime.missing_calls[path, self._upstream] = time.monotonic() + _MISSING_CALL_SECONDS
        return answer

    async def _call_backend(
        self, pass_through: PassThroughBackend | None, deadline: float
    ) -> Answer:
        if self.call.request.is_streamed:
            return await self._call_streaming(pass_through, deadline)
        if pass_through is None:
            return await self._call_translated(deadline)
        return await self._call_pass_through(pass_through, deadline)

    def record(
        self, usage: Usage, *, error: str | None = None, charges_budget: bool = True
    ) -> bytes:
        """Record the call in the ledger and return its cost in US dollars as text.

        Args:
            error: the code of the error that ended the answer early, if there was one.
            charges_budget: False for the estimated usage of a failed call, which is not charged to
                the caller's budgets, because they reserved money for one answer only.
        """
        call, target = self.call, self.target
        pico_cost = target.get_price().compute_pico_cost(usage)
        entry = self._build_entry(usage, pico_cost=pico_cost, error=error)
        call.record(entry)
        if charges_budget and call.context.budget is not None:
            call.context.budget.record(entry.cost_usd, usage.prompt_tokens + usage.output_tokens)
        seconds = self._record_call(usage, error)
        if error is None and target.latency.should_record():
            self._record_latency(usage, seconds)
        return format_usd(pico_cost).encode()

    def _build_entry(self, usage: Usage, *, pico_cost: int, error: str | None) -> UsageEntry:
        call, target = self.call, self.target
        return build_usage_entry(
            call.context,
            call.request.model,
            target.runtime.name,
            target.deployment.model.name,
            usage,
            pico_cost=pico_cost,
            error=error,
        )

    def _record_call(self, usage: Usage, error: str | None) -> float:
        call, target = self.call, self.target
        seconds = asyncio.get_running_loop().time() - self._started_at
        call.accounting.telemetry.record_call(
            CallRecord(
                operation="embeddings" if call.needs.embeddings else "chat",
                provider=target.runtime.provider,
                backend=target.runtime.name,
                requested_model=call.request.model,
                model=target.deployment.model.name,
                request_id=call.context.request_id,
                usage=usage,
                seconds=seconds,
                first_token_seconds=self._first_token_seconds,
                error=error,
                ended_at=time.time(),
                traceparent=call.traceparent,
            )
        )
        return seconds

    def _record_latency(self, usage: Usage, seconds: float) -> None:
        runtime, needs = self.runtime, self.call.needs
        self.call.accounting.record_usage(self.target.deployment.model.name, needs, usage)
        if not self._was_loaded:
            runtime.record_service_time(seconds)
            self.target.latency.record(
                prompt_tokens=usage.prompt_tokens,
                output_tokens=usage.output_tokens,
                first_token_seconds=self._first_token_seconds,
                seconds=seconds,
                concurrency=max(runtime.load, 1),
            )

    def _record_first_byte(self) -> None:
        """Record that the back end began to answer, which shows that the model is loaded."""
        self.target.model_breaker.succeed()
        if self.runtime.loaded is not None:
            self._was_loaded = self.runtime.loaded.record_call_answer(self._upstream)

    def _record_failure(self) -> None:
        if self.runtime.loaded is not None:
            self.runtime.loaded.record_call_failure(self._upstream)

    @property
    def _upstream(self) -> str:
        return self.target.deployment.model.upstream

    def _get_request_additions(self, pass_through: PassThroughBackend) -> Mapping[str, Any]:
        call = self.call
        model = self.target.deployment.model
        return pass_through.build_additions(model, call.needs, streams=call.request.is_streamed)

    def _build_raw_request(
        self, pass_through: PassThroughBackend, additions: Mapping[str, Any], deadline: float
    ) -> RawRequest:
        call = self.call
        return RawRequest(
            path=call.codec.path,
            body=call.request.to_upstream(self._upstream, additions, pass_through.overrides),
            headers=call.codec.select_forwarded_headers(call.context.headers),
            deadline=deadline,
        )

    def _build_stream_source(
        self,
        pass_through: PassThroughBackend | None,
        deadline: float,
        transcript: Transcript | None,
    ) -> StreamSource:
        request = self.call.request
        if pass_through is not None:
            additions = self._get_request_additions(pass_through)
            pieces = pass_through.forward_stream(
                self._build_raw_request(pass_through, additions, deadline)
            )
            tap = request.create_stream_tap(additions)
            return ForwardedSource(pieces, tap, transcript, prompt_tokens=self._prompt_tokens)
        chat_request, backend = self._to_domain(), self.runtime.backend
        assert isinstance(chat_request, ChatRequest), (
            "Attempt: an embedding request cannot be streamed"
        )
        deltas = backend.stream(chat_request, deadline)
        return TranslatedSource(
            deltas,
            request.create_stream_writer(),
            by_token=backend.streams_by_token,
            prompt_tokens=self._prompt_tokens,
            transcript=transcript,
        )

    async def _call_pass_through(self, pass_through: PassThroughBackend, deadline: float) -> Answer:
        body = await pass_through.forward(
            self._build_raw_request(
                pass_through, self._get_request_additions(pass_through), deadline
            )
        )
        try:
            answer = from_json(body)
        except ValueError:
            raise BackendUnavailable(
                "the back end's response is not valid JSON; check its URL in the configuration",
                may_be_billed=True,
            ) from None
        if not isinstance(answer, dict):
            raise BackendUnavailable(
                "the back end's response must be a JSON object; check its URL in the configuration",
                may_be_billed=True,
            )
        if answer.get("error"):
            # Some servers report errors with status 200.
            raise BackendUnavailable(
                "the back end returned an error in a response with status 200; retry later"
            )
        codec = self.call.codec
        codec.require_answer_member(answer)
        usage, estimated_usage = codec.read_usage(answer), None
        if usage == _NO_USAGE:
            usage = estimated_usage = self._estimate_usage(
                estimate_tokens_from_bytes(codec.count_output_bytes(answer))
            )
        body = codec.add_missing_members(body, answer, estimated_usage)
        return self._build_answer(body, usage, answer, is_estimated=estimated_usage is not None)

    def _to_domain(self) -> ChatRequest | EmbeddingRequest:
        """Translate the request; drop its reasoning effort if the model does not reason."""
        request = self.call.request.to_domain(self._upstream)
        if isinstance(request, ChatRequest):
            return omit_unusable_effort(request, self.call.needs, self.target.model)
        return request

    async def _call_translated(self, deadline: float) -> Answer:
        request, backend = self._to_domain(), self.runtime.backend
        answer: ChatResponse | EmbeddingResponse
        answer_text = ""
        if isinstance(request, EmbeddingRequest):
            answer = await backend.embed(request, deadline)
        else:
            answer = await backend.chat(request, deadline)
            answer_text = answer.output_text
        usage, is_estimated = answer.usage, answer.usage == _NO_USAGE
        if is_estimated:
            usage = self._estimate_usage(estimate_tokens(answer_text))
            answer = replace(answer, usage=usage)
        # The call is charged even if the client's protocol cannot express its answer.
        self._usage_so_far = usage
        return self._build_answer(
            self.call.request.encode_response(answer), usage, is_estimated=is_estimated
        )

    def _find_billed_usage(self, error: MoyinError) -> Usage | None:
        """Return the usage that the provider may bill for a failed call, or None.

        A provider does not bill a request that it rejected or that did not reach it.
        """
        if self._usage_so_far is not None:
            return self._usage_so_far
        is_billed = isinstance(error, BackendError) and error.may_be_billed
        return self._estimate_usage(0) if is_billed else None

    def _estimate_usage(self, output_tokens: int) -> Usage:
        """Return the estimated usage of a call whose back end does not report it."""
        return Usage(input_tokens=self._prompt_tokens, output_tokens=output_tokens)

    @property
    def _prompt_tokens(self) -> int:
        return self.call.accounting.estimate_prompt_tokens(
            self.target.deployment.model.name, self.call.needs
        )

    def _build_answer(
        self,
        body: bytes,
        usage: Usage,
        data: Mapping[str, Any] | None = None,
        *,
        is_estimated: bool,
    ) -> Answer:
        self._record_first_byte()
        cost_header = (b"x-moyin-cost-usd", self.record(usage))
        headers = (
            _JSON_HEADER,
            cost_header,
            *self._build_headers(),
            *((_ESTIMATED_HEADER,) if is_estimated else ()),
        )
        return Answer(headers=headers, body=body, usage=usage, data=data)

    async def _call_streaming(
        self, pass_through: PassThroughBackend | None, deadline: float
    ) -> Answer:
        call = self.call
        transcript = Transcript() if call.is_transcribed else None
        source = self._build_stream_source(pass_through, deadline, transcript)
        pieces = source.iterate_pieces()
        try:
            if self.runtime.first_byte_timeout is None:
                first_piece = await anext(pieces)
            else:
                async with asyncio.timeout(self.runtime.first_byte_timeout):
                    first_piece = await anext(pieces)
        except BaseException as error:
            # The model may have generated tokens before the first bytes for the client, because
            # Ollama's clients receive a tool call as a whole.
            if source.usage.output_tokens:
                self._usage_so_far = source.usage
            if isinstance(error, StopAsyncIteration):
                raise BackendUnavailable(
                    "the back end ended the stream without sending data; retry later",
                    may_be_billed=True,
                ) from None
            if isinstance(error, TimeoutError):
                raise BackendTimeout(
                    "the back end did not send the first byte within "
                    f"{self.runtime.first_byte_timeout:g} seconds; retry later"
                ) from None
            raise
        self._first_token_seconds = asyncio.get_running_loop().time() - self._started_at
        self._record_first_byte()
        stream = MeteredStream(
            call, source, first_piece, pieces, finish=self._finish_stream, transcript=transcript
        )
        if call.hold is not StreamHold.NONE:
            try:
                await stream.hold_until_checked(call.hold, call.constraints)
            except BaseException:
                # The generated tokens are charged, although the client received none.
                self._usage_so_far = stream.usage
                raise
            if call.hold is StreamHold.BEGINNING:
                # The first event may have had no text.
                self._first_token_seconds = asyncio.get_running_loop().time() - self._started_at
        self.lease.transfer_to_stream()
        content_type = (b"content-type", call.codec.stream_content_type)
        return Answer(
            headers=(content_type, _NO_CACHE_HEADER, *self._build_headers()), stream=stream
        )

    def _finish_stream(self, usage: Usage, error: BaseException | None) -> bytes:
        """Record the usage of a stream, release its slot, and return its cost as text."""
        cost = self.record(usage, error=None if error is None else _get_error_code(error))
        self.lease.release(error)
        return cost

    def _build_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        reason = describe_omission(self.reason, self.call.omitted)
        return (*self.target.headers, (b"x-moyin-route", reason.encode()))


def _get_error_code(error: BaseException) -> str:
    if isinstance(error, MoyinError):
        return error.code
    is_cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
    return CANCELLED if is_cancelled else MoyinError.code
