from __future__ import annotations

from deployments.render.failure_counts import FailureCounts
from moyin.errors import RenderFailed, ServiceUnavailable, StepFailed, WorkerLost

DIED = WorkerLost("it ended with status -9", details={"ended": "comfyui"})
LOST = WorkerLost("the render actor was lost")


def count_failures(*errors: Exception) -> FailureCounts:
    counts = FailureCounts()
    for error in errors:
        # As the heartbeat carries it from one attempt to the next.
        counts = FailureCounts.from_heartbeat([counts.add(error).to_heartbeat()])
    return counts


def test_a_render_is_poisoned_by_two_deaths_of_comfyui() -> None:
    assert count_failures(DIED).find_final_error(DIED) is None
    final_error = count_failures(DIED, DIED).find_final_error(DIED)
    assert final_error is not None
    assert "status -9" in final_error.message
    assert (final_error.retryable, final_error.details) == (False, {"lost": 2})


def test_lost_actors_poison_a_render_only_after_five() -> None:
    assert count_failures(LOST, LOST, DIED, LOST).find_final_error(LOST) is None
    assert count_failures(*[LOST] * 5).find_final_error(LOST) is not None


def test_only_failures_and_not_outages_are_counted() -> None:
    unavailable_error = ServiceUnavailable("ComfyUI is not running yet")
    assert count_failures(*[unavailable_error] * 50) == FailureCounts()
    internal_error = ValueError("a bug")
    assert count_failures(*[internal_error] * 5).allows_retry(internal_error)
    assert not count_failures(*[internal_error] * 6).allows_retry(internal_error)
    assert count_failures(*[internal_error] * 3).allows_retry(LOST)


def test_final_errors_are_not_retried() -> None:
    assert not count_failures(RenderFailed("node 3 raised")).allows_retry(
        RenderFailed("node 3 raised")
    )
    assert not FailureCounts().allows_retry(StepFailed("an input is gone"))


def test_missing_heartbeat_details_count_nothing() -> None:
    assert (
        FailureCounts.from_heartbeat([]) == FailureCounts.from_heartbeat([None]) == FailureCounts()
    )
