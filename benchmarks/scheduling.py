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
        return compute_quantile(self.waits[owner], 0.95)


def compute_quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest of the values that at least ``share`` of them do not exceed."""
    sorted_values = sorted(values)
    return sorted_values[min(len(sorted_values) - 1, math.ceil(share * len(sorted_values)) - 1)]


def generate_load(
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
    other_owners = itertools.cycle(f"owner-{number:02}" for number in range(1, owners))
    requests = [
        (0.0, number, FLOODER, rng.choices(names, popularity)[0], 3)
        for number in range(renders // 2)
    ]
    while len(requests) < renders:
        owner, arrived_at = next(other_owners), rng.uniform(0, span)
        used_models = rng.choices(names, popularity, k=rng.randint(1, 4))
        priority = rng.choice([3, 3, 3, 2, 4])
        batch_size = min(rng.randint(*batches), renders - len(requests))
        for _ in range(batch_size):
            requests.append((arrived_at, len(requests), owner, rng.choice(used_models), priority))
    requests.sort()
    pending_renders = tuple(
        PendingRender(
            id=f"{number:05}",
            priority=priority,
            arrived=arrived_at,
            owner=owner,
            models={name: _CHECKPOINT_BYTES},
        )
        for number, (arrived_at, _, owner, name, priority) in enumerate(requests)
    )
    return Load(
        renders=pending_renders, seconds={w.id: rng.uniform(4, 16) for w in pending_renders}
    )


class TemporalQueue:
    """Simulates Temporal's queue: a weighted share for each owner and priority, FIFO within it."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, PendingRender]] = []
        self._passes: dict[tuple[str, int], float] = {}
        self._present = 0.0
        self._numbers = itertools.count()

    def put(self, render: PendingRender) -> None:
        """Append a render."""
        key = (render.owner, render.priority)
        level = max(self._present, self._passes.get(key, 0.0)) + 1 / _compute_weight(render)
        self._passes[key] = level
        heapq.heappush(self._queue, (level, next(self._numbers), render))

    def take(self) -> PendingRender | None:
        """Remove and return the next render; None if the queue is empty."""
        if not self._queue:
            return None
        self._present, _, pending_render = heapq.heappop(self._queue)
        return pending_render


def simulate(load: Load, farm: Farm) -> Outcome:
    """Simulate the load with the product's scheduler, `Window.choose_assignment`."""
    outcome, queue, window = Outcome(), TemporalQueue(), Window(farm.rules)
    names = [f"actor-{number:03}" for number in range(farm.actors)]
    for name in names:
        window.add_renderer(name, (), 0.0)
    arrivals = deque(load.renders)
    ends: list[tuple[float, str, float]] = []
    now, busy_actors = 0.0, 0
    while arrivals or len(window) or ends:
        while arrivals and arrivals[0].arrived <= now:
            queue.put(arrivals.popleft())
        while ends and ends[0][0] <= now:
            _, name, seconds = heapq.heappop(ends)
            window.record_render_seconds(seconds)
            window.mark_free(name, now)
            busy_actors -= 1
        while True:
            while len(window) < farm.window and (next_render := queue.take()) is not None:
                window.add(replace(next_render, entered=now))
            started_at = time.thread_time()
            assignment = window.choose_assignment(now)
            outcome.decisions.append(time.thread_time() - started_at)
            if assignment is None:
                break
            pending_render = assignment.pending
            load_seconds = farm.rules.estimate_load_seconds(pending_render, assignment.slot)
            window.begin_render(assignment, now)
            busy_actors += 1
            outcome.changes += load_seconds > 0
            outcome.waits[pending_render.owner].append(now - pending_render.arrived)
            outcome.windowed.append((pending_render.priority, now - pending_render.entered))
            seconds = load_seconds + load.seconds[pending_render.id]
            outcome.makespan = max(outcome.makespan, now + seconds)
            heapq.heappush(ends, (now + seconds, assignment.slot.name, seconds))
        next_times = [ends[0][0]] if ends else []
        next_times += [arrivals[0].arrived] if arrivals else []
        next_times += [now + _TICK] if len(window) and busy_actors < farm.actors else []
        now = min(next_times, default=now)
    return outcome


