"""Samples the answers of requests, and starts the jobs that compare them with second answers."""

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
from moyin.text.judging.comparison import NotComparable, SampledAnswer, create_comparison
from moyin.text.judging.rules import JudgeRules
from moyin.text.judging.verdict import Outcome, OutcomeCounter
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import Answer, AnswerStream
from moyin.text.routing.decision import Candidate
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.routed_call import RoutedCall

_log = logging.getLogger(__name__)
_MAX_QUEUED_SAMPLES = 64
# These limits bound the memory of the queue. `create_comparison` rejects documents later.
_MAX_ATTACHMENT_BYTES = 64 * 1024
_MAX_REQUEST_BYTES = 1024 * 1024
_MAX_ANSWER_BYTES = 256 * 1024


class ComparisonQueue(Protocol):
    """Interface of the queue that starts the Temporal workflows of comparisons."""

    async def start(self, comparison_id: str, owner: str) -> bool:
        """Queue the workflow in a fair order among tenants.

        Returns:
            False if a workflow with this id exists.

        Raises:
            ServiceUnavailable: Temporal is unavailable.
        """


class AnswerSampler:
    """Samples answers at random and queues them without delaying the request.

    All methods must be called from the same event loop.

    Args:
        count_outcome: called for each sampled answer that is not queued, with the reason.
        draw_random: returns a random number in [0, 1).

    Attributes:
        rules: the current rules, which may be replaced at any time; None stops the sampling.
        samples: the queue of samples for `ComparisonStarter`.
    """

    def __init__(
        self, count_outcome: OutcomeCounter, *, draw_random: Callable[[], float] = random.random
    ) -> None:
        self.rules: JudgeRules | None = None
        self.samples: asyncio.Queue[SampledAnswer] = asyncio.Queue(_MAX_QUEUED_SAMPLES)
        self._count_outcome = count_outcome
        self._draw_random = draw_random

    def sample(self, call: RoutedCall, candidates: Sequence[Candidate], answer: Answer) -> Answer:
        """Queue the answer for the judge if chance selects it; return the answer for the client.

        A selected stream is wrapped, so that its bytes are recorded and queued when it ends.
        """
        rules = self.rules
        if rules is None or call.quality is None or not call.quality.is_estimated:
            return answer
        if self._draw_random() >= rules.share:
            return answer
        if not _is_suitable(call, rules) or not call.constraints.plain:
            self._count_outcome(Outcome.UNSUITABLE)
            return answer
        model = dict(answer.headers)[b"x-moyin-model"].decode()

        def enqueue(body: bytes, usage: Usage) -> None:
            if usage.output_tokens > rules.max_answer_tokens or len(body) > _MAX_ANSWER_BYTES:
                self._count_outcome(Outcome.UNSUITABLE)
                return
            sample = SampledAnswer(
                call=call, candidates=candidates, model=model, body=body, usage=usage
            )
            try:
                self.samples.put_nowait(sample)
            except asyncio.QueueFull:
                self._count_outcome(Outcome.DROPPED)

        if answer.stream is None:
            enqueue(answer.body, answer.usage)
            return answer
        recording_stream = _RecordingStream(answer.stream, enqueue)
        return Answer(headers=answer.headers, stream=recording_stream, usage=answer.usage)


def _is_suitable(call: RoutedCall, rules: JudgeRules) -> bool:
    """Return True if a judge can probably read the conversation: it has only text and is short."""
    needs = call.needs
    return (
        len(call.request.raw) <= _MAX_REQUEST_BYTES
        and needs.prompt_tokens <= rules.max_prompt_tokens
        and needs.attachment_bytes <= _MAX_ATTACHMENT_BYTES
        and not (needs.vision or needs.has_external_content or needs.embeddings)
    )


class _RecordingStream:
    """Forwards a stream and queues its bytes as a sample when it is complete."""

    def __init__(self, stream: AnswerStream, enqueue: Callable[[bytes, Usage], None]) -> None:
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
            # The last piece contains the cost, which `decode_stream` ignores. It may also contain
            # the end of the answer.
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
    """Creates the comparisons of queued samples one after another, and starts their jobs.

    Args:
        get_fleet: returns the current fleet.
        estimator: knows the tenants for which learning is frozen.
        count_outcome: called with the outcome of each sample.
    """

    def __init__(
        self,
        sampler: AnswerSampler,
        *,
        get_fleet: Callable[[], Fleet],
        estimator: Estimator,
        budget: JudgeBudget,
        store: ComparisonStore,
        queue: ComparisonQueue,
        count_outcome: OutcomeCounter,
    ) -> None:
        self._sampler = sampler
        self._get_fleet = get_fleet
        self._estimator = estimator
        self._budget = budget
        self._store = store
        self._queue = queue
        self._count_outcome = count_outcome

    async def run(self) -> None:
        """Start a comparison for each queued sample until cancelled."""
        while True:
            sample = await self._sampler.samples.get()
            try:
                self._count_outcome(await self.start(sample))
            except Exception:
                self._count_outcome(Outcome.FAILED)
                request_id = sample.call.context.request_id
                _log.exception(
                    "dropped the sampled answer of request %s: unexpected error", request_id
                )

    async def start(self, sample: SampledAnswer) -> Outcome:
        """Start the comparison of a sample.

        Returns:
            `Outcome.STARTED`, or the reason why the comparison was not started.
        """
        rules = self._sampler.rules
        if rules is None:
            return Outcome.DISABLED
        if self._estimator.get_state(sample.call.context.owner).frozen:
            return Outcome.FROZEN
        try:
            comparison = create_comparison(sample, self._get_fleet(), rules)
        except NotComparable as error:
            return error.outcome
        try:
            # This check only avoids jobs without a budget. Each call reserves its own cost later.
            if await self._budget.read_spent_usd() + comparison.most_usd > rules.usd_per_month:
                return Outcome.BUDGET
            if not await self._store.has_capacity(comparison.owner):
                return Outcome.DROPPED
            if not await self._store.add(comparison.id, comparison.owner, encode(comparison)):
                return Outcome.REPEATED
            return await self._start_job(comparison.id, comparison.owner)
        except MoyinError as error:
            request_id = sample.call.context.request_id
            _log.warning("dropped the sampled answer of request %s: %s", request_id, error)
            return Outcome.UNAVAILABLE

    async def _start_job(self, comparison_id: str, owner: str) -> Outcome:
        is_started = False
        try:
            is_started = await self._queue.start(comparison_id, owner)
        finally:
            if not is_started:
                await self._store.remove(comparison_id)
        return Outcome.STARTED if is_started else Outcome.REPEATED
