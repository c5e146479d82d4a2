"""Records the ratings that clients give to answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from moyin.errors import FeedbackAlreadyGiven, RateLimited, RequestNotFound
from moyin.store.quality import DECISION_RETENTION, QualityStore, SignalRow
from moyin.store.usage import UsageEntry
from moyin.system.bounded import BoundedDict
from moyin.text.quality.prior import KIND_DIFFICULTY, KIND_SPREAD
from moyin.text.quality.question import Question, restore_features
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.request_quality import question_to_json

# Ratings per key and replica in a burst; the bucket refills within a minute.
_MAX_BURST = 60.0
_MAX_KEYS = 10_000
# Scores and weight of a comparison. It has less weight than a rating, because both answers may be
# good or bad.
_WORSE_SCORE, _BETTER_SCORE, _COMPARISON_WEIGHT = 0.2, 0.8, 0.5
# Stands for the question of a rated request whose model alone is known. It has average difficulty
# and only the feature that all questions have, so that the rating changes the model's general
# estimate.
_UNKNOWN_QUESTION = Question(
    kind="unknown",
    language="en",
    difficulty=sum(KIND_DIFFICULTY.values()) / len(KIND_DIFFICULTY),
    spread=max(KIND_SPREAD.values()),
    features=restore_features((0,)),
)


class LedgerReader(Protocol):
    """Interface that reads from the usage ledger which model answered a request."""

    async def find(
        self, owner: str, request_id: str, since: datetime | None = None
    ) -> UsageEntry | None: ...


class FeedbackService:
    """Service that validates ratings and stores them as quality signals.

    The rated model is read from the recorded decision. If the request has none, because it was not
    routed by quality or not sampled for learning, the model is read from the ledger. The service
    limits the number of ratings per API key; the estimator limits their effect.
    """

    def __init__(
        self,
        store: QualityStore,
        learning: QualityLearner,
        ledger: LedgerReader,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._learning = learning
        self._clock = clock
        self._buckets: BoundedDict[str, tuple[float, float]] = BoundedDict(_MAX_KEYS)

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
        """Record a rating of one answer, or a comparison of two answers, and learn from it.

        A repetition of the same rating has no effect.

        Args:
            score: rating between 0 and 1; None for a comparison.
            better_request_id: id of the request whose answer is better; None for a rating.

        Returns:
            The recorded score of each answer, by request id.

        Raises:
            RequestNotFound: no model answered a request of this tenant with this id.
            FeedbackAlreadyGiven: this key already gave another score.
            RateLimited: this key gave too many ratings within a minute.
        """
        self._check_rate(key_id)
        scores = {request_id: score} if score is not None else {request_id: _WORSE_SCORE}
        source, weight = "feedback", 1.0
        if better_request_id is not None:
            scores, source, weight = (
                {**scores, better_request_id: _BETTER_SCORE},
                "compared",
                _COMPARISON_WEIGHT,
            )
        rows = []
        for rated_request_id, rated_score in scores.items():
            model, question, p_good = await self._find_answer(owner, rated_request_id)
            rows.append(
                SignalRow(
                    owner=owner,
                    request_id=rated_request_id,
                    key_id=key_id,
                    source=source,
                    model=model,
                    question=question,
                    score=rated_score,
                    weight=weight,
                    p_good=p_good,
                    created_at=datetime.fromtimestamp(self._clock(), UTC),
                    comment=comment if rated_request_id == request_id else None,
                )
            )
        stored_rows = await self._store.add(rows)
        for row in stored_rows:
            if row.score != scores[row.request_id]:
                raise FeedbackAlreadyGiven(
                    f"this key already rated the request {row.request_id!r} with {row.score:g}; a rating cannot be changed",
                    field="score" if better_request_id is None else "better_request_id",
                )
        await self._learning.learn_new_signals()
        return scores

    async def _find_answer(
        self, owner: str, request_id: str
    ) -> tuple[str, Mapping[str, Any], float | None]:
        """Find the answer to a request, and how good it was expected to be.

        Returns:
            The model; the question as `question_to_json` encodes it; and the estimated probability
            that the answer is good, None if it was not estimated.
        """
        # Queued rows are written first: the row of a rescued request may replace an earlier row.
        await self._learning.flush()
        decision = await self._store.get_decision(owner, request_id)
        if decision is not None:
            return decision.model, decision.question, decision.p_good
        since = datetime.fromtimestamp(self._clock(), UTC) - DECISION_RETENTION
        entry = await self._ledger.find(owner, request_id, since)
        # Embeddings and requests that the client cancelled early have no answer to rate.
        if entry is None or not entry.output_tokens:
            raise RequestNotFound(
                f"no model answered a request {request_id!r} of this tenant in the last thirty days; send the x-request-id of an answer"
            )
        return entry.model, question_to_json(_UNKNOWN_QUESTION), None

    def _check_rate(self, key_id: str) -> None:
        now = self._clock()
        bucket_tokens, updated_at = self._buckets.pop(key_id, (_MAX_BURST, now))
        bucket_tokens = min(
            bucket_tokens + max(now - updated_at, 0.0) * _MAX_BURST / 60.0, _MAX_BURST
        )
        self._buckets[key_id] = (
            max(bucket_tokens - 1.0, bucket_tokens if bucket_tokens < 1.0 else 0.0),
            now,
        )
        if bucket_tokens < 1.0:
            raise RateLimited(
                f"an API key may give at most {_MAX_BURST:.0f} ratings per minute; retry later",
                retry_after=(1.0 - bucket_tokens) * 60.0 / _MAX_BURST,
            )
