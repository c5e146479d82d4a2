"""Interprets what a follow-up says about the answer before it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "CONTINUED",
    "EDITED",
    "MAX_SECONDS",
    "MIN_SECONDS",
    "OPENING_LENGTH",
    "Evidence",
    "FollowUpQuery",
    "evidence_from_next_message",
    "evidence_from_repeat",
]

MAX_SECONDS = 300.0
# Earlier repeats come from programs that draw several answers to one prompt.
MIN_SECONDS = 2.0
_MIN_ABILITY_GAP = 0.5  # logits
OPENING_LENGTH = 120  # characters of a message that are searched for a complaint
_COMPLAINT = re.compile(
    r"\b(?:(?:that|this|it)(?:'s| is| was)(?: still)? (?:wrong|incorrect|false)|not (?:correct|right)"
    r"|(?:does|did)(?:n't| not) (?:work|compile)|you(?:'re| are) wrong|still wrong|try again"
    r"|das ist falsch|stimmt nicht|funktioniert nicht|geht nicht"
    r"|c'est faux|ne marche pas|est[aá] mal|no funciona)\b|違います|違う|間違",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Holds the source, score and weight of a quality signal."""

    source: str
    score: float
    weight: float


_REGENERATED = Evidence("regenerated", 0.2, 0.3)
_SWITCHED = Evidence("switched", 0.1, 0.5)
_CORRECTED = Evidence("corrected", 0.0, 0.5)
EDITED = Evidence("edited", 0.3, 0.2)
CONTINUED = Evidence("continued", 0.9, 0.05)


# Not frozen: freezing doubles the cost of creating one per request.
@dataclass(kw_only=True, slots=True)
class FollowUpQuery:
    """Describes a request that may follow up an answer.

    Attributes:
        fingerprint: of the conversation up to this request.
        previous: fingerprint of the conversation without the newest message; None: it is the first.
        opening: beginning of the client's last message.
        ability: of the model that the client names, in logits; None: it names none.
        at: arrival of the request, in seconds since 1970.
    """

    owner: str
    key_id: str
    fingerprint: bytes
    previous: bytes | None
    opening: str
    ability: float | None
    at: float


def evidence_from_repeat(lookup: FollowUpQuery, ability: float) -> Evidence:
    """Return the evidence given by a request that is sent again.

    Args:
        ability: of the model that answered, in logits.
    """
    switched = lookup.ability is not None and lookup.ability > ability + _MIN_ABILITY_GAP
    return _SWITCHED if switched else _REGENERATED


def evidence_from_next_message(lookup: FollowUpQuery) -> Evidence:
    """Return the evidence given by the next message, which may be a complaint."""
    return _CORRECTED if _COMPLAINT.search(lookup.opening) else CONTINUED
