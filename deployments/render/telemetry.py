"""Contains `PoolTelemetry`, which publishes the metrics of a render pool."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ray.util import metrics

from deployments.render.pool import Pool


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorCounts:
    """The number of a pool's actors in each state.

    Attributes:
        ready: actors that accept renders or are busy.
        starting: placed actors whose ComfyUI is not up yet, and actors of an earlier configuration
            that finish their renders.
        placing: actors for which Ray has not found a node with enough free resources yet.
    """

    ready: int
    starting: int
    placing: int


class PoolTelemetry:
    """Publishes a pool's metrics. Call `export` every second, because Ray drops stale gauges."""

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

    def export(self, counts: ActorCounts) -> None:
        """Set the gauges to ``counts`` and the pool's number of waiting renders."""
        self._waiting.set(self._pool.waiting_renders, {"pool": self._pool.name})
        for state, count in asdict(counts).items():
            self._actors.set(count, {"pool": self._pool.name, "state": state})
