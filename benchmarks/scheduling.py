"""The render order on a simulated farm, beside FIFO, the offline optimum and each owner's share.

Ten thousand renders of fifty owners, one of whom floods the farm, on a hundred actors, with twelve
checkpoints. The window is fed as Temporal feeds it: weighted fair over owner and class. Run it with
``python -m benchmarks.scheduling``; it writes ``benchmarks/results/scheduling.{json,png}``.
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

from moyin.render.scheduling.policy import PendingRender, Rules
from moyin.render.scheduling.window import Window

__all__ = ["Farm", "Load", "Outcome", "fewest_changes", "fifo", "new_load", "own_share", "simulate"]

FLOODER = "owner-00"
_CHECKPOINT_BYTES = 6_500_000_000
_TICK = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Farm:
    """``window``: renders that wait in the pool; the others wait in Temporal."""

    actors: int
    window: int
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Renders by arrival, and how long each takes, in seconds, without loading models."""

    renders: tuple[PendingRender, ...]
    seconds: dict[str, float]


@dataclass(kw_only=True, slots=True)
class Outcome:
    """``waits`` are seconds from acceptance to start, by owner; ``windowed`` from the window."""

    changes: int = 0
    makespan: float = 0.0
    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    windowed: list[tuple[int, float]] = field(default_factory=list)
    decisions: list[float] = field(default_factory=list)

    def p95(self, owner: str) -> float:
        """Seconds from acceptance to start that 95 of 100 of the owner's renders stay under."""
        return _quantile(self.waits[owner], 0.95)


