from __future__ import annotations

from deployments.render.failure_counts import FailureCounts
from moyin.errors import RenderFailed, ServiceUnavailable, StepFailed, WorkerLost

DIED = WorkerLost("it ended with status -9", details={"ended": "comfyui"})
LOST = WorkerLost("the render actor was lost")


def after(*errors: Exception) -> FailureCounts:
    trials = FailureCounts()
    for error in errors:
        # As it travels from one attempt to the next.
        trials = FailureCounts.read([trials.after(error).write()])
    return trials


def test_two_comfyuis_that_end_under_a_render_are_its_fault() -> None:
    assert after(DIED).poisoned(DIED) is None
    poisoned = after(DIED, DIED).poisoned(DIED)
    assert poisoned is not None
    assert "status -9" in poisoned.message
    assert (poisoned.retryable, poisoned.details) == (False, {"lost": 2})


def test_actors_may_be_lost_for_other_reasons_but_not_for_ever() -> None:
    assert after(LOST, LOST, DIED, LOST).poisoned(LOST) is None
    assert after(*[LOST] * 5).poisoned(LOST) is not None


def test_waiting_costs_nothing_and_failing_again_and_again_does() -> None:
    away = ServiceUnavailable("ComfyUI is not running yet")
    assert after(*[away] * 50) == FailureCounts()
    bug = ValueError("a bug")
    assert not after(*[bug] * 5).exhausted(bug)
    assert after(*[bug] * 6).exhausted(bug)
    assert not after(*[bug] * 3).exhausted(LOST)


def test_what_cannot_be_mended_is_not_tried_again() -> None:
    assert after(RenderFailed("node 3 raised")).exhausted(RenderFailed("node 3 raised"))
    assert FailureCounts().exhausted(StepFailed("an input is gone"))


def test_an_attempt_that_left_nothing_cost_nothing() -> None:
    assert FailureCounts.read([]) == FailureCounts.read([None]) == FailureCounts()
