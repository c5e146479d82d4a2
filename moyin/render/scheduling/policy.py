"""The vocabulary of the render order: what waits, what could take it, and the rules; pure.

Times are seconds of one clock; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PendingRender", "RendererSlot", "Rules"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingRender:
    """A render that waits for a renderer.

    Attributes:
        id: of its prompt.
        priority: class 1 (first) to 5 (last).
        arrived: when it was accepted; a retried render keeps its first time.
        owner: whose it is.
        entered: when it entered the window; the clock of its ageing.
        deadline: when it must be finished, if ever.
        models: files that it loads, with their sizes.
        family: the largest of them, by which renders that suit each other are known; "" if none.
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
        models: files that it has in memory; ``family`` the largest.
        began: when its latest render began; ``rested``: when it became free.
    """

    name: str
    models: frozenset[str] = frozenset()
    family: str = ""
    began: float = 0.0
    rested: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How far affinity may go.

    Attributes:
        ageing: seconds in the window that lift a render by one class. A render of class ``p`` is
            *due* after ``p * ageing`` seconds: then nothing that entered after it may pass it.
        deadline_margin: a render is due this long before its deadline.
        bytes_per_second: at which models are loaded, to weigh a change against waiting.
        unserved: how many times the duration of a change a render waits whose models nobody has,
            while every renderer has work that suits what it has loaded.
        unequal: how many times the duration of a change one queue may be longer than another,
            in seconds of work per renderer, before a renderer moves over.
        min_patience: seconds, for models that load in no time.
    """

    ageing: float = 300.0
    deadline_margin: float = 60.0
    bytes_per_second: float = 5e8
    unserved: float = 4.0
    unequal: float = 12.0
    min_patience: float = 5.0

    def patience(self, load: float) -> float:
        """Seconds that models which nobody has may be waited for; ``load``: to load them."""
        return max(self.min_patience, self.unserved * load)

    def imbalance(self, load: float) -> float:
        """Seconds by which queues may differ."""
        return max(self.min_patience, self.unequal * load)

    def due(self, waiting: PendingRender) -> float:
        """From when on nothing that entered later goes first."""
        due = waiting.entered + waiting.priority * self.ageing
        if waiting.deadline is None:
            return due
        return min(due, waiting.deadline - self.deadline_margin)

    def rank(self, waiting: PendingRender, now: float) -> int:
        """The class of a render, aged: 1 (first) to 5."""
        aged = int(max(0.0, now - waiting.entered) // self.ageing)
        return max(1, waiting.priority - aged)

    def load_seconds(self, waiting: PendingRender, seat: RendererSlot) -> float:
        """How long the renderer would load models before it could begin; 0 when it has them."""
        missing = sum(size for name, size in waiting.models.items() if name not in seat.models)
        return missing / self.bytes_per_second