def simulate_fifo(load: Load, farm: Farm) -> Outcome:
    """Simulate the load with a scheduler that gives the oldest render to the next free actor."""
    outcome = Outcome()
    actor_heap = [(0.0, number, "") for number in range(farm.actors)]
    for pending_render in load.renders:
        free_at, number, family = heapq.heappop(actor_heap)
        started_at = max(free_at, pending_render.arrived)
        loads_models = pending_render.family != family
        load_seconds = (
            sum(pending_render.models.values()) / farm.rules.bytes_per_second
            if loads_models
            else 0.0
        )
        outcome.changes += loads_models
        outcome.waits[pending_render.owner].append(started_at - pending_render.arrived)
        ended_at = started_at + load_seconds + load.seconds[pending_render.id]
        outcome.makespan = max(outcome.makespan, ended_at)
        heapq.heappush(actor_heap, (ended_at, number, pending_render.family))
    return outcome


def compute_own_share_waits(load: Load, farm: Farm) -> dict[str, float]:
    """Return how long each owner would wait with actors of its own: the 95th percentile in seconds.

    Each owner's number of actors is proportional to its weight. The loading of models is ignored.
    With fair scheduling no owner waits longer than this.
    """
    renders_by_owner: dict[str, list[PendingRender]] = defaultdict(list)
    for pending_render in load.renders:
        renders_by_owner[pending_render.owner].append(pending_render)
    weights = {
        o: max(_compute_weight(w) for w in owner_renders)
        for o, owner_renders in renders_by_owner.items()
    }
    p95 = {}
    for owner, owner_renders in renders_by_owner.items():
        share = farm.actors * weights[owner] / sum(weights.values())
        actors = max(1, round(share))
        free_times, wait_seconds = [0.0] * actors, []
        for pending_render in owner_renders:
            started_at = max(heapq.heappop(free_times), pending_render.arrived)
            wait_seconds.append(started_at - pending_render.arrived)
            heapq.heappush(
                free_times, started_at + load.seconds[pending_render.id] * actors / share
            )
        p95[owner] = compute_quantile(wait_seconds, 0.95)
    return p95


def _compute_weight(render: PendingRender) -> float:
    return 2.0 ** (5 - render.priority)


def find_fewest_changes(
    load: Load, actors: int, makespan: float, *, seed: int = 1
) -> tuple[int, int]:
    """Search for the fewest (actor, checkpoint) pairs with which all work fits into ``makespan``.

    The search knows all renders in advance and ignores their arrival, so no scheduler needs fewer
    pairs.

    Returns:
        The fewest pairs that the search found, and a lower bound.
    """
    seconds_by_family: dict[str, float] = defaultdict(float)
    for pending_render in load.renders:
        seconds_by_family[pending_render.family] += load.seconds[pending_render.id]
    lower_bound = sum(math.ceil(seconds / makespan) for seconds in seconds_by_family.values())
    rng = random.Random(seed)
    fewest_pairs = math.inf
    for _ in range(2_000):
        shuffled_seconds = list(seconds_by_family.values())
        rng.shuffle(shuffled_seconds)
        fewest_pairs = min(fewest_pairs, _count_pairs(shuffled_seconds, makespan))
    return int(fewest_pairs), lower_bound


def _count_pairs(checkpoint_seconds: Sequence[float], capacity: float) -> int:
    """Return the number of pairs if actors are filled with one checkpoint after the other.

    Each checkpoint fills actors of ``capacity`` seconds. Its remainder goes to the fullest actor
    that has room for it.

    Args:
        checkpoint_seconds: the seconds of work of each checkpoint.
    """
    pair_count = 0
    free_by_actor: list[float] = []
    for seconds in checkpoint_seconds:
        full_actors, remaining_seconds = divmod(seconds, capacity)
        pair_count += int(full_actors)
        if remaining_seconds <= 0:
            continue
        pair_count += 1
        fitting_actors = [
            index
            for index, free_seconds in enumerate(free_by_actor)
            if free_seconds >= remaining_seconds
        ]
        if fitting_actors:
            index = min(fitting_actors, key=lambda i: free_by_actor[i])
            free_by_actor[index] -= remaining_seconds
        else:
            free_by_actor.append(capacity - remaining_seconds)
    return pair_count


