"""One back end's try at one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_core import from_json

from moyin.domain.backend import PassThroughBackend, RawRequest
from moyin.domain.chat import ChatRequest, ChatResponse, EmbeddingRequest, EmbeddingResponse
from moyin.domain.money import Usage, usd_text
from moyin.domain.needs import estimate_tokens, tokens_in
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
# The back end states no usage: the answer says what is booked.
_ESTIMATED = (b"x-moyin-estimated", b"true")


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class Attempt:
    """A call and the deployment that is to answer it.

    Attributes:
        reason: why this deployment, in a few words.
        lease: the call's place at the back end. The caller releases it, except for an answer with a
            stream: that releases it when it ends.
    """

    call: RoutedCall
    target: EligibleDeployment
    reason: str
    lease: Lease
    _began: float = field(default=0.0, init=False)
    _first: float | None = field(default=None, init=False)
    _used: Usage | None = field(default=None, init=False)
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
                # A server inside our network would call whatever the prompt names.
                told = "only Claude itself fetches documents by URL: send what they hold"
                raise UnsupportedFeature(told, field="messages")
            if call.needs.vision:
                await call.fetch_pictures()
        self._began = asyncio.get_running_loop().time()
        deadline = min(self._began + runtime.timeout, call.deadline)
        if runtime.loaded is not None:
            self._starts_loading = runtime.loaded.call_started(self._upstream)
        pass_through = None if self.target.needs_translation else runtime.pass_through
        try:
            if call.request.streams:
                return await self._streamed(pass_through, deadline)
            if pass_through is None:
                return await self._translated(deadline)
            return await self._passed(pass_through, deadline)
        except asyncio.CancelledError:
            # Upstream has read the prompt by now, and counts it.
            self._answer_failed()
            usage = self._used or self._estimate(0)
            self.book(usage, error="cancelled")
            raise
        except (BackendError, ModelNotFound, Overloaded) as error:
            self._answer_failed()
            # Of a file that is named by its id nobody knows which of the two is missing.
            if isinstance(error, ModelNotFound) and not call.needs.has_external_content:
                self.target.model_breaker.fail()
            if self._used is None:
                self._report(Usage(), error.code)
            else:
                self.book(self._used, error=error.code)
            raise
        except Exception:
            # Refused before it was sent, say: nobody loads the model for it, but somebody may for
            # another call.
            if self._starts_loading:
                self._answer_failed()
            raise

    def book(self, usage: Usage, *, error: str | None = None) -> bytes:
        """Enter the call into the ledger; returns its cost as text.

        Args:
            error: why the answer was cut, if it was.
        """
        call, target = self.call, self.target
        pico = target.price().pico_cost(usage)
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
        seconds = self._report(usage, error)
        if error is None and target.latency.should_record():
            self._learn(usage, seconds)
        return usd_text(pico).encode()

    def _report(self, usage: Usage, error: str | None) -> float:
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

    def _learn(self, usage: Usage, seconds: float) -> None:
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
        """The first byte is there."""
        self.target.model_breaker.succeed()
        if self.runtime.loaded is not None:
            self._was_loaded = self.runtime.loaded.call_answered(self._upstream)

    def _answer_failed(self) -> None:
        if self.runtime.loaded is not None:
            self.runtime.loaded.call_failed(self._upstream)

    @property
    def _upstream(self) -> str:
        return self.target.deployment.model.upstream

    def _additions(self, pass_through: PassThroughBackend) -> Mapping[str, Any]:
        call = self.call
        model = self.target.deployment.model
        return pass_through.additions(model, call.needs, streams=call.request.streams)

    def _raw(
        self, pass_through: PassThroughBackend, additions: Mapping[str, Any], deadline: float
    ) -> RawRequest:
        call = self.call
        return RawRequest(
            path=call.codec.path,
            body=call.request.to_upstream(self._upstream, additions, pass_through.overrides),
            headers=call.codec.forwarded_headers(call.context.headers),
            deadline=deadline,
        )

    def _source(
        self,
        pass_through: PassThroughBackend | None,
        deadline: float,
        transcript: Transcript | None,
    ) -> Source:
        request = self.call.request
        if pass_through is not None:
            additions = self._additions(pass_through)
            upstream = pass_through.forward_stream(self._raw(pass_through, additions, deadline))
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

    async def _passed(self, pass_through: PassThroughBackend, deadline: float) -> Answer:
        body = await pass_through.forward(
            self._raw(pass_through, self._additions(pass_through), deadline)
        )
        try:
            answer = from_json(body)
        except ValueError:
            raise BackendUnavailable("the back end's answer is not JSON") from None
        if not isinstance(answer, dict):
            raise BackendUnavailable("the back end's answer has not the shape of one")
        if answer.get("error"):
            # Some servers say so with status 200.
            raise BackendUnavailable("the back end answered with an error")
        codec = self.call.codec
        codec.check_response(answer)
        usage, estimate = codec.read_usage(answer), None
        if usage == _NO_USAGE:
            usage = estimate = self._estimate(tokens_in(codec.output_bytes(answer)))
        body = codec.complete_response(body, answer, estimate)
        return self._whole(body, usage, answer, estimated=estimate is not None)

    async def _translated(self, deadline: float) -> Answer:
        request, backend = self.call.request.to_domain(self._upstream), self.runtime.backend
        answer: ChatResponse | EmbeddingResponse
        written = ""
        if isinstance(request, EmbeddingRequest):
            answer = await backend.embed(request, deadline)
        else:
            answer = await backend.chat(request, deadline)
            written = answer.written
        usage, estimated = answer.usage, answer.usage == _NO_USAGE
        if estimated:
            usage = self._estimate(estimate_tokens(written))
            answer = replace(answer, usage=usage)
        # What the client's protocol has no words for was paid for all the same.
        self._used = usage
        return self._whole(self.call.request.encode_response(answer), usage, estimated=estimated)

    def _estimate(self, output_tokens: int) -> Usage:
        """What a call used whose server tells nothing."""
        return Usage(input_tokens=self._prompt_tokens, output_tokens=output_tokens)

    @property
    def _prompt_tokens(self) -> int:
        return self.call.accounting.estimate_prompt_tokens(
            self.target.deployment.model.name, self.call.needs
        )

    def _whole(
        self,
        body: bytes,
        usage: Usage,
        data: Mapping[str, Any] | None = None,
        *,
        estimated: bool,
    ) -> Answer:
        self._answer_began()
        cost = (b"x-moyin-cost-usd", self.book(usage))
        headers = (_JSON, cost, *self._headers(), *((_ESTIMATED,) if estimated else ()))
        return Answer(headers=headers, body=body, usage=usage, data=data)

    async def _streamed(self, pass_through: PassThroughBackend | None, deadline: float) -> Answer:
        call = self.call
        transcript = Transcript() if call.is_transcribed else None
        source = self._source(pass_through, deadline, transcript)
        pieces = source.pieces()
        try:
            if self.runtime.first_byte_timeout is None:
                first = await anext(pieces)
            else:
                async with asyncio.timeout(self.runtime.first_byte_timeout):
                    first = await anext(pieces)
        except BaseException as error:
            # What the model wrote was paid for, though no client sees it: a tool call is written to
            # Ollama's clients as a whole.
            if source.usage.output_tokens:
                self._used = source.usage
            if isinstance(error, StopAsyncIteration):
                raise BackendUnavailable("the back end sent an empty stream") from None
            if isinstance(error, TimeoutError):
                raise BackendTimeout("the back end did not begin in time") from None
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
                # What came was paid for, though no client has seen it.
                self._used = stream.usage
                raise
            if call.hold is Hold.BEGINNING:
                # The event that came first may have held no word yet.
                self._first = asyncio.get_running_loop().time() - self._began
        self.lease.keep()
        kind = (b"content-type", call.codec.stream_type)
        return Answer(headers=(kind, _NO_CACHE, *self._headers()), stream=stream)

    def _settle(self, usage: Usage, error: BaseException | None) -> bytes:
        """Book a stream that has ended and release its place; return its cost as text."""
        cost = self.book(usage, error=None if error is None else _code(error))
        self.lease.release(error)
        return cost

    def _headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return (*self.target.headers, (b"x-moyin-route", self.reason.encode()))


def _code(error: BaseException) -> str:
    return error.code if isinstance(error, MoyinError) else "cancelled"
