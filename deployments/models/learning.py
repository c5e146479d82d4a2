"""Exports metrics of the requests that the router learns from."""

from __future__ import annotations

from ray.util import metrics

from moyin.text.routing.background_queue import BackgroundQueue

__all__ = ["LearningMetrics"]


class LearningMetrics:
    """Exports the replica's counts to Ray's metrics; call `work` from one thread only."""

    def __init__(self, background: BackgroundQueue) -> None:
        self._background = background
        self._exported = dict.fromkeys(self._counts(), 0)
        self._requests = metrics.Counter(
            "moyin_quality_requests",
            "Requests that the router could learn from, by outcome.",
            tag_keys=("outcome",),
        )

    def work(self) -> None:
        """Export the increase since the last call."""
        for outcome, count in self._counts().items():
            if count > self._exported[outcome]:
                self._requests.inc(count - self._exported[outcome], {"outcome": outcome})
                self._exported[outcome] = count

    def _counts(self) -> dict[str, int]:
        background = self._background
        share = background.sampler
        return {
            "learned": share.accepted,
            "left_out": share.skipped,
            "failed": background.failed,
            "lost": background.dropped,
        }
