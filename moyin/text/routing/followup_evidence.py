"""Derives evidence about an answer's quality from the request that follows it up."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moyin.text.quality.estimator import Signal
from moyin.text.quality.question import Question

MAX_SECONDS = 300.0
# Seconds; an earlier repetition comes from a program that requests several answers to a prompt.
MIN_SECONDS = 2.0
_MIN_ABILITY_GAP = 0.5  # logits
OPENING_LENGTH = 120  # number of characters of a message that are searched for a complaint
_COMPLAINT = re.compile(
    r"\b(?:(?:that|this|it)(?:'s| is| was)(?: still)? (?:wrong|incorrect|false)|not (?:correct|right)"
    r"|(?:does|did)(?:n't| not) (?:work|compile)|you(?:'re| are) wrong|still wrong|try again"
    r"|das ist falsch|stimmt nicht|funktioniert nicht|geht nicht"
    r"|c'est faux|ne marche pas|est[aá] mal|no funciona)\b|違います|違う|間違",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Source, score (0 to 1) and weight of the quality signal that a follow-up gives."""

    source: str
    score: float
    weight: float

    def to_signal(self, model: str, question: Question, query: FollowUpQuery, at: float) -> Signal:
        """Build the quality signal for the model that gave the answer.

        Args:
            model: the model that gave the answer.
            question: the properties of the answered request.
            query: the data of the follow-up, whose API key is the signal's author.
            at: the time of the signal in Unix seconds.
        """
        return Signal(
            model=model,
            question=question,
            score=self.score,
            weight=self.weight,
            source=self.source,
            key=query.key_id,
            at=at,
        )


_REGENERATED = Evidence("regenerated", 0.2, 0.3)
_SWITCHED = Evidence("switched", 0.1, 0.5)
_CORRECTED = Evidence("corrected", 0.0, 0.5)
EDITED = Evidence("edited", 0.3, 0.2)
CONTINUED = Evidence("continued", 0.9, 0.05)


# Not frozen: freezing doubles the cost of creating one per request.
@dataclass(kw_only=True, slots=True)
class FollowUpQuery:
    """The data of a request, used to find the earlier answer that the request follows up.

    Attributes:
        fingerprint: keyed hash of the request's conversation.
        previous: keyed hash of the conversation without its newest message; None if that message
            is the only one.
        opening: the beginning of the newest message.
        ability: ability of the model that the request names, in logits. It is None if the name is
            an alias or the ability is unknown.
        at: arrival time of the request, in seconds since 1970.
    """

    owner: str
    key_id: str
    fingerprint: bytes
    previous: bytes | None
    opening: str
    ability: float | None
    at: float


def evidence_from_repeat(query: FollowUpQuery, ability: float) -> Evidence:
    """Return the evidence that an answer was bad, because the client repeated the request.

    Args:
        ability: ability of the model that gave the earlier answer, in logits.
    """
    has_switched_model = query.ability is not None and query.ability > ability + _MIN_ABILITY_GAP
    return _SWITCHED if has_switched_model else _REGENERATED


def evidence_from_next_message(query: FollowUpQuery) -> Evidence:
    """Return the evidence that the client's next message gives about the answer before it.

    A complaint shows that the answer was bad. Any other message shows that it was probably good.
    """
    return _CORRECTED if _COMPLAINT.search(query.opening) else CONTINUED