def write_report(folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> None:
    """Simulate the farm for each seed, print the results, and write ``scheduling.{json,png}``."""
    folder.mkdir(parents=True, exist_ok=True)
    farm = Farm(actors=100, window=2_000)
    rows = []
    for seed in seeds:
        load = generate_load(seed=seed)
        rows.append((_measure_load(load, farm), load))
    for row, _ in rows:
        print(json.dumps(row))
    folder.joinpath("scheduling.json").write_text(json.dumps([r for r, _ in rows], indent=2) + "\n")
    _plot_load(rows[0][1], farm, folder / "scheduling.png")


def _measure_load(load: Load, farm: Farm) -> dict[str, Any]:
    moyin_run, fifo_run, shares = (
        simulate(load, farm),
        simulate_fifo(load, farm),
        compute_own_share_waits(load, farm),
    )
    optimum, lower_bound = find_fewest_changes(load, farm.actors, moyin_run.makespan)
    worst_owner = max(shares, key=lambda owner: moyin_run.p95(owner) / shares[owner])
    longest_overdue = max(
        waited_seconds - priority * farm.rules.ageing_seconds
        for priority, waited_seconds in moyin_run.windowed
    )
    return {
        "renders": len(load.renders),
        "owners": len(shares),
        "changes": moyin_run.changes,
        "changes_fifo": fifo_run.changes,
        "changes_optimum": optimum,
        "changes_bound": lower_bound,
        "makespan": round(moyin_run.makespan),
        "makespan_fifo": round(fifo_run.makespan),
        "worst_owner": worst_owner,
        "worst_owner_share": round(moyin_run.p95(worst_owner) / shares[worst_owner], 2),
        "worst_owner_share_fifo": round(
            max(fifo_run.p95(owner) / share for owner, share in shares.items()), 2
        ),
        "longest_past_due": round(longest_overdue, 1),
        "decision_us_mean": round(sum(moyin_run.decisions) / len(moyin_run.decisions) * 1e6),
        "decision_us_p99": round(compute_quantile(moyin_run.decisions, 0.99) * 1e6),
    }


def _plot_load(load: Load, farm: Farm, path: Path) -> None:
    from matplotlib.figure import Figure

    moyin_run, fifo_run, shares = (
        simulate(load, farm),
        simulate_fifo(load, farm),
        compute_own_share_waits(load, farm),
    )
    owners = sorted((o for o in shares if o != FLOODER), key=lambda owner: shares[owner])
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    wait_axes, change_axes = figure.subplots(1, 2, width_ratios=(3, 1))
    wait_axes.plot([fifo_run.p95(owner) for owner in owners], ".", color="tab:gray", label="FIFO")
    wait_axes.plot([moyin_run.p95(owner) for owner in owners], ".", color="tab:blue", label="Moyin")
    wait_axes.plot(
        [shares[owner] for owner in owners], "_", color="tab:green", label="a share alone"
    )
    wait_axes.plot(
        [2 * shares[owner] for owner in owners], "_", color="tab:red", label="twice that (limit)"
    )
    wait_axes.set(
        xlabel="49 owners other than the one that floods",
        ylabel="p95 wait, seconds",
        ylim=(0, None),
    )
    wait_axes.legend()
    optimum, _ = find_fewest_changes(load, farm.actors, moyin_run.makespan)
    bars = change_axes.bar(
        ["FIFO", "Moyin", "optimum"],
        [fifo_run.changes, moyin_run.changes, optimum],
        color=["tab:gray", "tab:blue", "tab:green"],
    )
    change_axes.bar_label(bars)
    change_axes.set(ylabel="model changes", yscale="log", ylim=(10, 30_000))
    figure.suptitle(
        f"{len(load.renders):,} renders, {farm.actors} actors, 12 checkpoints, 50 owners, simulated"
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    write_report(Path(__file__).parent / "results")
