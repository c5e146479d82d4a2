"""What a follow-up says of the answer before it. Pure."""

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
    "Lookup",
    "evidence_of_next_message",
    "evidence_of_repeat",
]

MAX_SECONDS = 300.0
# Sooner, a program draws several answers to one prompt; nobody has read the first by then.
MIN_SECONDS = 2.0
_STRONGER = 0.5  # logits
OPENING_LENGTH = 120  # characters of a message that may say that the answer was wrong
_COMPLAINT = re.compile(
    r"\b(?:(?:that|this|it)(?:'s| is| was)(?: still)? (?:wrong|incorrect|false)|not (?:correct|right)"
    r"|(?:does|did)(?:n't| not) (?:work|compile)|you(?:'re| are) wrong|still wrong|try again"
    r"|das ist falsch|stimmt nicht|funktioniert nicht|geht nicht"
    r"|c'est faux|ne marche pas|est[aá] mal|no funciona)\b|違います|違う|間違",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A signal's source, score and weight."""

    source: str
    score: float
    weight: float


_REGENERATED = Evidence("regenerated", 0.2, 0.3)
_SWITCHED = Evidence("switched", 0.1, 0.5)
_CORRECTED = Evidence("corrected", 0.0, 0.5)
EDITED = Evidence("edited", 0.3, 0.2)
CONTINUED = Evidence("continued", 0.9, 0.05)


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class Lookup:
    """A request that may follow up an answer.

    Attributes:
        fingerprint: name of the conversation up to this request.
        previous: name of the conversation up to the message before it; None: it is the first.
        opening: how the client's last message begins.
        ability: of the model that the client names, in logits; None: it names none.
        at: seconds since 1970, when the request came.
    """

    owner: str
    key_id: str
    fingerprint: bytes
    previous: bytes | None
    opening: str
    ability: float | None
    at: float


def evidence_of_repeat(lookup: Lookup, ability: float) -> Evidence:
    """Return what it means that the same is asked again.

    Args:
        ability: of the model that answered, in logits.
    """
    switched = lookup.ability is not None and lookup.ability > ability + _STRONGER
    return _SWITCHED if switched else _REGENERATED


def evidence_of_next_message(lookup: Lookup) -> Evidence:
    """Return what the next message of the conversation means: perhaps that the answer was wrong."""
    return _CORRECTED if _COMPLAINT.search(lookup.opening) else CONTINUED
