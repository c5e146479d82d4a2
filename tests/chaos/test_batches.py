"""Tests that kill -9 during a batch leaves each line with one result and one charge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.batches import (
    BatchRun,
    MockModel,
    deployed_model,
    describe_durations,
    measure_calls,
)
from tests.stack import RecordMeasurement, RunningStack

# `python -m tests.chaos.batches` kills every part, with 20,000 lines. Here, no part is killed whose
# death ends all of Ray, because restarting Ray takes a minute of processor time.
_KILLED = ("models replica", "JobWorker replica", "Temporal", "Valkey")
_LINES = 2_000


@pytest.mark.timeout(900)
def test_a_batch_survives_the_death_of_every_part(
    gateway: RunningStack, tmp_path: Path, record_measurement: RecordMeasurement
) -> None:
    model = MockModel(seconds=0.1)
    with model.serving(), deployed_model(gateway, model, parallel=16):
        measure_calls(gateway, 10)
        times_without_batch = describe_durations(measure_calls(gateway, 50))
        run = BatchRun(gateway=gateway, lines=_LINES)
        run.submit(tmp_path)
        run.wait(lambda batch: batch["request_counts"]["completed"] > 0, 180)
        record_measurement(
            f"calls without a batch: {times_without_batch}; with: {describe_durations(measure_calls(gateway, 50))}"
        )
        run.kill_all(_KILLED)
        run.check_results(model)
    record_measurement(
        f"killed {', '.join(run.kills)}: {run.repeated} lines were sent to the model again"
    )
