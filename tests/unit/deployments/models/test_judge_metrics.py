from __future__ import annotations

import pytest

from deployments.models.judge import JudgeMetrics
from moyin.text.judging.verdict import Outcome
from tests.unit.deployments.models.test_telemetry import Metrics


def test_each_outcome_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Metrics()
    monkeypatch.setattr("deployments.models.judge.metrics", recorded)
    counts = JudgeMetrics()
    for outcome in (Outcome.STARTED, Outcome.AGREED, Outcome.STARTED):
        counts.note(outcome)
    counts.work()
    counts.work()
    assert recorded.get("moyin_judge_samples", outcome="started") == 2
    assert recorded.get("moyin_judge_samples", outcome="agreed") == 1
