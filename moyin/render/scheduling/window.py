"""`Window`: the renders that wait in a pool beside its renderers, and which goes where. No clock.

The whole policy of a render farm is in `Window.choose`, in this order:

1. A render that is due (`Rules.due`) goes first, wherever it costs least. So nobody starves.
2. A renderer *changes* for the models for which there is the longest queue per renderer that has
   them: if it has nothing loaded; if nothing that suits it waits and nobody else will soon take
   the others; or if those are so much worse off that leaving is worth the change many times.
3. Else it takes what *suits* its loaded models: by class, aged, then from the owner whose turn it
   is, then by arrival.

What may wait for a renderer that has its models does, though another is free, as long as those
renderers keep taking work: loading models anew is what costs a farm its throughput.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from moyin.render.scheduling.fair_share import OwnerFairShare
from moyin.render.scheduling.policy import PendingRender, RendererSlot, Rules

__all__ = ["Choice", "Window"]

# Until renders have been seen to end, and how fast newer ones count for more.
_SERVICE_SECONDS = 10.0
_SERVICE_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Choice:
    """``waiting`` goes to ``seat``."""

    waiting: PendingRender
    seat: RendererSlot


class _Queue:
    """The renders of one family, by owner and class, each in the order of their arrival."""

    def __init__(self) -> None:
        self.flows: dict[tuple[str, int], list[tuple[float, str, int, PendingRender]]] = {}
        self.count = 0

    def add(self, waiting: PendingRender) -> None:
        flow = self.flows.setdefault((waiting.owner, waiting.priority), [])
        insort(flow, (waiting.arrived, waiting.id, id(waiting), waiting))
        self.count += 1

    def remove(self, waiting: PendingRender) -> None:
        flow = self.flows[waiting.owner, waiting.priority]
        del flow[bisect_left(flow, (waiting.arrived, waiting.id, id(waiting)))]
        if not flow:
            del self.flows[waiting.owner, waiting.priority]
        self.count -= 1

    def heads(self) -> Iterator[PendingRender]:
        """The first of each flow."""
        return (flow[0][3] for flow in self.flows.values())


class Window:
    """Keeps no time: ``now`` is in seconds and never goes backwards. Ask `choose`, then `begin`.

    Attributes:
        service: seconds that a render takes, on average.
        changes: how often a renderer had to load models.
    """

    def __init__(self, rules: Rules | None = None, turns: OwnerFairShare | None = None) -> None:
        self._rules = rules or Rules()
        self._turns = turns or OwnerFairShare()
        self._seats: dict[str, RendererSlot] = {}
        self._free: dict[str, RendererSlot] = {}
        # Renderers that have a family loaded, busy ones too.
        self._holders: Counter[str] = Counter()
        self._queues: dict[str, _Queue] = {}
        self._owners: Counter[str] = Counter()
        self._dues: list[tuple[float, float, int, PendingRender]] = []
        self._inside: dict[int, PendingRender] = {}
        self.service = _SERVICE_SECONDS
        self.changes = 0

    def __len__(self) -> int:
        return len(self._inside)

    def enter(self, waiting: PendingRender) -> None:
        """A render waits from now, its ``entered``, on."""
        key = id(waiting)
        self._inside[key] = waiting
        self._queues.setdefault(waiting.family, _Queue()).add(waiting)
        self._owners[waiting.owner] += 1
        heapq.heappush(self._dues, (self._rules.due(waiting), waiting.arrived, key, waiting))

    def leave(self, waiting: PendingRender) -> None:
        """It waits no more; nothing when it does not."""
        if self._inside.pop(id(waiting), None) is None:
            return
        queue = self._queues[waiting.family]
        queue.remove(waiting)
        if not queue.count:
            del self._queues[waiting.family]
        self._owners[waiting.owner] -= 1
        if not self._owners[waiting.owner]:
            del self._owners[waiting.owner]

    @property
    def undecided(self) -> bool:
        """Whether renders wait though a renderer is free: time alone may change that."""
        return bool(self._free and self._inside)

    def seat(self, name: str, models: Sequence[str], now: float) -> None:
        """A renderer is up and free, with ``models`` in memory, the largest first."""
        family = models[0] if models else ""
        seat = RendererSlot(name=name, models=frozenset(models), family=family, rested=now)
        self._seats[name] = self._free[name] = seat
        self._holders[family] += 1

    def unseat(self, name: str) -> None:
        """A renderer is gone; nothing when it was not there."""
        seat = self._seats.pop(name, None)
        self._free.pop(name, None)
        if seat is not None:
            self._lose(seat.family)

    def hold(self, name: str) -> None:
        """A renderer is busy with something else."""
        self._free.pop(name, None)

    def free(self, name: str, now: float) -> None:
        """A renderer is not busy any more; nothing when it was not."""
        if name not in self._free:
            self._seats[name].rested = now
            self._free[name] = self._seats[name]

    def idle(self, name: str, now: float) -> float | None:
        """Seconds for which a renderer has been free; None when it is not."""
        return now - self._free[name].rested if name in self._free else None

    def begin(self, choice: Choice, now: float) -> None:
        """The renderer is busy with the render, and has its models from now on."""
        waiting, seat = choice.waiting, choice.seat
        self.leave(waiting)
        self._turns.serve(waiting.owner, self._owners)
        del self._free[seat.name]
        seat.began = now
        if waiting.models:
            self.changes += not seat.models.issuperset(waiting.models)
            self._lose(seat.family)
            seat.models, seat.family = frozenset(waiting.models), waiting.family
            self._holders[seat.family] += 1

    def end(self, seconds: float) -> None:
        """A render has taken so long."""
        self.service += _SERVICE_WEIGHT * (seconds - self.service)

    def foresee(self, name: str, now: float) -> PendingRender | None:
        """What a busy renderer would probably get next: of its family, or of none."""
        seat = self._seats.get(name)
        families = [] if seat is None else [f for f in {seat.family, ""} if f in self._queues]
        firsts = [self._first(family, now) for family in families]
        return min(firsts, key=lambda first: self._turn(first, now), default=None)

    def choose(self, now: float) -> Choice | None:
        """The next render to begin, and where; None when all that wait had better wait on."""
        if not self._free or not self._inside:
            return None
        return self._due(now) or self._changing(now) or self._suiting(now)

    def _due(self, now: float) -> Choice | None:
        while self._dues and self._dues[0][2] not in self._inside:
            heapq.heappop(self._dues)
        if not self._dues or self._dues[0][0] > now:
            return None
        waiting = self._dues[0][3]
        return Choice(waiting, self._cheapest(waiting, self._free.values()))

    def _changing(self, now: float) -> Choice | None:
        worst_first = sorted(filter(None, self._queues), key=self._delay, reverse=True)
        # One for all that have the same loaded: that which is free for longest.
        free = {seat.family: seat for seat in reversed(self._free.values())}
        for family in worst_first:
            if family in free:
                continue
            oldest = min(self._queues[family].heads(), key=lambda head: head.entered)
            seats = [s for s in free.values() if self._should_change(s, oldest, now)]
            if seats:
                waiting = self._first(family, now)
                return Choice(waiting, self._cheapest(waiting, seats))
        return None

    def _should_change(self, seat: RendererSlot, oldest: PendingRender, now: float) -> bool:
        family, rules = oldest.family, self._rules
        if not seat.family:
            return True
        load = rules.load_seconds(oldest, seat)
        if seat.family in self._queues:
            if not self._holders[family]:
                return now - oldest.entered > rules.patience(load)
            worse = self._delay(family) - self._delay(seat.family, leaving=1)
            return worse > rules.imbalance(load)
        if not self._holders[family] or self._delay(family) > rules.imbalance(load):
            return True
        # Those who have its models may be at something long.
        moved = max(other.began for other in self._seats.values() if other.family == family)
        return now - max(moved, oldest.entered, seat.rested) > load

    def _suiting(self, now: float) -> Choice | None:
        families = {seat.family for seat in self._free.values()} | {""}
        firsts = [self._first(family, now) for family in families if family in self._queues]
        if not firsts:
            return None
        waiting = min(firsts, key=lambda first: self._turn(first, now))
        suited = [s for s in self._free.values() if waiting.family in ("", s.family)]
        return Choice(waiting, self._cheapest(waiting, suited))

    def _delay(self, family: str, leaving: int = 0) -> float:
        """Seconds until the family's queue would be empty, if nothing changed."""
        if family not in self._queues:
            return 0.0
        holders = self._holders[family] - leaving
        return self._queues[family].count * self.service / holders if holders > 0 else math.inf

    def _cheapest(self, waiting: PendingRender, seats: Collection[RendererSlot]) -> RendererSlot:
        """Little to load, of little use to others, free for longest."""
        return min(
            seats,
            key=lambda seat: (
                self._rules.load_seconds(waiting, seat),
                self._delay(seat.family),
                -self._holders[seat.family],
                seat.rested,
            ),
        )

    def _lose(self, family: str) -> None:
        self._holders[family] -= 1
        if not self._holders[family]:
            del self._holders[family]

    def _first(self, family: str, now: float) -> PendingRender:
        return min(self._queues[family].heads(), key=lambda head: self._turn(head, now))

    def _turn(self, waiting: PendingRender, now: float) -> tuple[int, float, float, str]:
        rank = self._rules.rank(waiting, now)
        return (rank, self._turns.of(waiting.owner), waiting.arrived, waiting.id)
