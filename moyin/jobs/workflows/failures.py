"""Converts `MoyinError` to Temporal's failures, and Temporal's failures to a job's `JobError`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    FailureError,
    TimeoutError,
    TimeoutType,
)

from moyin import errors
from moyin.client.errors import ERROR_TYPES
from moyin.domain.job import JobError

SUPERSEDED = "superseded"


def to_application_error(
    error: errors.MoyinError, *, retryable: bool | None = None
) -> ApplicationError:
    """Convert an error to a failure that Temporal retries only if a retry may help.

    Args:
        retryable: whether a retry may help; None to use the error's own ``retryable``.
    """
    return ApplicationError(
        error.message,
        {"details": dict(error.details)},
        type=error.code,
        non_retryable=not (error.retryable if retryable is None else retryable),
        next_retry_delay=None
        if error.retry_after is None
        else timedelta(seconds=error.retry_after),
    )


def is_superseded(error: BaseException) -> bool:
    """Return True if a step failed because its attempt has ended or a later one has begun."""
    return any(
        isinstance(c, ApplicationError) and c.type == SUPERSEDED for c in _iterate_causes(error)
    )


def find_larger_pool(error: BaseException) -> str | None:
    """Return the larger pool named in the error of a render that lacked memory, or None."""
    for cause in _iterate_causes(error):
        if isinstance(cause, ApplicationError) and cause.type == errors.OutOfMemory.code:
            pool = _get_details(cause).get("pool")
            return pool if isinstance(pool, str) else None
    return None


def to_job_error(error: BaseException, *, step: int | None = None) -> JobError:
    """Convert the failure of a step to the error that the job's owner sees.

    Only messages of `moyin.errors` are shown to the owner. Any other error is a bug, and its
    message is only logged.

    Args:
        step: the index of the failed step, for the details.
    """
    details: dict[str, Any] = {} if step is None else {"step": step}
    for cause in _iterate_causes(error):
        if isinstance(cause, errors.MoyinError):
            return JobError(
                code=cause.code, message=cause.message, details={**cause.details, **details}
            )
        if isinstance(cause, ApplicationError) and cause.type in ERROR_TYPES:
            return JobError(
                code=cause.type, message=cause.message, details={**_get_details(cause), **details}
            )
        if isinstance(cause, TimeoutError):
            return JobError(
                code=_get_timeout_code(cause), message=_describe_timeout(cause), details=details
            )
    return JobError(
        code=errors.MoyinError.code,
        message="the step failed because of an internal error; ask the operator to look at the logs",
        details=details,
    )


def to_batch_error(failures: Mapping[int, BaseException], child_count: int) -> JobError:
    """Return the error of a failed batch, with the code of the first failed child.

    Args:
        failures: the failures of children, by index.
        child_count: the number of all children.
    """
    child_errors = {index: to_job_error(failures[index]) for index in sorted(failures)}
    first_index, error = next(iter(child_errors.items()))
    return JobError(
        code=error.code,
        message=f"{len(failures)} of {child_count} children failed; child {first_index}: {error.message}",
        details={
            "step": first_index,
            "children": {
                str(index): {"code": child_error.code, "message": child_error.message}
                for index, child_error in child_errors.items()
            },
        },
    )


def _iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield a failure and its causes, the outermost first; skip Temporal's `ActivityError`."""
    cause: BaseException | None = error
    while cause is not None:
        if not isinstance(cause, ActivityError):
            yield cause
        cause = cause.cause if isinstance(cause, FailureError) else cause.__cause__


def _get_details(error: ApplicationError) -> dict[str, Any]:
    first_detail = error.details[0] if error.details else None
    inner_details = first_detail.get("details") if isinstance(first_detail, dict) else None
    return dict(inner_details) if isinstance(inner_details, dict) else {}


def _get_timeout_code(error: TimeoutError) -> str:
    is_lost = error.type is TimeoutType.HEARTBEAT
    return errors.WorkerLost.code if is_lost else errors.StepFailed.code


def _describe_timeout(error: TimeoutError) -> str:
    if error.type is TimeoutType.HEARTBEAT:
        return "the worker process was lost in every try of the step; retry the job"
    return "the step exceeded its time limit; submit the job again with less work in the step"
