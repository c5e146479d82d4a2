"""What clients do after an answer, as signals of its quality: nobody has to be asked for them.

A client that asks the same again, edits its last message, says that the answer is wrong, or turns to a
better model by name, was probably not served well. One that goes on in the conversation probably was.
Each is weak evidence, so each weighs little, and counts once per answer.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from moyin.text.quality.estimator import Signal
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
    Lookup,
    evidence_of_next_message,
    evidence_of_repeat,
)
from moyin.text.routing.learning import Learning
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.shared_answers import SharedAnswers

__all__ = ["FollowUps"]

_CAPACITY = 20_000
# A short first message, such as "hello", is sent by many people of one key.
_SHORT = 40


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(slots=True)
class _PastAnswer:
    """An answer that a client may come back to.

    Attributes:
        shared: other replicas know of it.
    """

    owner: str
    request_id: str
    model: str
    ability: float
    question: Question
    p_good: float
    at: float
    shared: bool = False


class FollowUps:
    """Remembers answers for some minutes, by keyed hashes of the conversation; no text is kept.

    Args:
        shared_answers: tells of other replicas' answers; None: each notices follow-ups to its own only.
        secret: key of the hashes, the same in all replicas.
    """

    def __init__(
        self,
        learning: Learning,
        *,
        shared_answers: SharedAnswers | None = None,
        secret: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._learning = learning
        self._shared_answers = shared_answers
        self._clock = clock
        # Whoever reads Valkey must not be able to try out texts.
        self._secret = hashlib.blake2b(
            secret or secrets.token_bytes(32), person=b"followups"
        ).digest()
        self._answers: OrderedDict[bytes, _PastAnswer] = OrderedDict()
        # By conversation, what was last said in it.
        self._newest: OrderedDict[bytes, bytes] = OrderedDict()

    def may_match(self, route: CompiledRoute) -> bool:
        """Return whether a request may follow up an answer, of this replica or another."""
        if self._shared_answers is not None and route.usd_per_bad_answer:
            return True
        return bool(self._answers) or len(self._learning.background) > 0

    def remember(
        self, conversation: Conversation, quality: RequestQuality, chosen: Candidate, at: float
    ) -> None:
        """Remember an answer that began ``at``."""
        forecast = chosen.forecast
        if forecast is None or forecast.estimate is None:
            return
        ability, context = chosen.deployment.ability, conversation.context
        answer = _PastAnswer(
            context.owner,
            context.request_id,
            chosen.deployment.model.name,
            0.0 if ability is None else ability.mean,
            quality.question,
            forecast.estimate.p,
            at,
        )
        self._store(conversation, answer)

    async def close(self) -> None:
        await self._learning.background.close()
        if self._shared_answers is not None:
            await self._shared_answers.close()

    def detect(self, conversation: Conversation, route: CompiledRoute, at: float) -> bool:
        """Look whether a request that came ``at`` follows up an answer, before its own is remembered;
        returns whether an answer that this replica knows of did not help."""
        shared_answers = self._shared_answers
        context, user_messages = conversation.context, conversation.user_messages
        if user_messages is None:
            return False
        fingerprint, previous = conversation.fingerprints(self._secret)
        lookup = Lookup(
            owner=context.owner,
            key_id=context.key_id,
            fingerprint=fingerprint,
            previous=previous,
            opening=user_messages[0][:OPENING_LENGTH],
            ability=_requested_ability(route),
            at=at,
        )
        evidence, earlier = self._evidence(lookup)
        note = partial(self._record_signal, lookup, evidence, earlier)
        only_here = earlier is not None and not earlier.shared
        if shared_answers is None or only_here or not shared_answers.look_up(lookup, note):
            note()
        return evidence is not None and evidence is not CONTINUED

    def _store(self, conversation: Conversation, answer: _PastAnswer) -> None:
        context, user_messages = conversation.context, conversation.user_messages
        if user_messages is None or (len(user_messages) == 1 and len(user_messages[0]) < _SHORT):
            return
        fingerprint, previous = conversation.fingerprints(self._secret)
        if self._shared_answers is not None:
            answer.shared = self._shared_answers.remember(
                fingerprint, previous, context.request_id, answer.ability, answer.at
            )
        self._answers[fingerprint] = answer
        if previous is not None:
            self._newest[previous] = fingerprint
        for kept in (self._answers, self._newest):
            while len(kept) > _CAPACITY:
                kept.popitem(last=False)

    def _record_signal(
        self, lookup: Lookup, evidence: Evidence | None, earlier: _PastAnswer | None
    ) -> None:
        if evidence is None or earlier is None:
            return
        signal = Signal(
            model=earlier.model,
            question=earlier.question,
            score=evidence.score,
            weight=evidence.weight,
            source=evidence.source,
            key=lookup.key_id,
            at=self._clock(),
        )
        self._learning.record_signal(
            earlier.owner, earlier.request_id, signal, p_good=earlier.p_good
        )

    def _evidence(self, lookup: Lookup) -> tuple[Evidence | None, _PastAnswer | None]:
        """What the request says of an earlier answer, which is then forgotten."""
        if (earlier := self._take(lookup.fingerprint, lookup.at)) is not None:
            return evidence_of_repeat(lookup, earlier.ability), earlier
        if lookup.previous is None:
            return None, None
        if (earlier := self._take(lookup.previous, lookup.at)) is not None:
            return evidence_of_next_message(lookup), earlier
        sibling = self._newest.get(lookup.previous)
        if sibling is not None and (earlier := self._take(sibling, lookup.at)) is not None:
            return EDITED, earlier
        return None, None

    def _take(self, fingerprint: bytes, at: float) -> _PastAnswer | None:
        answer = self._answers.get(fingerprint)
        if answer is None or at - answer.at < MIN_SECONDS:
            return None
        del self._answers[fingerprint]
        return answer if at - answer.at <= MAX_SECONDS else None


def _requested_ability(route: CompiledRoute) -> float | None:
    """The ability of the model that the client names; None where it leaves the choice to the router,
    or nothing is known of the model."""
    if route.chooses_model or not route.targets:
        return None
    ability = route.targets[0].deployment.ability
    return None if ability is None else ability.mean
