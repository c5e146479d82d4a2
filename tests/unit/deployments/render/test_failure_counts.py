from __future__ import annotations

from deployments.render.failure_counts import FailureCounts
from moyin.errors import RenderFailed, ServiceUnavailable, StepFailed, WorkerLost

DIED = WorkerLost("it ended with status -9", details={"ended": "comfyui"})
LOST = WorkerLost("the render actor was lost")


def after(*errors: Exception) -> FailureCounts:
    counts = FailureCounts()
    for error in errors:
        # As the heartbeat carries it from one attempt to the next.
        counts = FailureCounts.read([counts.after(error).write()])
    return counts


def test_two_comfyuis_that_die_during_a_render_poison_it() -> None:
    assert after(DIED).poisoned(DIED) is None
    poisoned = after(DIED, DIED).poisoned(DIED)
    assert poisoned is not None
    assert "status -9" in poisoned.message
    assert (poisoned.retryable, poisoned.details) == (False, {"lost": 2})


def test_lost_actors_poison_a_render_only_after_five() -> None:
    assert after(LOST, LOST, DIED, LOST).poisoned(LOST) is None
    assert after(*[LOST] * 5).poisoned(LOST) is not None


def test_only_failures_and_not_outages_are_counted() -> None:
    away = ServiceUnavailable("ComfyUI is not running yet")
    assert after(*[away] * 50) == FailureCounts()
    bug = ValueError("a bug")
    assert not after(*[bug] * 5).is_exhausted(bug)
    assert after(*[bug] * 6).is_exhausted(bug)
    assert not after(*[bug] * 3).is_exhausted(LOST)


def test_final_errors_are_not_retried() -> None:
    assert after(RenderFailed("node 3 raised")).is_exhausted(RenderFailed("node 3 raised"))
    assert FailureCounts().is_exhausted(StepFailed("an input is gone"))


def test_missing_heartbeat_details_count_nothing() -> None:
    assert FailureCounts.read([]) == FailureCounts.read([None]) == FailureCounts()
