"""Defines the terms of the render order: waiting renders, renderers, rules and fair shares. Pure.

Times are seconds of one clock; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from moyin.system.bounded import BoundedDict

__all__ = ["OwnerFairShare", "PendingRender", "RendererSlot", "Rules"]

_REMEMBERED_OWNERS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingRender:
    """A render that waits for a renderer.

    Attributes:
        id: id of its prompt.
        priority: class 1 (first) to 5 (last).
        arrived: time at which it was accepted; a retried render keeps its first time.
        owner: id of the owner who submitted it.
        entered: time at which it entered the window; its ageing starts then.
        deadline: time by which it must be finished; None: no deadline.
        models: sizes of the model files that it loads, by file.
        family: the largest of these files; renders of one family suit each other. "" if it loads
            none.
    """

    id: str
    priority: int
    arrived: float
    owner: str = ""
    entered: float = 0.0
    deadline: float | None = None
    models: Mapping[str, int] = field(default_factory=dict)
    family: str = field(init=False)

    def __post_init__(self) -> None:
        largest = max(self.models, key=lambda name: (self.models[name], name), default="")
        object.__setattr__(self, "family", largest)


@dataclass(slots=True)
class RendererSlot:
    """A renderer as the policy sees it.

    Attributes:
        models: model files in its memory.
        family: the largest of these files.
        began: time at which its latest render began.
        free_since: time at which it became free.
    """

    name: str
    models: frozenset[str] = frozenset()
    family: str = ""
    began: float = 0.0
    free_since: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Limits on how far model affinity may change the order.

    Attributes:
        ageing: seconds in the window that raise a render by one class. A render of class ``p`` is
            *due* after ``p * ageing`` seconds: then no render that entered later may pass it.
        deadline_margin: seconds before its deadline at which a render becomes due.
        bytes_per_second: speed at which models are loaded, to weigh a change against waiting.
        unserved: while every renderer has work for the models that it has loaded, a render whose
            models are loaded nowhere waits this many times the duration of the model change.
        unequal: one queue may be longer than another by this many times the duration of a model
            change, in seconds of work per renderer, before a renderer changes over.
        min_patience: smallest value of both limits in seconds, for models that load at once.
    """

    ageing: float = 300.0
    deadline_margin: float = 60.0
    bytes_per_second: float = 5e8
    unserved: float = 4.0
    unequal: float = 12.0
    min_patience: float = 5.0

    def patience(self, load_seconds: float) -> float:
        """Return for how many seconds a render may wait for models that are loaded nowhere."""
        return max(self.min_patience, self.unserved * load_seconds)

    def imbalance(self, load_seconds: float) -> float:
        """Return by how many seconds of work two queues may differ."""
        return max(self.min_patience, self.unequal * load_seconds)

    def due(self, pending: PendingRender) -> float:
        """Return the time from which no render that entered later may pass this one."""
        due = pending.entered + pending.priority * self.ageing
        if pending.deadline is None:
            return due
        return min(due, pending.deadline - self.deadline_margin)

    def rank(self, pending: PendingRender, now: float) -> int:
        """Return the class of a render after ageing: 1 (first) to 5 (last)."""
        aged = int(max(0.0, now - pending.entered) // self.ageing)
        return max(1, pending.priority - aged)

    def load_seconds(self, pending: PendingRender, slot: RendererSlot) -> float:
        """Return how long the renderer loads models before the render; 0 if it has them all."""
        missing = sum(size for name, size in pending.models.items() if name not in slot.models)
        return missing / self.bytes_per_second


class OwnerFairShare:
    """Orders owners by start-time fair queueing: a served render adds ``1 / weight`` to its owner.

    An owner who returns after a pause starts at the present virtual time, with neither credit nor
    debt. So no owner can save up turns and then occupy the whole farm.

    Args:
        weights: weights by owner; owners that are not listed have weight 1.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        # The least recently served owner is dropped first, which costs no owner a turn.
        self._served: BoundedDict[str, float] = BoundedDict(_REMEMBERED_OWNERS)
        self._present = 0.0

    def virtual_time(self, owner: str) -> float:
        """Return the owner's virtual time; the owner with the smallest is served next."""
        return max(self._served.get(owner, self._present), self._present)

    def serve(self, owner: str, others: Iterable[str] = ()) -> None:
        """Charge the owner for one render, while ``others`` wait."""
        start = self.virtual_time(owner)
        # The present is the smallest virtual time of the waiting owners, not that of the served
        # one: affinity may serve an owner out of turn, which must not cost the others theirs.
        self._present = min((self.virtual_time(other) for other in others), default=start)
        self._present = min(self._present, start)
        self._served[owner] = start + 1.0 / self._weights.get(owner, 1.0)
