"""Detects requests that follow up an answer, and records their evidence about its quality.

If a client repeats a request, edits its last message, complains, or switches to a better model, the
answer was probably bad. If the client continues the conversation, it was probably good. This is
weak evidence: the signal has a small weight, and each answer gets only one.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from moyin.system.bounded import BoundedDict
from moyin.text.quality.question import Question
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.conversation import Conversation
from moyin.text.routing.decision import Candidate
from moyin.text.routing.followup_evidence import (
    CONTINUED,
    EDITED,
    MAX_SECONDS,
    MIN_SECONDS,
    OPENING_LENGTH,
    Evidence,
    FollowUpQuery,
    evidence_from_next_message,
    evidence_from_repeat,
)
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.shared_answers import SharedAnswers

_MAX_ANSWERS = 20_000
# Shorter first messages, such as "hello", are ignored: many people who share a key send them.
_MIN_FIRST_MESSAGE_LENGTH = 40


# Not frozen: freezing doubles the cost of creating one per request.
@dataclass(slots=True)
class _PastAnswer:
    """Answer that a client may follow up.

    Attributes:
        ability: ability of the model that answered, in logits.
        p_good: predicted probability that the answer is good.
        at: time when the request arrived, in seconds since 1970.
        is_shared: True if other replicas can find the answer too.
    """

    owner: str
    request_id: str
    model: str
    ability: float
    question: Question
    p_good: float
    at: float
    is_shared: bool = False


class FollowUpDetector:
    """Matches requests with the answers of the last five minutes, by hashes of conversations.

    No text is stored.

    Args:
        shared_answers: finds answers of other replicas. If it is None, only the answers of this
            replica are found.
        secret: key of the hashes, which must be the same in all replicas.
    """

    def __init__(
        self,
        learning: QualityLearner,
        *,
        shared_answers: SharedAnswers | None = None,
        secret: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._learning = learning
        self._shared_answers = shared_answers
        self._clock = clock
        # The hash has a key, so that readers of Valkey cannot test guesses of texts against it.
        self._secret = hashlib.blake2b(
            secret or secrets.token_bytes(32), person=b"followups"
        ).digest()
        self._answers: BoundedDict[bytes, _PastAnswer] = BoundedDict(_MAX_ANSWERS)
        # Fingerprint of the latest request by the fingerprint of the conversation before it.
        self._latest_by_conversation: BoundedDict[bytes, bytes] = BoundedDict(_MAX_ANSWERS)

    def may_match(self, route: CompiledRoute) -> bool:
        """Return True if there may be an answer that a request to this route follows up."""
        if self._shared_answers is not None and route.usd_per_bad_answer:
            return True
        return bool(self._answers) or len(self._learning.background) > 0

    def remember_answer(
        self,
        conversation: Conversation,
        quality: RequestQuality,
        chosen_candidate: Candidate,
        arrived_at: float,
    ) -> None:
        """Remember the answer to a request, so that later follow-ups are detected.

        Args:
            arrived_at: the Unix time at which the request arrived.
        """
        forecast, user_messages = chosen_candidate.forecast, conversation.user_messages
        if forecast is None or forecast.estimate is None or user_messages is None:
            return
        if len(user_messages) == 1 and len(user_messages[0]) < _MIN_FIRST_MESSAGE_LENGTH:
            return
        ability, context = chosen_candidate.deployment.ability, conversation.context
        answer = _PastAnswer(
            context.owner,
            context.request_id,
            chosen_candidate.deployment.model.name,
            0.0 if ability is None else ability.mean,
            quality.question,
            forecast.estimate.p,
            arrived_at,
        )
        fingerprint, previous_fingerprint = conversation.compute_fingerprints(self._secret)
        if self._shared_answers is not None:
            answer.is_shared = self._shared_answers.queue_answer(
                fingerprint, previous_fingerprint, context.request_id, answer.ability, answer.at
            )
        self._answers[fingerprint] = answer
        if previous_fingerprint is not None:
            self._latest_by_conversation[previous_fingerprint] = fingerprint

    async def close(self) -> None:
        """Finish the queued detections; further requests are not examined."""
        await self._learning.background.close()
        if self._shared_answers is not None:
            await self._shared_answers.close()

    def detect(self, conversation: Conversation, route: CompiledRoute, arrived_at: float) -> bool:
        """Detect whether a request follows up an answer, and record the signal.

        This must be called before `remember_answer` for the same request.

        Args:
            arrived_at: the Unix time at which the request arrived.
        Returns:
            True if the request shows that an answer of this replica did not help.
        """
        shared_answers = self._shared_answers
        context, user_messages = conversation.context, conversation.user_messages
        if user_messages is None:
            return False
        fingerprint, previous_fingerprint = conversation.compute_fingerprints(self._secret)
        query = FollowUpQuery(
            owner=context.owner,
            key_id=context.key_id,
            fingerprint=fingerprint,
            previous=previous_fingerprint,
            opening=user_messages[0][:OPENING_LENGTH],
            ability=_get_requested_model_ability(route),
            at=arrived_at,
        )
        evidence, past_answer = self._find_evidence(query)
        record_signal = partial(self._record_signal, query, evidence, past_answer)
        is_local = past_answer is not None and not past_answer.is_shared
        if (
            shared_answers is None
            or is_local
            or not shared_answers.queue_query(query, record_signal)
        ):
            record_signal()
        return evidence is not None and evidence is not CONTINUED

    def _record_signal(
        self, query: FollowUpQuery, evidence: Evidence | None, past_answer: _PastAnswer | None
    ) -> None:
        if evidence is None or past_answer is None:
            return
        signal = evidence.to_signal(past_answer.model, past_answer.question, query, self._clock())
        self._learning.record_signal(
            past_answer.owner, past_answer.request_id, signal, p_good=past_answer.p_good
        )

    def _find_evidence(self, query: FollowUpQuery) -> tuple[Evidence | None, _PastAnswer | None]:
        """Find and forget the recent answer that a request follows up.

        Returns:
            The evidence about the answer's quality, and the answer; both are None if there is none.
        """
        if (past_answer := self._pop_recent_answer(query.fingerprint, query.at)) is not None:
            return evidence_from_repeat(query, past_answer.ability), past_answer
        if query.previous is None:
            return None, None
        if (past_answer := self._pop_recent_answer(query.previous, query.at)) is not None:
            return evidence_from_next_message(query), past_answer
        sibling_fingerprint = self._latest_by_conversation.get(query.previous)
        if (
            sibling_fingerprint is not None
            and (past_answer := self._pop_recent_answer(sibling_fingerprint, query.at)) is not None
        ):
            return EDITED, past_answer
        return None, None

    def _pop_recent_answer(self, fingerprint: bytes, arrived_at: float) -> _PastAnswer | None:
        answer = self._answers.get(fingerprint)
        if answer is None or arrived_at - answer.at < MIN_SECONDS:
            return None
        del self._answers[fingerprint]
        return answer if arrived_at - answer.at <= MAX_SECONDS else None


def _get_requested_model_ability(route: CompiledRoute) -> float | None:
    """Return the ability of the model that the request names, in logits.

    The result is None if the ability is unknown or the name is that of an alias.
    """
    if route.chooses_model or not route.targets:
        return None
    ability = route.targets[0].deployment.ability
    return None if ability is None else ability.mean
