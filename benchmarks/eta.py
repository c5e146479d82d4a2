"""Measures how well a pool predicts when renders start, over an hour of simulated time.

Six actors render graphs of seven shapes with four checkpoints. Twenty owners submit renders singly
and in bursts. The pool's own `Window` schedules them and makes the predictions. ``python -m
benchmarks.eta`` writes ``benchmarks/results/eta.json``.
"""

from __future__ import annotations

import heapq
import json
import random
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.scheduling import compute_quantile
from moyin.domain.render_run import MeasuredRender
from moyin.render.scheduling.rules import PendingRender
from moyin.render.scheduling.start_errors import StartErrors
from moyin.render.scheduling.window import Window

_HOUR = 3_600.0
_TICK = 0.5
_FORECAST = 256
# Seconds between reads of the queue: each render gets several estimates while it waits.
_READ_SECONDS = 10.0
_SHAPES = (("portrait", 6), ("landscape", 8), ("upscale", 14), ("sketch", 3), ("detail", 20),
           ("sheet", 30), ("icon", 2))  # fmt: skip
_CHECKPOINTS = (("small", 2e9), ("medium", 6.5e9), ("large", 12e9), ("rare", 6.5e9))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """An hour of renders in the order of arrival, with their durations.

    Attributes:
        seconds: the duration of each render by id, without the loading of models.
        bytes_per_second: the speed at which models are loaded.
    """

    renders: tuple[PendingRender, ...]
    seconds: dict[str, float]
    bytes_per_second: float


@dataclass(kw_only=True, slots=True)
class StartEstimates:
    """The estimated and actual waiting times of renders.

    Attributes:
        starts: for each estimate, the actual wait of the render from then on, and the estimated p50
            and p90, in seconds.
        first: the same for the first estimate of each render.
        unknown: how often a render's position was read while no estimate was available.
        forecast_seconds: processor time of each forecast of 256 waiting renders.
    """

    starts: list[tuple[float, float, float]] = field(default_factory=list)
    first: list[tuple[float, float, float]] = field(default_factory=list)
    unknown: int = 0
    forecast_seconds: list[float] = field(default_factory=list)


def generate_hour(*, seed: int, actors: int, load: float) -> Recording:
    """Generate an hour of renders that together keep the share ``load`` of the actors busy.

    Durations vary by an eighth within a shape, and one render in forty takes three times as long.
    """
    rng = random.Random(seed)
    weights = (6, 5, 2, 6, 2, 1, 4)
    renders: list[PendingRender] = []
    seconds: dict[str, float] = {}
    work_seconds, arrived_at = 0.0, 0.0
    while work_seconds < load * actors * _HOUR:
        owner, arrived_at = f"owner-{rng.randrange(20):02}", rng.uniform(0, _HOUR)
        shape, mean_seconds = rng.choices(_SHAPES, weights)[0]
        checkpoint, model_bytes = rng.choices(_CHECKPOINTS, (5, 4, 2, 1))[0]
        burst_size = rng.choice([1, 1, 1, 1, 2, 4, 8, 40])
        priority = rng.choice([3, 3, 3, 3, 2, 4])
        for _ in range(burst_size):
            name = f"{len(renders):05}"
            render_seconds = (
                mean_seconds * max(0.5, rng.gauss(1, 1 / 8)) * (3 if rng.random() < 1 / 40 else 1)
            )
            seconds[name] = render_seconds
            work_seconds += render_seconds
            arrived_at += rng.uniform(0, 0.2)
            renders.append(
                PendingRender(
                    id=name, priority=priority, arrived=arrived_at, owner=owner,
                    models={checkpoint: int(model_bytes)}, shape=f"{shape} {checkpoint}",
                )
            )  # fmt: skip
    renders.sort(key=lambda render: render.arrived)
    return Recording(renders=tuple(renders), seconds=seconds, bytes_per_second=8e8)


