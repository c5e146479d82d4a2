"""The draw on the hot path, and the bounded queue behind it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from moyin.domain.money import Usage
from moyin.domain.serialization import encode
from moyin.errors import MoyinError
from moyin.store.comparisons import ComparisonStore
from moyin.text.judging.budget import JudgeBudget
from moyin.text.judging.comparison import NotCompared, Sample, comparison_of
from moyin.text.judging.outcomes import Count, Outcome
from moyin.text.judging.rules import JudgeRules
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import Answer, Stream
from moyin.text.routing.decision import Candidate
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.routed_call import RoutedCall

__all__ = ["AnswerSampler", "ComparisonQueue", "ComparisonStarter"]

_log = logging.getLogger(__name__)
_CAPACITY = 64
# Documents are refused later; here these bound what the queue holds.
_LARGEST_ATTACHED = 64 * 1024
_LARGEST_REQUEST = 1024 * 1024
_LARGEST_ANSWER = 256 * 1024


class ComparisonQueue(Protocol):
    """Starts the durable job of a comparison."""

    async def start(self, comparison_id: str, owner: str) -> bool:
        """Start it, in its owner's turn; False when there was one of this id.

        Raises:
            ServiceUnavailable: the queue is away.
        """


class AnswerSampler:
    """Draws answers at random and hands them over, without waiting. Used from one event loop.

    Args:
        draw: from 0 to 1.

    Attributes:
        rules: may be replaced at any time; None: nothing is sampled.
        samples: those that wait for their comparison.
    """

    def __init__(self, count: Count, *, draw: Callable[[], float] = random.random) -> None:
        self.rules: JudgeRules | None = None
        self.samples: asyncio.Queue[Sample] = asyncio.Queue(_CAPACITY)
        self._count = count
        self._draw = draw

    def sample(self, call: RoutedCall, candidates: Sequence[Candidate], answer: Answer) -> Answer:
        rules = self.rules
        if rules is None or call.quality is None or not call.quality.is_estimated:
            return answer
        if self._draw() >= rules.share:
            return answer
        if not _fits(call, rules) or not call.constraints.plain:
            self._count(Outcome.UNSUITABLE)
            return answer
        model = dict(answer.headers)[b"x-moyin-model"].decode()

        def take(body: bytes, usage: Usage) -> None:
            if usage.output_tokens > rules.most_answer_tokens or len(body) > _LARGEST_ANSWER:
                self._count(Outcome.UNSUITABLE)
                return
            sample = Sample(call=call, candidates=candidates, model=model, body=body, usage=usage)
            try:
                self.samples.put_nowait(sample)
            except asyncio.QueueFull:
                self._count(Outcome.DROPPED)

        if answer.stream is None:
            take(answer.body, answer.usage)
            return answer
        recorded = _Recording(answer.stream, take)
        return Answer(headers=answer.headers, stream=recorded, usage=answer.usage)


def _fits(call: RoutedCall, rules: JudgeRules) -> bool:
    """Return whether a judge could read the conversation, as far as that is known at no cost."""
    needs = call.needs
    return (
        len(call.request.raw) <= _LARGEST_REQUEST
        and needs.prompt_tokens <= rules.most_prompt_tokens
        and needs.attachment_bytes <= _LARGEST_ATTACHED
        and not (needs.vision or needs.has_external_content or needs.embeddings)
    )


class _Recording:
    """A stream that remembers what went by, and hands it over when it was complete."""

    def __init__(self, stream: Stream, take: Callable[[bytes, Usage], None]) -> None:
        self._stream = stream
        self._take: Callable[[bytes, Usage], None] | None = take
        self._pieces: list[bytes] = []
        self._left = _LARGEST_ANSWER

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._stream)
        if self._take is None:
            return piece
        self._pieces.append(piece)
        self._left -= len(piece)
        if self._left < 0:
            self._pieces.clear()
            self._take = None
        elif (usage := self._stream.final_usage) is not None:
            # With the note of its cost, which says nothing to who reads the answer: of a stream that
            # was held back it is in the same piece.
            self._take(b"".join(self._pieces), usage)
            self._pieces.clear()
            self._take = None
        return piece

    @property
    def final_usage(self) -> Usage | None:
        return self._stream.final_usage

    async def aclose(self) -> None:
        await self._stream.aclose()


class ComparisonStarter:
    """Makes comparisons of samples, one after the other, and starts their jobs.

    Args:
        fleet: the present one.
        estimator: knows whose learning is frozen.
    """

    def __init__(
        self,
        sampler: AnswerSampler,
        *,
        fleet: Callable[[], Fleet],
        estimator: Estimator,
        budget: JudgeBudget,
        store: ComparisonStore,
        queue: ComparisonQueue,
        count: Count,
    ) -> None:
        self._sampler = sampler
        self._fleet = fleet
        self._estimator = estimator
        self._budget = budget
        self._store = store
        self._queue = queue
        self._count = count

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            sample = await self._sampler.samples.get()
            try:
                self._count(await self.start(sample))
            except Exception:
                self._count(Outcome.FAILED)
                _log.exception("an answer that was sampled for the judge is dropped")

    async def start(self, sample: Sample) -> Outcome:
        """Start the comparison of a sample, unless something speaks against it."""
        rules = self._sampler.rules
        if rules is None:
            return Outcome.OFF
        if self._estimator.state(sample.call.context.owner).frozen:
            return Outcome.FROZEN
        try:
            comparison = comparison_of(sample, self._fleet(), rules)
        except NotCompared as error:
            return error.outcome
        try:
            # A look beforehand, so that no jobs wait for money that is spent. What each call may
            # cost is set aside when it is made.
            if await self._budget.spent() + comparison.most_usd > rules.usd_per_month:
                return Outcome.BUDGET
            if not await self._store.has_room(comparison.owner):
                return Outcome.DROPPED
            if not await self._store.add(comparison.id, comparison.owner, encode(comparison)):
                return Outcome.REPEATED
            return await self._begin(comparison.id, comparison.owner)
        except MoyinError as error:
            _log.warning("the judge gets no samples: %s", error)
            return Outcome.UNAVAILABLE

    async def _begin(self, comparison_id: str, owner: str) -> Outcome:
        started = False
        try:
            started = await self._queue.start(comparison_id, owner)
        finally:
            if not started:
                await self._store.remove(comparison_id)
        return Outcome.STARTED if started else Outcome.REPEATED
