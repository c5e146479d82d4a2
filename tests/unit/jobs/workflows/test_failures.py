from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    RetryState,
    TimeoutError,
    TimeoutType,
)

from moyin.errors import BackendUnavailable, DeadlineExceeded, RenderFailed
from moyin.jobs.workflows.failures import to_application_error, to_job_error


def make_activity_error(cause: BaseException) -> ActivityError:
    error = ActivityError(
        "Activity task failed",
        scheduled_event_id=1,
        started_event_id=2,
        identity="host@1",
        activity_type="render_step",
        activity_id="1",
        retry_state=RetryState.MAXIMUM_ATTEMPTS_REACHED,
    )
    error.__cause__ = cause
    return error


def test_a_final_error_is_not_retried() -> None:
    application_error = to_application_error(RenderFailed("node 1 raised", details={"node": "1"}))
    assert (application_error.type, application_error.non_retryable) == ("render_failed", True)
    assert application_error.next_retry_delay is None


def test_a_retryable_error_keeps_its_delay() -> None:
    application_error = to_application_error(BackendUnavailable("busy", retry_after=7))
    assert (application_error.type, application_error.non_retryable) == (
        "backend_unavailable",
        False,
    )
    assert application_error.next_retry_delay == timedelta(seconds=7)


def test_the_owner_sees_errors_of_moyin_with_their_details() -> None:
    application_error = to_application_error(RenderFailed("node 1 raised", details={"node": "1"}))
    error = to_job_error(make_activity_error(application_error), step=2)
    assert (error.code, error.message) == ("render_failed", "node 1 raised")
    assert error.details == {"node": "1", "step": 2}


def test_an_error_of_the_workflow_becomes_a_job_error() -> None:
    assert to_job_error(DeadlineExceeded("late")).code == "deadline_exceeded"


@pytest.mark.parametrize(
    ("timeout_type", "code"),
    [
        (TimeoutType.HEARTBEAT, "worker_lost"),
        (TimeoutType.START_TO_CLOSE, "step_failed"),
        (TimeoutType.SCHEDULE_TO_CLOSE, "step_failed"),
    ],
)
def test_a_timeout_has_its_code(timeout_type: TimeoutType, code: str) -> None:
    timeout = TimeoutError(
        "activity Heartbeat timeout", type=timeout_type, last_heartbeat_details=[]
    )
    assert to_job_error(make_activity_error(timeout)).code == code


@pytest.mark.parametrize("error_type", ["RuntimeError", None, "made_up"])
def test_the_owner_does_not_see_the_message_of_unexpected_errors(error_type: str | None) -> None:
    error = to_job_error(make_activity_error(ApplicationError("/secret/path", type=error_type)))
    assert error.code == "internal_error"
    assert "secret" not in error.message
