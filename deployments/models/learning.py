"""From how many requests one replica learns, as metrics."""

from __future__ import annotations

from ray.util import metrics

from moyin.routing.background import Background

__all__ = ["LearningMetrics"]


class LearningMetrics:
    """Hands on what the replica counts; `work` is called from one thread."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._told = dict.fromkeys(self._counts(), 0)
        self._requests = metrics.Counter(
            "moyin_quality_requests",
            "Requests that the router could learn from, by what became of them.",
            tag_keys=("outcome",),
        )

    def work(self) -> None:
        """Hand on what was counted since the last time."""
        for outcome, count in self._counts().items():
            if count > self._told[outcome]:
                self._requests.inc(count - self._told[outcome], {"outcome": outcome})
                self._told[outcome] = count

    def _counts(self) -> dict[str, int]:
        background = self._background
        share = background.share
        return {
            "learned": share.taken,
            "left_out": share.left_out,
            "failed": background.failed,
            "lost": background.lost,
        }
