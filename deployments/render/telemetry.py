"""`PoolTelemetry`: what a pool waits for, as Ray's metrics."""

from __future__ import annotations

from dataclasses import asdict

from ray.util import metrics

from deployments.render.actor_supervisor import ActorCounts
from deployments.render.pool import Pool

__all__ = ["PoolTelemetry"]


class PoolTelemetry:
    """Gauges of one pool, set anew whenever its crew tells how it is: Ray drops stale ones."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting = metrics.Gauge(
            "moyin_render_waiting",
            "Renders in a pool that no ComfyUI has taken yet.",
            tag_keys=("pool",),
        )
        self._actors = metrics.Gauge(
            "moyin_render_actors",
            "ComfyUI actors of a pool by state; those that are placing wait for a node with room.",
            tag_keys=("pool", "state"),
        )

    def tell(self, roll: ActorCounts) -> None:
        self._waiting.set(self._pool.waiting, {"pool": self._pool.name})
        for state, count in asdict(roll).items():
            self._actors.set(count, {"pool": self._pool.name, "state": state})
