"""Simulates the scheduling of renders, and compares it with FIFO, fair shares and the optimum.

A hundred actors serve fifty owners, who send ten thousand renders with twelve checkpoints; one
owner sends half of them at once. Temporal's simulated queue fills the scheduling window: weighted
fair over owners and priorities. The optimum knows all renders in advance. Run it with ``python -m
benchmarks.scheduling``; it writes ``benchmarks/results/scheduling.{json,png}``.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moyin.render.scheduling.rules import OrderingRules, PendingRender
from moyin.render.scheduling.window import Window

FLOODER = "owner-00"
_CHECKPOINT_BYTES = 6_500_000_000
_TICK = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Farm:
    """The simulated machines.

    Attributes:
        actors: the number of renders that run at the same time.
        window: the number of renders that wait in the pool; all further ones wait in Temporal.
    """

    actors: int
    window: int
    rules: OrderingRules = field(default_factory=OrderingRules)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """The renders in the order of arrival.

    Attributes:
        seconds: the duration of each render by id, without the loading of models.
    """

    renders: tuple[PendingRender, ...]
    seconds: dict[str, float]


@dataclass(kw_only=True, slots=True)
class Outcome:
    """The results of a simulation.

    Attributes:
        changes: how often an actor had to load a checkpoint.
        makespan: seconds until the last render ended.
        waits: seconds from acceptance to start, by owner.
        windowed: for each render its priority, and the seconds that it spent in the window.
        decisions: processor seconds of each scheduling decision.
    """

    changes: int = 0
    makespan: float = 0.0
    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    windowed: list[tuple[int, float]] = field(default_factory=list)
    decisions: list[float] = field(default_factory=list)

    def p95(self, owner: str) -> float:
        """Return the 95th percentile of the owner's waits in seconds."""
        return quantile(self.waits[owner], 0.95)


def quantile(values: Iterable[float], at: float) -> float:
    """Return the smallest value such that at least the share ``at`` of all values is not larger."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(at * len(ordered)) - 1)]


def new_load(
    *,
    seed: int = 1,
    renders: int = 10_000,
    checkpoints: int = 12,
    owners: int = 50,
    batches: tuple[int, int] = (40, 150),
    span: float = 0.0,
) -> Load:
    """Generate renders: half arrive at once from one owner, the others in batches of other owners.

    A batch uses one to four checkpoints, some of which are far more popular than others.

    Args:
        batches: smallest and largest size of a batch.
        span: seconds during which batches arrive; with 0, all wait from the start.
    """
    rng = random.Random(seed)
    names = [f"checkpoints/{number:02}.safetensors" for number in range(checkpoints)]
    popularity = [1 / (rank + 1) ** 0.8 for rank in range(checkpoints)]
    others = itertools.cycle(f"owner-{number:02}" for number in range(1, owners))
    requests = [
        (0.0, number, FLOODER, rng.choices(names, popularity)[0], 3)
        for number in range(renders // 2)
    ]
    while len(requests) < renders:
        owner, at = next(others), rng.uniform(0, span)
        used = rng.choices(names, popularity, k=rng.randint(1, 4))
        priority = rng.choice([3, 3, 3, 2, 4])
        size = min(rng.randint(*batches), renders - len(requests))
        for _ in range(size):
            requests.append((at, len(requests), owner, rng.choice(used), priority))
    requests.sort()
    waiting = tuple(
        PendingRender(
            id=f"{number:05}",
            priority=priority,
            arrived=at,
            owner=owner,
            models={name: _CHECKPOINT_BYTES},
        )
        for number, (at, _, owner, name, priority) in enumerate(requests)
    )
    return Load(renders=waiting, seconds={w.id: rng.uniform(4, 16) for w in waiting})


class TemporalQueue:
    """Simulates Temporal's queue: shares by weights of owners and priorities, FIFO within each."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, PendingRender]] = []
        self._passes: dict[tuple[str, int], float] = {}
        self._present = 0.0
        self._numbers = itertools.count()

    def put(self, waiting: PendingRender) -> None:
        """Append a render."""
        key = (waiting.owner, waiting.priority)
        level = max(self._present, self._passes.get(key, 0.0)) + 1 / _weight(waiting)
        self._passes[key] = level
        heapq.heappush(self._queue, (level, next(self._numbers), waiting))

    def take(self) -> PendingRender | None:
        """Remove and return the next render; None if the queue is empty."""
        if not self._queue:
            return None
        self._present, _, waiting = heapq.heappop(self._queue)
        return waiting