def _quantile(values: Iterable[float], at: float) -> float:
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
    """About half of all renders are one owner's, at once; the others' come in batches.

    Each owner works with one to four checkpoints; some are far more popular than others.

    Args:
        batches: the smallest and the largest.
        span: seconds over which batches come; 0: all wait from the start.
    """
    chance = random.Random(seed)
    names = [f"checkpoints/{number:02}.safetensors" for number in range(checkpoints)]
    popular = [1 / (rank + 1) ** 0.8 for rank in range(checkpoints)]
    others = itertools.cycle(f"owner-{number:02}" for number in range(1, owners))
    asked = [
        (0.0, number, FLOODER, chance.choices(names, popular)[0], 3)
        for number in range(renders // 2)
    ]
    while len(asked) < renders:
        owner, at = next(others), chance.uniform(0, span)
        liked = chance.choices(names, popular, k=chance.randint(1, 4))
        priority = chance.choice([3, 3, 3, 2, 4])
        size = min(chance.randint(*batches), renders - len(asked))
        for _ in range(size):
            asked.append((at, len(asked), owner, chance.choice(liked), priority))
    asked.sort()
    waiting = tuple(
        PendingRender(
            id=f"{number:05}",
            priority=priority,
            arrived=at,
            owner=owner,
            models={name: _CHECKPOINT_BYTES},
        )
        for number, (at, _, owner, name, priority) in enumerate(asked)
    )
    return Load(renders=waiting, seconds={w.id: chance.uniform(4, 16) for w in waiting})


class Entrance:
    """Temporal's queue: weighted fair over owner and class, first come first served in each."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, PendingRender]] = []
        self._passes: dict[tuple[str, int], float] = {}
        self._present = 0.0
        self._numbers = itertools.count()

    def put(self, waiting: PendingRender) -> None:
        key = (waiting.owner, waiting.priority)
        level = max(self._present, self._passes.get(key, 0.0)) + 1 / _weight(waiting)
        self._passes[key] = level
        heapq.heappush(self._queue, (level, next(self._numbers), waiting))

    def take(self) -> PendingRender | None:
        if not self._queue:
            return None
        self._present, _, waiting = heapq.heappop(self._queue)
        return waiting


def simulate(load: Load, farm: Farm) -> Outcome:
    """The farm under `Window.choose`."""
    outcome, entrance, window = Outcome(), Entrance(), Window(farm.rules)
    names = [f"actor-{number:03}" for number in range(farm.actors)]
    for name in names:
        window.add_renderer(name, (), 0.0)
    coming = deque(load.renders)
    ends: list[tuple[float, str, float]] = []
    now, busy = 0.0, 0
    while coming or len(window) or ends:
        while coming and coming[0].arrived <= now:
            entrance.put(coming.popleft())
        while ends and ends[0][0] <= now:
            _, name, seconds = heapq.heappop(ends)
            window.record_duration(seconds)
            window.mark_free(name, now)
            busy -= 1
        while True:
            while len(window) < farm.window and (entering := entrance.take()) is not None:
                window.add(replace(entering, entered=now))
            began = time.thread_time()
            choice = window.choose(now)
            outcome.decisions.append(time.thread_time() - began)
            if choice is None:
                break
            waiting = choice.pending
            loading = farm.rules.load_seconds(waiting, choice.slot)
            window.begin(choice, now)
            busy += 1
            outcome.changes += loading > 0
            outcome.waits[waiting.owner].append(now - waiting.arrived)
            outcome.windowed.append((waiting.priority, now - waiting.entered))
            seconds = loading + load.seconds[waiting.id]
            outcome.makespan = max(outcome.makespan, now + seconds)
            heapq.heappush(ends, (now + seconds, choice.slot.name, seconds))
        nexts = [ends[0][0]] if ends else []
        nexts += [coming[0].arrived] if coming else []
        nexts += [now + _TICK] if len(window) and busy < farm.actors else []
        now = min(nexts, default=now)
    return outcome


def fifo(load: Load, farm: Farm) -> Outcome:
    """First come, first served, by whoever is free."""
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
    """p95 wait of each owner alone on a part of the farm, by weight, that never changes models.

    What a fair farm owes everybody: not to be worse off than with a share of it to oneself.
    """
    renders: dict[str, list[PendingRender]] = defaultdict(list)
    for waiting in load.renders:
        renders[waiting.owner].append(waiting)
    weights = {o: max(_weight(w) for w in asked) for o, asked in renders.items()}
    waits = {}
    for owner, asked in renders.items():
        share = farm.actors * weights[owner] / sum(weights.values())
        actors = max(1, round(share))
        free, told = [0.0] * actors, []
        for waiting in asked:
            start = max(heapq.heappop(free), waiting.arrived)
            told.append(start - waiting.arrived)
            heapq.heappush(free, start + load.seconds[waiting.id] * actors / share)
        waits[owner] = _quantile(told, 0.95)
    return waits


def _weight(waiting: PendingRender) -> float:
    return 2.0 ** (5 - waiting.priority)


def fewest_changes(load: Load, actors: int, makespan: float, *, seed: int = 1) -> tuple[int, int]:
    """The fewest (actor, checkpoint) pairs with which all work fits into ``makespan``.

    Knows everything beforehand and ignores when renders arrive, so nobody can do with fewer.

    Returns:
        What a search found, and a bound below which nothing can be.
    """
    work: dict[str, float] = defaultdict(float)
    for waiting in load.renders:
        work[waiting.family] += load.seconds[waiting.id]
    bound = sum(math.ceil(seconds / makespan) for seconds in work.values())
    chance = random.Random(seed)
    best = math.inf
    for _ in range(2_000):
        order = list(work.values())
        chance.shuffle(order)
        best = min(best, _pairs(order, makespan))
    return int(best), bound


def _pairs(order: Sequence[float], room: float) -> int:
    """Fill actors one after the other; a checkpoint's rest goes where it fits whole, if anywhere."""
    pairs = 0
    rooms: list[float] = []
    for seconds in order:
        whole, rest = divmod(seconds, room)
        pairs += int(whole)
        if rest <= 0:
            continue
        pairs += 1
        fits = [index for index, left in enumerate(rooms) if left >= rest]
        if fits:
            index = min(fits, key=lambda i: rooms[i])
            rooms[index] -= rest
        else:
            rooms.append(room - rest)
    return pairs


def report(folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> None:
    """Simulate, print and write ``scheduling.json`` and ``scheduling.png``."""
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
    found, bound = fewest_changes(load, farm.actors, ours.makespan)
    worst = max(shares, key=lambda owner: ours.p95(owner) / shares[owner])
    overdue = max(waited - priority * farm.rules.ageing for priority, waited in ours.windowed)
    return {
        "renders": len(load.renders),
        "owners": len(shares),
        "changes": ours.changes,
        "changes_fifo": plain.changes,
        "changes_optimum": found,
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
        "decision_us_p99": round(_quantile(ours.decisions, 0.99) * 1e6),
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
        xlabel="49 owners beside the one who floods", ylabel="p95 wait, seconds", ylim=(0, None)
    )
    waits.legend()
    found, _ = fewest_changes(load, farm.actors, ours.makespan)
    bars = changes.bar(
        ["FIFO", "Moyin", "optimum"],
        [plain.changes, ours.changes, found],
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
