"""What a follow-up says of the answer before it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONTINUED", "EDITED", "MOST_SECONDS", "SOONEST", "Lookup", "Sign", "after", "again"]

MOST_SECONDS = 300.0
# Sooner, a program draws several answers to one prompt; nobody has read the first by then.
SOONEST = 2.0
_STRONGER = 0.5  # logits


@dataclass(frozen=True, slots=True)
class Sign:
    """A signal's source, score and weight."""

    source: str
    score: float
    weight: float


_REGENERATED = Sign("regenerated", 0.2, 0.3)
_SWITCHED = Sign("switched", 0.1, 0.5)
_CORRECTED = Sign("corrected", 0.0, 0.5)
EDITED = Sign("edited", 0.3, 0.2)
CONTINUED = Sign("continued", 0.9, 0.05)


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class Lookup:
    """A request that may follow up an answer.

    Attributes:
        place: name of the conversation up to this request.
        before: name of the conversation up to the message before it; None: it is the first.
        complains: the newest message says that the answer was wrong.
        ability: of the model that the client names, in logits; None: it names none.
        at: seconds since 1970, when the request came.
    """

    owner: str
    key_id: str
    place: bytes
    before: bytes | None
    complains: bool
    ability: float | None
    at: float


def again(lookup: Lookup, ability: float) -> Sign:
    """Return what it means that the same is asked again.

    Args:
        ability: of the model that answered, in logits.
    """
    switched = lookup.ability is not None and lookup.ability > ability + _STRONGER
    return _SWITCHED if switched else _REGENERATED


def after(lookup: Lookup) -> Sign:
    """Return what the next message of the conversation means."""
    return _CORRECTED if lookup.complains else CONTINUED