def replay_recording(recording: Recording, actors: int) -> StartEstimates:
    """Simulate the recorded renders with a `Window`; return estimated and actual waiting times."""
    estimates, window, start_errors = StartEstimates(), Window(), StartErrors()
    for number in range(actors):
        window.add_renderer(f"actor-{number}", (), 0.0)
    arrivals = deque(recording.renders)
    running_ends: list[tuple[float, str, float]] = []
    measurements: dict[str, tuple[MeasuredRender, float]] = {}
    readings: dict[str, list[tuple[float, float, float]]] = {}
    now, next_read = 0.0, 0.0
    while arrivals or len(window) or running_ends:
        while running_ends and running_ends[0][0] <= now:
            _, name, seconds = heapq.heappop(running_ends)
            window.measurements.record(*measurements.pop(name))
            window.end_render(name, seconds)
            window.mark_free(name, now)
        has_arrived = False
        while arrivals and arrivals[0].arrived <= now:
            window.add(replace(arrivals.popleft(), entered=now))
            has_arrived = True
        while (assignment := window.choose_assignment(now)) is not None:
            missing_models = [
                n for n in assignment.pending.models if n not in assignment.slot.models
            ]
            loaded_bytes = sum(assignment.pending.models[name] for name in missing_models)
            window.begin_render(assignment, now)
            start_errors.record_start(assignment.pending.id, now)
            job_readings = readings.pop(assignment.pending.id, [])
            waits = [(now - read_at, p50, p90) for read_at, p50, p90 in job_readings]
            estimates.starts += waits
            estimates.first += waits[:1]
            seconds = (
                recording.seconds[assignment.pending.id] + loaded_bytes / recording.bytes_per_second
            )
            load_seconds = loaded_bytes / recording.bytes_per_second
            measured_render = MeasuredRender(
                shape=assignment.pending.shape, seconds=seconds, load_seconds=load_seconds
            )
            measurements[assignment.slot.name] = (measured_render, assignment.slot.load_seconds)
            heapq.heappush(running_ends, (now + seconds, assignment.slot.name, seconds))
        if len(window) and (has_arrived or now >= next_read):
            _read_forecasts(window, start_errors, now, readings, estimates)
            next_read = now + _READ_SECONDS
        next_times = [running_ends[0][0]] if running_ends else []
        next_times += [arrivals[0].arrived] if arrivals else []
        next_times += [now + _TICK] if len(window) else []
        now = min(next_times, default=now)
    return estimates


def _read_forecasts(
    window: Window,
    start_errors: StartErrors,
    now: float,
    readings: dict[str, list[tuple[float, float, float]]],
    estimates: StartEstimates,
) -> None:
    started_at = time.thread_time()
    forecasts = start_errors.widen_forecasts(window.forecast(now, _FORECAST), now)
    if len(forecasts) == _FORECAST:
        estimates.forecast_seconds.append(time.thread_time() - started_at)
    for forecast in forecasts:
        if forecast.starts_in is None:
            estimates.unknown += 1
            continue
        job_readings = readings.setdefault(forecast.pending.id, [])
        if not job_readings or now - job_readings[-1][0] >= _READ_SECONDS:
            job_readings.append((now, forecast.starts_in.p50, forecast.starts_in.p90))


def _summarise_estimates(estimates: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    absolute_errors = [abs(actual_wait - p50) for actual_wait, p50, _ in estimates]
    return {
        "guesses": len(estimates),
        "within_p90": round(
            statistics.fmean(actual_wait <= p90 for actual_wait, _, p90 in estimates), 3
        ),
        "within_p50": round(
            statistics.fmean(actual_wait <= p50 for actual_wait, p50, _ in estimates), 3
        ),
        "median_wait": round(statistics.median(actual_wait for actual_wait, _, _ in estimates), 1),
        "median_error": round(statistics.median(absolute_errors), 1),
        "p90_error": round(compute_quantile(absolute_errors, 0.9), 1),
        "median_p90": round(statistics.median(p90 for _, _, p90 in estimates), 1),
    }


def write_report(folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> None:
    """Simulate one recording per seed, print the results, and write ``eta.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in seeds:
        for load in (0.7, 0.95):
            estimates = replay_recording(generate_hour(seed=seed, actors=6, load=load), 6)
            row = {
                "seed": seed,
                "load": load,
                "at_submission": _summarise_estimates(estimates.first),
                "every_10_s": _summarise_estimates(estimates.starts),
                "unknown": estimates.unknown,
            }
            if estimates.forecast_seconds:
                milliseconds = [seconds * 1e3 for seconds in estimates.forecast_seconds]
                row["forecast_ms"] = {
                    "p50": round(statistics.median(milliseconds), 1),
                    "p99": round(compute_quantile(milliseconds, 0.99), 1),
                }
            rows.append(row)
            print(json.dumps(row), flush=True)
    folder.joinpath("eta.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    write_report(Path(__file__).parent / "results")