def simulate(load: Load, farm: Farm) -> Outcome:
    """Simulate the load with the product's scheduler, `Window.choose_assignment`."""
    outcome, queue, window = Outcome(), TemporalQueue(), Window(farm.rules)
    names = [f"actor-{number:03}" for number in range(farm.actors)]
    for name in names:
        window.add_renderer(name, (), 0.0)
    arrivals = deque(load.renders)
    ends: list[tuple[float, str, float]] = []
    now, busy = 0.0, 0
    while arrivals or len(window) or ends:
        while arrivals and arrivals[0].arrived <= now:
            queue.put(arrivals.popleft())
        while ends and ends[0][0] <= now:
            _, name, seconds = heapq.heappop(ends)
            window.record_render_seconds(seconds)
            window.mark_free(name, now)
            busy -= 1
        while True:
            while len(window) < farm.window and (entering := queue.take()) is not None:
                window.add(replace(entering, entered=now))
            began = time.thread_time()
            choice = window.choose_assignment(now)
            outcome.decisions.append(time.thread_time() - began)
            if choice is None:
                break
            waiting = choice.pending
            loading = farm.rules.estimate_load_seconds(waiting, choice.slot)
            window.begin_render(choice, now)
            busy += 1
            outcome.changes += loading > 0
            outcome.waits[waiting.owner].append(now - waiting.arrived)
            outcome.windowed.append((waiting.priority, now - waiting.entered))
            seconds = loading + load.seconds[waiting.id]
            outcome.makespan = max(outcome.makespan, now + seconds)
            heapq.heappush(ends, (now + seconds, choice.slot.name, seconds))
        events = [ends[0][0]] if ends else []
        events += [arrivals[0].arrived] if arrivals else []
        events += [now + _TICK] if len(window) and busy < farm.actors else []
        now = min(events, default=now)
    return outcome


def fifo(load: Load, farm: Farm) -> Outcome:
    """Simulate the load with a scheduler that gives the oldest render to the next free actor."""
    outcome = Outcome()
    free = [(0.0, number, "") for number in range(farm.actors)]
    for waiting in load.renders:
        at, number, family = heapq.heappop(free)
        start = max(at, waiting.arrived)
        changes = waiting.family != family
        loading = sum(waiting.models.values()) / farm.rules.bytes_per_second if changes else 0.0
        outcome.changes += changes
        outcome.waits[waiting.owner].append(start - waiting.arrived)
        end = start + loading + load.seconds[waiting.id]
        outcome.makespan = max(outcome.makespan, end)
        heapq.heappush(free, (end, number, waiting.family))
    return outcome


def own_share(load: Load, farm: Farm) -> dict[str, float]:
    """Return how long each owner would wait with actors of its own: the 95th percentile in seconds.

    Each owner's number of actors is proportional to its weight. The loading of models is ignored.
    With fair scheduling no owner waits longer than this.
    """
    renders: dict[str, list[PendingRender]] = defaultdict(list)
    for waiting in load.renders:
        renders[waiting.owner].append(waiting)
    weights = {o: max(_weight(w) for w in pending) for o, pending in renders.items()}
    p95 = {}
    for owner, pending in renders.items():
        share = farm.actors * weights[owner] / sum(weights.values())
        actors = max(1, round(share))
        free, waits = [0.0] * actors, []
        for waiting in pending:
            start = max(heapq.heappop(free), waiting.arrived)
            waits.append(start - waiting.arrived)
            heapq.heappush(free, start + load.seconds[waiting.id] * actors / share)
        p95[owner] = quantile(waits, 0.95)
    return p95


def _weight(waiting: PendingRender) -> float:
    return 2.0 ** (5 - waiting.priority)


def fewest_changes(load: Load, actors: int, makespan: float, *, seed: int = 1) -> tuple[int, int]:
    """Search for the fewest (actor, checkpoint) pairs with which all work fits into ``makespan``.

    The search knows all renders in advance and ignores their arrival, so no scheduler needs fewer
    pairs.

    Returns:
        The fewest pairs that the search found, and a lower bound.
    """
    work: dict[str, float] = defaultdict(float)
    for waiting in load.renders:
        work[waiting.family] += load.seconds[waiting.id]
    bound = sum(math.ceil(seconds / makespan) for seconds in work.values())
    rng = random.Random(seed)
    best = math.inf
    for _ in range(2_000):
        order = list(work.values())
        rng.shuffle(order)
        best = min(best, _pairs(order, makespan))
    return int(best), bound


