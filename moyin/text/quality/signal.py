"""A signal: how good one answer turned out to be."""

from __future__ import annotations

from dataclasses import dataclass

from moyin.text.quality.question import Question

__all__ = ["Signal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """How good one answer was.

    Attributes:
        score: 0 for a useless answer, 1 for a good one.
        weight: 0 to 1: how sure the source is; a rating is 1, a regenerated answer less.
        source: ``feedback``, ``regenerated``, ``switched``, ``checked``, ``rescue``, ``judge``
            and others.
        key: whose signal it is, such as the id of an API key; empty: the system's own.
        at: seconds since 1970.
    """

    model: str
    question: Question
    score: float
    weight: float
    source: str
    key: str
    at: float

    def __post_init__(self) -> None:
        for name in ("score", "weight"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:  # also refuses NaN
                raise ValueError(f"{name} must be between 0 and 1, not {value!r}")
