"""Records ratings of answers that clients submit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from moyin.errors import FeedbackAlreadyGiven, RateLimited, RequestNotFound
from moyin.store.quality import DECISION_RETENTION, QualityStore, SignalRow
from moyin.store.usage import UsageEntry
from moyin.system.bounded import BoundedDict
from moyin.text.quality.prior import KIND_DIFFICULTY, KIND_SPREAD
from moyin.text.quality.question import Question, stored_features
from moyin.text.routing.learning import Learning
from moyin.text.routing.request_quality import question_to_json

__all__ = ["Feedback", "Ledger"]

# Ratings per key and replica in a burst; the bucket refills within a minute.
_BURST = 60.0
_MOST_KEYS = 10_000
# Scores and weight of a comparison. It weighs less than a rating: both answers may be good or bad.
_WORSE, _BETTER, _COMPARED = 0.2, 0.8, 0.5
# Stands for a request of which only the model is known: of average difficulty, with the one feature
# that all questions share. A signal about it changes the model's general estimate.
_UNKNOWN = Question(
    kind="unknown",
    language="en",
    difficulty=sum(KIND_DIFFICULTY.values()) / len(KIND_DIFFICULTY),
    spread=max(KIND_SPREAD.values()),
    features=stored_features((0,)),
)


class Ledger(Protocol):
    """Knows which model answered a request, but not its content."""

    async def find(
        self, owner: str, request_id: str, since: datetime | None = None
    ) -> UsageEntry | None: ...


@dataclass(frozen=True, slots=True)
class _RatedAnswer:
    """Holds what is known of a rated answer."""

    model: str
    question: Mapping[str, Any]
    p_good: float | None


class Feedback:
    """Turns ratings into quality signals.

    For requests that were not routed by quality or not sampled for learning, only the ledger knows
    which model answered. The number of ratings per key is limited here; how far they move an
    estimate is limited by the estimator.
    """

    def __init__(
        self,
        store: QualityStore,
        learning: Learning,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._learning = learning
        self._clock = clock
        self._buckets: BoundedDict[str, tuple[float, float]] = BoundedDict(_MOST_KEYS)

    async def submit(
        self,
        owner: str,
        key_id: str,
        request_id: str,
        *,
        score: float | None,
        better_request_id: str | None,
        comment: str | None,
    ) -> Mapping[str, float]:
        """Learn from a rating of one answer or a comparison of two; return the scores by request.

        Repeating the same rating changes nothing.

        Raises:
            RequestNotFound: no model answered such a request of this tenant.
            FeedbackAlreadyGiven: this key gave another score.
            RateLimited: too much feedback from this key.
        """
        self._check_rate(key_id)
        scores = {request_id: score} if score is not None else {request_id: _WORSE}
        source, weight = "feedback", 1.0
        if better_request_id is not None:
            scores, source, weight = {**scores, better_request_id: _BETTER}, "compared", _COMPARED
        rows = []
        for name, value in scores.items():
            answer = await self._find_answer(owner, name)
            rows.append(
                SignalRow(
                    owner=owner,
                    request_id=name,
                    key_id=key_id,
                    source=source,
                    model=answer.model,
                    question=answer.question,
                    score=value,
                    weight=weight,
                    p_good=answer.p_good,
                    created_at=datetime.fromtimestamp(self._clock(), UTC),
                    comment=comment if name == request_id else None,
                )
            )
        stored_rows = await self._store.add(rows)
        for row in stored_rows:
            if row.score != scores[row.request_id]:
                raise FeedbackAlreadyGiven(
                    f"this key already rated the request {row.request_id!r} with {row.score:g}",
                    field="score" if better_request_id is None else "better_request_id",
                )
        await self._learning.catch_up()
        return scores

    async def _find_answer(self, owner: str, request_id: str) -> _RatedAnswer:
        # Write first: a waiting row of a rescued request may replace an earlier one.
        await self._learning.flush()
        decision = await self._store.get_decision(owner, request_id)
        if decision is not None:
            return _RatedAnswer(decision.model, decision.question, decision.p_good)
        since = datetime.fromtimestamp(self._clock(), UTC) - DECISION_RETENTION
        entry = await self._ledger.find(owner, request_id, since)
        # Embeddings and calls that the client cancelled early have no output to rate.
        if entry is None or not entry.output_tokens:
            raise RequestNotFound(
                f"no request {request_id!r} of yours was answered by a model in the last thirty days"
            )
        return _RatedAnswer(entry.model, question_to_json(_UNKNOWN), None)

    def _check_rate(self, key_id: str) -> None:
        now = self._clock()
        tokens, at = self._buckets.pop(key_id, (_BURST, now))
        tokens = min(tokens + max(now - at, 0.0) * _BURST / 60.0, _BURST)
        self._buckets[key_id] = (max(tokens - 1.0, tokens if tokens < 1.0 else 0.0), now)
        if tokens < 1.0:
            raise RateLimited(
                f"one key may give feedback {_BURST:.0f} times a minute",
                retry_after=(1.0 - tokens) * 60.0 / _BURST,
            )