def _pairs(order: Sequence[float], capacity: float) -> int:
    """Return the number of (actor, checkpoint) pairs if checkpoints are placed in this order.

    Each checkpoint fills actors of ``capacity`` seconds. Its remainder goes to the fullest actor
    that has room for it.

    Args:
        order: the seconds of work of each checkpoint.
    """
    pairs = 0
    free: list[float] = []
    for seconds in order:
        full_actors, rest = divmod(seconds, capacity)
        pairs += int(full_actors)
        if rest <= 0:
            continue
        pairs += 1
        fitting = [index for index, left in enumerate(free) if left >= rest]
        if fitting:
            index = min(fitting, key=lambda i: free[i])
            free[index] -= rest
        else:
            free.append(capacity - rest)
    return pairs


def report(folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> None:
    """Simulate the farm for each seed, print the results, and write ``scheduling.{json,png}``."""
    folder.mkdir(parents=True, exist_ok=True)
    farm = Farm(actors=100, window=2_000)
    rows = []
    for seed in seeds:
        load = new_load(seed=seed)
        rows.append((_measure(load, farm), load))
    for row, _ in rows:
        print(json.dumps(row))
    folder.joinpath("scheduling.json").write_text(json.dumps([r for r, _ in rows], indent=2) + "\n")
    _plot(rows[0][1], farm, folder / "scheduling.png")


def _measure(load: Load, farm: Farm) -> dict[str, Any]:
    ours, plain, shares = simulate(load, farm), fifo(load, farm), own_share(load, farm)
    optimum, bound = fewest_changes(load, farm.actors, ours.makespan)
    worst = max(shares, key=lambda owner: ours.p95(owner) / shares[owner])
    overdue = max(
        waited - priority * farm.rules.ageing_seconds for priority, waited in ours.windowed
    )
    return {
        "renders": len(load.renders),
        "owners": len(shares),
        "changes": ours.changes,
        "changes_fifo": plain.changes,
        "changes_optimum": optimum,
        "changes_bound": bound,
        "makespan": round(ours.makespan),
        "makespan_fifo": round(plain.makespan),
        "worst_owner": worst,
        "worst_owner_share": round(ours.p95(worst) / shares[worst], 2),
        "worst_owner_share_fifo": round(
            max(plain.p95(owner) / share for owner, share in shares.items()), 2
        ),
        "longest_past_due": round(overdue, 1),
        "decision_us_mean": round(sum(ours.decisions) / len(ours.decisions) * 1e6),
        "decision_us_p99": round(quantile(ours.decisions, 0.99) * 1e6),
    }


def _plot(load: Load, farm: Farm, path: Path) -> None:
    from matplotlib.figure import Figure

    ours, plain, shares = simulate(load, farm), fifo(load, farm), own_share(load, farm)
    owners = sorted((o for o in shares if o != FLOODER), key=lambda owner: shares[owner])
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    waits, changes = figure.subplots(1, 2, width_ratios=(3, 1))
    waits.plot([plain.p95(owner) for owner in owners], ".", color="tab:gray", label="FIFO")
    waits.plot([ours.p95(owner) for owner in owners], ".", color="tab:blue", label="Moyin")
    waits.plot([shares[owner] for owner in owners], "_", color="tab:green", label="a share alone")
    waits.plot(
        [2 * shares[owner] for owner in owners], "_", color="tab:red", label="twice that (limit)"
    )
    waits.set(
        xlabel="49 owners other than the one that floods",
        ylabel="p95 wait, seconds",
        ylim=(0, None),
    )
    waits.legend()
    optimum, _ = fewest_changes(load, farm.actors, ours.makespan)
    bars = changes.bar(
        ["FIFO", "Moyin", "optimum"],
        [plain.changes, ours.changes, optimum],
        color=["tab:gray", "tab:blue", "tab:green"],
    )
    changes.bar_label(bars)
    changes.set(ylabel="model changes", yscale="log", ylim=(10, 30_000))
    figure.suptitle(
        f"{len(load.renders):,} renders, {farm.actors} actors, 12 checkpoints, 50 owners, simulated"
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    report(Path(__file__).parent / "results")
