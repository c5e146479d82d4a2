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
    MOST_SECONDS,
    OPENING,
    SOONEST,
    Lookup,
    Evidence,
    after,
    again,
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
class _Answered:
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
        self._answers: OrderedDict[bytes, _Answered] = OrderedDict()
        # By conversation, what was last said in it.
        self._newest: OrderedDict[bytes, bytes] = OrderedDict()

    def awaits(self, route: CompiledRoute) -> bool:
        """Return whether a request may follow up an answer, of this replica or another."""
        if self._shared_answers is not None and route.usd_per_bad_answer:
            return True
        return bool(self._answers) or len(self._learning.background) > 0

    def answered(
        self, conversation: Conversation, quality: RequestQuality, chosen: Candidate, at: float
    ) -> None:
        """Remember an answer that began ``at``."""
        forecast = chosen.forecast
        if forecast is None or forecast.estimate is None:
            return
        ability, context = chosen.deployment.ability, conversation.context
        answer = _Answered(
            context.owner,
            context.request_id,
            chosen.deployment.model.name,
            0.0 if ability is None else ability.mean,
            quality.question,
            forecast.estimate.p,
            at,
        )
        self._remember(conversation, answer)

    async def close(self) -> None:
        await self._learning.background.close()
        if self._shared_answers is not None:
            await self._shared_answers.close()

    def noticed(self, conversation: Conversation, route: CompiledRoute, at: float) -> bool:
        """Look whether a request that came ``at`` follows up an answer, before its own is remembered;
        returns whether an answer that this replica knows of did not help."""
        shared_answers = self._shared_answers
        context, said = conversation.context, conversation.said
        if said is None:
            return False
        place, before = conversation.names(self._secret)
        lookup = Lookup(
            owner=context.owner,
            key_id=context.key_id,
            place=place,
            before=before,
            newest=said[0][:OPENING],
            ability=_named(route),
            at=at,
        )
        evidence, earlier = self._evidence(lookup)
        note = partial(self._observe, lookup, evidence, earlier)
        only_here = earlier is not None and not earlier.shared
        if shared_answers is None or only_here or not shared_answers.look_up(lookup, note):
            note()
        return evidence is not None and evidence is not CONTINUED

    def _remember(self, conversation: Conversation, answer: _Answered) -> None:
        context, said = conversation.context, conversation.said
        if said is None or (len(said) == 1 and len(said[0]) < _SHORT):
            return
        place, before = conversation.names(self._secret)
        if self._shared_answers is not None:
            answer.shared = self._shared_answers.remember(
                place, before, context.request_id, answer.ability, answer.at
            )
        self._answers[place] = answer
        if before is not None:
            self._newest[before] = place
        for kept in (self._answers, self._newest):
            while len(kept) > _CAPACITY:
                kept.popitem(last=False)

    def _observe(
        self, lookup: Lookup, evidence: Evidence | None, earlier: _Answered | None
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
        self._learning.observed(earlier.owner, earlier.request_id, signal, p_good=earlier.p_good)

    def _evidence(self, lookup: Lookup) -> tuple[Evidence | None, _Answered | None]:
        """What the request says of an earlier answer, which is then forgotten."""
        if (earlier := self._take(lookup.place, lookup.at)) is not None:
            return again(lookup, earlier.ability), earlier
        if lookup.before is None:
            return None, None
        if (earlier := self._take(lookup.before, lookup.at)) is not None:
            return after(lookup), earlier
        sibling = self._newest.get(lookup.before)
        if sibling is not None and (earlier := self._take(sibling, lookup.at)) is not None:
            return EDITED, earlier
        return None, None

    def _take(self, place: bytes, at: float) -> _Answered | None:
        found = self._answers.get(place)
        if found is None or at - found.at < SOONEST:
            return None
        del self._answers[place]
        return found if at - found.at <= MOST_SECONDS else None


def _named(route: CompiledRoute) -> float | None:
    """The ability of the model that the client names; None where it leaves the choice to the router,
    or nothing is known of the model."""
    if route.chooses_model or not route.targets:
        return None
    ability = route.targets[0].deployment.ability
    return None if ability is None else ability.mean
