"""Runs one call of one request to one back end."""

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
    UnsupportedFeature,
)
from moyin.text.routing.answer import Answer
from moyin.text.routing.backend_runtime import BackendRuntime, Lease
from moyin.text.routing.compiled_route import EligibleDeployment
from moyin.text.routing.ledger import usage_entry
from moyin.text.routing.metered_stream import MeteredStream
from moyin.text.routing.routed_call import Hold, RoutedCall
from moyin.text.routing.stream_sources import PassedSource, Source, TranslatedSource
from moyin.text.routing.telemetry import CallRecord

__all__ = ["Attempt"]

_JSON = (b"content-type", b"application/json")
_NO_CACHE = (b"cache-control", b"no-cache")
_NO_USAGE = Usage()
# Marks answers whose usage is estimated because the back end reports none.
_ESTIMATED = (b"x-moyin-estimated", b"true")


# Not frozen: freezing doubles the cost of creating one per request.
@dataclass(kw_only=True, slots=True)
class Attempt:
    """Calls one target for one request.

    Attributes:
        reason: why this target was chosen, in a few words.
        lease: the call's slot at the back end. The caller releases it, except for an answer with a
            stream, which releases it when it ends.
    """

    call: RoutedCall
    target: EligibleDeployment
    reason: str
    lease: Lease
    _began: float = field(default=0.0, init=False)
    _first: float | None = field(default=None, init=False)
    _usage_so_far: Usage | None = field(default=None, init=False)
    _starts_loading: bool = field(default=False, init=False)
    _was_loaded: bool = field(default=False, init=False)

    @property
    def runtime(self) -> BackendRuntime:
        return self.target.runtime

    async def run(self) -> Answer:
        """Return the answer, or a stream that has begun.

        Raises:
            MoyinError: the call failed before the first byte.
        """
        call, runtime = self.call, self.runtime
        if not runtime.backend.fetches_pictures:
            if call.needs.has_urls:
                # A server in our network would fetch any address that the prompt names.
                message = "this back end does not fetch documents by URL: send their content"
                raise UnsupportedFeature(message, field="messages")
            if call.needs.vision:
                await call.fetch_pictures()
        self._began = asyncio.get_running_loop().time()
        deadline = min(self._began + runtime.timeout, call.deadline)
        if runtime.loaded is not None:
            self._starts_loading = runtime.loaded.call_started(self._upstream)
        pass_through = None if self.target.needs_translation else runtime.pass_through
        try:
            if call.request.streams:
                return await self._call_streaming(pass_through, deadline)
            if pass_through is None:
                return await self._call_translated(deadline)
            return await self._call_pass_through(pass_through, deadline)
        except asyncio.CancelledError:
            # The back end has read the prompt by now and bills it.
            self._answer_failed()
            usage = self._usage_so_far or self._estimate(0)
            self.record(usage, error="cancelled")
            raise
        except (BackendError, ModelNotFound, Overloaded) as error:
            self._answer_failed()
            # With a file id in the request, the file may be missing instead of the model.
            if isinstance(error, ModelNotFound) and not call.needs.has_external_content:
                self.target.model_breaker.fail()
            if self._usage_so_far is None:
                self._record_call(Usage(), error.code)
            else:
                self.record(self._usage_so_far, error=error.code)
            raise
        except Exception:
            # The call may have failed before it was sent, so it no longer loads the model.
            if self._starts_loading:
                self._answer_failed()
            raise

    def record(self, usage: Usage, *, error: str | None = None) -> bytes:
        """Record the call in the ledger; return its cost as text.

        Args:
            error: code of the error that cut the answer short; None: it is complete.
        """
        call, target = self.call, self.target
        pico = target.price().compute_pico_cost(usage)
        entry = usage_entry(
            request_id=call.context.request_id,
            owner=call.context.owner,
            backend=target.runtime.name,
            model=target.deployment.model.name,
            usage=usage,
            pico=pico,
            complete=error is None,
        )
        call.accounting.ledger.record(entry)
        if call.context.budget is not None:
            call.context.budget.record(entry.cost_usd, usage.prompt_tokens + usage.output_tokens)
        seconds = self._record_call(usage, error)
        if error is None and target.latency.should_record():
            self._record_latency(usage, seconds)
        return format_usd(pico).encode()

    def _record_call(self, usage: Usage, error: str | None) -> float:
        call, target = self.call, self.target
        seconds = asyncio.get_running_loop().time() - self._began
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
                first_token_seconds=self._first,
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
                first_token_seconds=self._first,
                seconds=seconds,
                concurrency=max(runtime.load, 1),
            )

    def _answer_began(self) -> None:
        """Note that the first byte arrived, so the model is loaded."""
        self.target.model_breaker.succeed()
        if self.runtime.loaded is not None:
            self._was_loaded = self.runtime.loaded.call_answered(self._upstream)

    def _answer_failed(self) -> None:
        if self.runtime.loaded is not None:
            self.runtime.loaded.call_failed(self._upstream)

    @property
    def _upstream(self) -> str:
        return self.target.deployment.model.upstream

    def _request_additions(self, pass_through: PassThroughBackend) -> Mapping[str, Any]:
        call = self.call
        model = self.target.deployment.model
        return pass_through.additions(model, call.needs, streams=call.request.streams)

    def _raw_request(
        self, pass_through: PassThroughBackend, additions: Mapping[str, Any], deadline: float
    ) -> RawRequest:
        call = self.call
        return RawRequest(
            path=call.codec.path,
            body=call.request.to_upstream(self._upstream, additions, pass_through.overrides),
            headers=call.codec.forwarded_headers(call.context.headers),
            deadline=deadline,
        )

    def _stream_source(
        self,
        pass_through: PassThroughBackend | None,
        deadline: float,
        transcript: Transcript | None,
    ) -> Source:
        request = self.call.request
        if pass_through is not None:
            additions = self._request_additions(pass_through)
            upstream = pass_through.forward_stream(
                self._raw_request(pass_through, additions, deadline)
            )
            tap = request.stream_tap(additions)
            return PassedSource(upstream, tap, transcript, prompt_tokens=self._prompt_tokens)
        chat, backend = request.to_domain(self._upstream), self.runtime.backend
        assert isinstance(chat, ChatRequest), "embeddings are not streamed"
        deltas = backend.stream(chat, deadline)
        return TranslatedSource(
            deltas,
            request.stream_writer(),
            by_token=backend.streams_by_token,
            prompt_tokens=self._prompt_tokens,
            transcript=transcript,
        )

    async def _call_pass_through(self, pass_through: PassThroughBackend, deadline: float) -> Answer:
        body = await pass_through.forward(
            self._raw_request(pass_through, self._request_additions(pass_through), deadline)
        )
        try:
            answer = from_json(body)
        except ValueError:
            raise BackendUnavailable("the back end's response is not JSON") from None
        if not isinstance(answer, dict):
            raise BackendUnavailable("the back end returned a malformed response")
        if answer.get("error"):
            # Some servers report errors with status 200.
            raise BackendUnavailable("the back end returned an error with status 200")
        codec = self.call.codec
        codec.check_response(answer)
        usage, estimate = codec.read_usage(answer), None
        if usage == _NO_USAGE:
            usage = estimate = self._estimate(
                estimate_tokens_from_bytes(codec.output_bytes(answer))
            )
        body = codec.complete_response(body, answer, estimate)
        return self._whole_answer(body, usage, answer, estimated=estimate is not None)

    async def _call_translated(self, deadline: float) -> Answer:
        request, backend = self.call.request.to_domain(self._upstream), self.runtime.backend
        answer: ChatResponse | EmbeddingResponse
        written = ""
        if isinstance(request, EmbeddingRequest):
            answer = await backend.embed(request, deadline)
        else:
            answer = await backend.chat(request, deadline)
            written = answer.output_text
        usage, estimated = answer.usage, answer.usage == _NO_USAGE
        if estimated:
            usage = self._estimate(estimate_tokens(written))
            answer = replace(answer, usage=usage)
        # Paid for even if the client's protocol cannot express the answer.
        self._usage_so_far = usage
        return self._whole_answer(
            self.call.request.encode_response(answer), usage, estimated=estimated
        )

    def _estimate(self, output_tokens: int) -> Usage:
        """Return the estimated usage of a call whose server reports none."""
        return Usage(input_tokens=self._prompt_tokens, output_tokens=output_tokens)

    @property
    def _prompt_tokens(self) -> int:
        return self.call.accounting.estimate_prompt_tokens(
            self.target.deployment.model.name, self.call.needs
        )

    def _whole_answer(
        self,
        body: bytes,
        usage: Usage,
        data: Mapping[str, Any] | None = None,
        *,
        estimated: bool,
    ) -> Answer:
        self._answer_began()
        cost = (b"x-moyin-cost-usd", self.record(usage))
        headers = (_JSON, cost, *self._headers(), *((_ESTIMATED,) if estimated else ()))
        return Answer(headers=headers, body=body, usage=usage, data=data)

    async def _call_streaming(
        self, pass_through: PassThroughBackend | None, deadline: float
    ) -> Answer:
        call = self.call
        transcript = Transcript() if call.is_transcribed else None
        source = self._stream_source(pass_through, deadline, transcript)
        pieces = source.pieces()
        try:
            if self.runtime.first_byte_timeout is None:
                first = await anext(pieces)
            else:
                async with asyncio.timeout(self.runtime.first_byte_timeout):
                    first = await anext(pieces)
        except BaseException as error:
            # Output may be paid for before the first piece: Ollama's clients get a tool call whole.
            if source.usage.output_tokens:
                self._usage_so_far = source.usage
            if isinstance(error, StopAsyncIteration):
                raise BackendUnavailable("the back end sent an empty stream") from None
            if isinstance(error, TimeoutError):
                raise BackendTimeout("the back end sent no first byte in time") from None
            raise
        self._first = asyncio.get_running_loop().time() - self._began
        self._answer_began()
        stream = MeteredStream(
            call, source, first, pieces, settle=self._settle, transcript=transcript
        )
        if call.hold is not Hold.NONE:
            try:
                await stream.hold(call.hold, call.constraints)
            except BaseException:
                # Paid for, although the client has not seen it.
                self._usage_so_far = stream.usage
                raise
            if call.hold is Hold.BEGINNING:
                # The first event may have held no text.
                self._first = asyncio.get_running_loop().time() - self._began
        self.lease.keep()
        content_type = (b"content-type", call.codec.stream_type)
        return Answer(headers=(content_type, _NO_CACHE, *self._headers()), stream=stream)

    def _settle(self, usage: Usage, error: BaseException | None) -> bytes:
        """Record a stream that has ended and release its slot; return its cost as text."""
        cost = self.record(usage, error=None if error is None else _error_code(error))
        self.lease.release(error)
        return cost

    def _headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return (*self.target.headers, (b"x-moyin-route", self.reason.encode()))


def _error_code(error: BaseException) -> str:
    return error.code if isinstance(error, MoyinError) else "cancelled"
