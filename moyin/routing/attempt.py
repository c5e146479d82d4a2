"""One back end's try at one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from pydantic_core import from_json

from moyin.domain.backend import PassThrough, RawRequest
from moyin.domain.money import Usage
from moyin.errors import BackendKeyRefused, BackendUnavailable, MoyinError, ServiceUnavailable
from moyin.protocols.dialect import Call, Dialect
from moyin.routing.bookkeeping import Ledger, cost_text, entry_of
from moyin.routing.choice import Candidate
from moyin.routing.lane import Lane
from moyin.routing.sources import PassedSource, Source, TranslatedSource

__all__ = ["Answer", "Asker", "Attempt", "LiveStream", "presentable"]

_JSON = (b"content-type", b"application/json")
_EVENTS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asker:
    """Who asks, and in which call. ``headers`` are the client's, as ASGI gives them."""

    request_id: str
    owner: str
    headers: Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole ``body``, or a ``stream`` that must be closed by whoever takes it."""

    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""
    stream: LiveStream | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A request and the candidate that is to answer it. The lane has been entered.

    Attributes:
        route: why this candidate, in a few words.
        noted: hears of the output tokens of complete answers.
    """

    dialect: Dialect
    call: Call
    asker: Asker
    lane: Lane
    candidate: Candidate
    route: str
    ledger: Ledger
    noted: Callable[[str, int], None]

    async def run(self) -> Answer:
        """The answer, or at least its first piece; from then on the stream leaves the lane.

        Raises:
            MoyinError: what came before the first byte. The caller leaves the lane.
        """
        deadline = asyncio.get_running_loop().time() + self.lane.timeout
        passes = self.lane.passes
        if passes is not None and passes.wire is not self.dialect.wire:
            passes = None
        if self.call.streams:
            return await self._streamed(self._source(passes, deadline))
        if passes is None:
            return await self._translated(deadline)
        return await self._passed(passes, deadline)

    def book(self, usage: Usage, *, complete: bool) -> bytes:
        """Enter the call into the ledger; returns its cost as text."""
        model = self.candidate.offer.model
        entry = entry_of(
            request_id=self.asker.request_id,
            owner=self.asker.owner,
            backend=self.lane.name,
            model=model,
            usage=usage,
            complete=complete,
        )
        self.ledger.record(entry)
        if complete:
            self.noted(model.name, usage.output_tokens)
        return cost_text(entry.cost_usd)

    @property
    def _upstream(self) -> str:
        return self.candidate.offer.model.upstream

    def _raw(self, deadline: float) -> RawRequest:
        return RawRequest(
            path=self.dialect.path,
            body=self.call.to_bytes(self._upstream),
            headers=self.dialect.forwarded_headers(self.asker.headers),
            deadline=deadline,
        )

    def _source(self, passes: PassThrough | None, deadline: float) -> Source:
        if passes is not None:
            return PassedSource(passes.forward_stream(self._raw(deadline)), self.call.tap())
        request = self.call.to_domain(self._upstream)
        return TranslatedSource(self.lane.backend.stream(request, deadline), self.call.writer())

    async def _passed(self, passes: PassThrough, deadline: float) -> Answer:
        body = await passes.forward(self._raw(deadline))
        try:
            answer = from_json(body)
        except ValueError:
            raise BackendUnavailable("the back end's answer is not JSON") from None
        if not isinstance(answer, dict):
            raise BackendUnavailable("the back end's answer has not the shape of one")
        return self._whole(body, self.dialect.usage_of(answer))

    async def _translated(self, deadline: float) -> Answer:
        request = self.call.to_domain(self._upstream)
        answer = await self.lane.backend.chat(request, deadline)
        return self._whole(self.call.render(answer), answer.usage)

    def _whole(self, body: bytes, usage: Usage) -> Answer:
        cost = (b"x-moyin-cost-usd", self.book(usage, complete=True))
        return Answer(headers=(_JSON, cost, *self._headers()), body=body)

    async def _streamed(self, source: Source) -> Answer:
        pieces = source.pieces()
        try:
            first = await anext(pieces)
        except StopAsyncIteration:
            raise BackendUnavailable("the back end sent an empty stream") from None
        stream = LiveStream(self, source, first, pieces)
        return Answer(headers=(*_EVENTS, *self._headers()), stream=stream)

    def _headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return (
            (b"x-moyin-backend", self.lane.name.encode()),
            (b"x-moyin-model", self.candidate.offer.model.name.encode()),
            (b"x-moyin-route", self.route.encode()),
        )


class LiveStream:
    """A begun stream: what is left of it, then its cost as a comment.

    A failure is said by an error event of the protocol, never by a silent end. However it ends,
    it leaves the lane and books what was used, once.
    """

    def __init__(
        self,
        attempt: Attempt,
        source: Source,
        first: bytes,
        pieces: AsyncGenerator[bytes, None],
    ) -> None:
        self._attempt = attempt
        self._source = source
        self._first = first
        self._pieces = pieces
        self._settled = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._settled:
            raise StopAsyncIteration
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            return self._settle(None)
        except MoyinError as error:
            request_id = self._attempt.asker.request_id
            event = self._attempt.dialect.error_event(presentable(error), request_id)
            return event + self._settle(error)
        except BaseException as error:
            self._settle(error)
            raise

    async def aclose(self) -> None:
        """Cancel upstream where it still generates."""
        if not self._settled:
            self._settle(asyncio.CancelledError())
            await self._pieces.aclose()

    def _settle(self, error: BaseException | None) -> bytes:
        self._settled = True
        attempt = self._attempt
        attempt.lane.leave(error)
        usage = self._source.usage(attempt.call.needs().prompt_tokens)
        cost = attempt.book(usage, complete=error is None)
        return b": x-moyin-cost-usd=" + cost + b"\n\n"


def presentable(error: MoyinError) -> MoyinError:
    """``error`` as a client may see it: that our own key is refused is the operator's affair."""
    if isinstance(error, BackendKeyRefused):
        return ServiceUnavailable("the back end is not available")
    return error
