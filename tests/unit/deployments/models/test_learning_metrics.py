from __future__ import annotations

import pytest

from deployments.models.learning import LearningMetrics
from moyin.text.routing.background_queue import BackgroundQueue
from tests.unit.deployments.models.test_telemetry import Metrics


def test_each_learned_request_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Metrics()
    monkeypatch.setattr("deployments.models.learning.metrics", recorded)
    background = BackgroundQueue()
    counts = LearningMetrics(background)
    background.sampler.accepted, background.sampler.skipped, background.failed = 3, 7, 1
    counts.work()
    background.sampler.accepted = 5
    counts.work()
    assert recorded.get("moyin_quality_requests", outcome="learned") == 5
    assert recorded.get("moyin_quality_requests", outcome="left_out") == 7
    assert recorded.get("moyin_quality_requests", outcome="failed") == 1
