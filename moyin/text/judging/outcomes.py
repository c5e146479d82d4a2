"""How sampled answers end, for metrics."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeAlias

__all__ = ["Count", "Outcome"]


class Outcome(StrEnum):
    """What became of an answer that the draw hit.

    Attributes:
        STARTED: its comparison waits in the queue.
        REPEATED: its request id was compared before.
        OPTED_OUT: its tenant is not judged.
        UNSUITABLE: pictures, sound, several answers, or too long.
        ALONE: no second model, or only the judge's own.
        RESIDENCY: its data may not go where the judge or the second model is.
        FROZEN: its tenant learns nothing.
        DROPPED: too many wait.
        UNAVAILABLE: Temporal or Valkey is away.
        BUDGET: the month's budget does not cover it.
        ANSWERED: the second answer is there.
        GONE: it waited too long, or was lost.
        OFF: the judge was turned off meanwhile.
        CUT: the second answer would have been longer than the bound.
        FAILED: the second model or the judge could not answer.
        UNPARSABLE: the judge's answer is not what was asked for.
        AGREED, DISAGREED: the judge found the client's answer no worse, or worse.
        CANCELLED: an operator ended it.
    """

    STARTED = "started"
    REPEATED = "repeated"
    OPTED_OUT = "opted_out"
    UNSUITABLE = "unsuitable"
    ALONE = "alone"
    RESIDENCY = "residency"
    FROZEN = "frozen"
    DROPPED = "dropped"
    UNAVAILABLE = "unavailable"
    BUDGET = "budget"
    ANSWERED = "answered"
    GONE = "gone"
    OFF = "off"
    CUT = "cut"
    FAILED = "failed"
    UNPARSABLE = "unparsable"
    AGREED = "agreed"
    DISAGREED = "disagreed"
    CANCELLED = "cancelled"


# Takes notes on the hot path: it may keep them, not work on them.
Count: TypeAlias = Callable[[Outcome], None]
