"""Lists how sampled answers end, for metrics."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeAlias

__all__ = ["Count", "Outcome"]


class Outcome(StrEnum):
    """Lists the ways in which a sampled answer ends.

    Attributes:
        STARTED: its comparison is queued.
        REPEATED: its request id was compared before.
        OPTED_OUT: its tenant opted out.
        UNSUITABLE: it has pictures or audio, several answers, or is too long.
        ALONE: there is no second model, or only the judge's own.
        RESIDENCY: its data may not go where the judge or the second model runs.
        FROZEN: its tenant's learning is frozen.
        DROPPED: the queue is full.
        UNAVAILABLE: Temporal or Valkey is unavailable.
        BUDGET: the monthly budget does not cover it.
        ANSWERED: the second answer is stored.
        GONE: it expired or was lost.
        OFF: the judge was turned off meanwhile.
        CUT: the second answer exceeded its token limit.
        FAILED: the second model or the judge failed to answer.
        UNPARSABLE: the judge's answer has the wrong format.
        AGREED, DISAGREED: the judge found the client's answer no worse, or worse.
        CANCELLED: an operator cancelled it.
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


# Counts an outcome. Runs on the hot path, so it must not do work there.
Count: TypeAlias = Callable[[Outcome], None]
