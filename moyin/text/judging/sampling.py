"""Samples answers on the hot path and queues them for comparison."""

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
# Bound what the queue holds; documents are rejected later.
_MAX_ATTACHMENT_BYTES = 64 * 1024
_MAX_REQUEST_BYTES = 1024 * 1024
_MAX_ANSWER_BYTES = 256 * 1024


class ComparisonQueue(Protocol):
    """Starts the durable job of a comparison."""

    async def start(self, comparison_id: str, owner: str) -> bool:
        """Start the job in its owner's turn; return False if one with this id exists.

        Raises:
            ServiceUnavailable: the queue is unavailable.
        """


class AnswerSampler:
    """Samples answers at random and queues them without waiting. Used from one event loop.

    Args:
        draw: returns a random number from 0 to 1.

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
        """Return the answer, wrapped for recording if it was sampled as a stream."""
        rules = self.rules
        if rules is None or call.quality is None or not call.quality.is_estimated:
            return answer
        if self._draw() >= rules.share:
            return answer
        if not _is_suitable(call, rules) or not call.constraints.plain:
            self._count(Outcome.UNSUITABLE)
            return answer
        model = dict(answer.headers)[b"x-moyin-model"].decode()

        def enqueue(body: bytes, usage: Usage) -> None:
            if usage.output_tokens > rules.most_answer_tokens or len(body) > _MAX_ANSWER_BYTES:
                self._count(Outcome.UNSUITABLE)
                return
            sample = Sample(call=call, candidates=candidates, model=model, body=body, usage=usage)
            try:
                self.samples.put_nowait(sample)
            except asyncio.QueueFull:
                self._count(Outcome.DROPPED)

        if answer.stream is None:
            enqueue(answer.body, answer.usage)
            return answer
        recorded = _RecordingStream(answer.stream, enqueue)
        return Answer(headers=answer.headers, stream=recorded, usage=answer.usage)


def _is_suitable(call: RoutedCall, rules: JudgeRules) -> bool:
    """Return whether a judge could read the conversation, by what is known at no cost."""
    needs = call.needs
    return (
        len(call.request.raw) <= _MAX_REQUEST_BYTES
        and needs.prompt_tokens <= rules.most_prompt_tokens
        and needs.attachment_bytes <= _MAX_ATTACHMENT_BYTES
        and not (needs.vision or needs.has_external_content or needs.embeddings)
    )


class _RecordingStream:
    """Passes on a stream and queues its pieces once it is complete."""

    def __init__(self, stream: Stream, enqueue: Callable[[bytes, Usage], None]) -> None:
        self._stream = stream
        self._enqueue: Callable[[bytes, Usage], None] | None = enqueue
        self._pieces: list[bytes] = []
        self._bytes_left = _MAX_ANSWER_BYTES

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._stream)
        if self._enqueue is None:
            return piece
        self._pieces.append(piece)
        self._bytes_left -= len(piece)
        if self._bytes_left < 0:
            self._pieces.clear()
            self._enqueue = None
        elif (usage := self._stream.final_usage) is not None:
            # The last piece states the cost, which readers of the answer ignore. A held-back stream
            # may end with answer and cost in one piece.
            self._enqueue(b"".join(self._pieces), usage)
            self._pieces.clear()
            self._enqueue = None
        return piece

    @property
    def final_usage(self) -> Usage | None:
        return self._stream.final_usage

    async def aclose(self) -> None:
        await self._stream.aclose()


class ComparisonStarter:
    """Creates comparisons from samples, one after the other, and starts their jobs.

    Args:
        fleet: returns the current one.
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
                _log.exception("a sampled answer could not be compared and is dropped")

    async def start(self, sample: Sample) -> Outcome:
        """Start the comparison of a sample, or return why it is not started."""
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
            # Checked here so that no job waits for a spent budget. Each call reserves its own cost
            # when it is made.
            if await self._budget.spent() + comparison.most_usd > rules.usd_per_month:
                return Outcome.BUDGET
            if not await self._store.has_capacity(comparison.owner):
                return Outcome.DROPPED
            if not await self._store.add(comparison.id, comparison.owner, encode(comparison)):
                return Outcome.REPEATED
            return await self._start_job(comparison.id, comparison.owner)
        except MoyinError as error:
            _log.warning("a sampled answer cannot be queued for the judge: %s", error)
            return Outcome.UNAVAILABLE

    async def _start_job(self, comparison_id: str, owner: str) -> Outcome:
        started = False
        try:
            started = await self._queue.start(comparison_id, owner)
        finally:
            if not started:
                await self._store.remove(comparison_id)
        return Outcome.STARTED if started else Outcome.REPEATED
