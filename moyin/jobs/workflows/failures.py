"""Errors on their way through Temporal: from `MoyinError` to a failure and on to `JobError`."""

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
from moyin.domain.job import JobError

__all__ = [
    "SUPERSEDED",
    "is_superseded",
    "larger_pool",
    "to_application_error",
    "to_batch_error",
    "to_job_error",
]

SUPERSEDED = "superseded"


def to_application_error(
    error: errors.MoyinError, *, retryable: bool | None = None
) -> ApplicationError:
    """What an activity raises for ``error``: Temporal retries it if, and only if, that can help.

    Args:
        retryable: for an activity that knows better than the kind of error.
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
    """Whether the step found that its attempt is over or has a successor."""
    return any(isinstance(c, ApplicationError) and c.type == SUPERSEDED for c in _causes(error))


def larger_pool(error: BaseException) -> str | None:
    """The render pool that has the memory which the step's own lacked, if that was the cause."""
    for cause in _causes(error):
        if isinstance(cause, ApplicationError) and cause.type == errors.OutOfMemory.code:
            pool = _details(cause).get("pool")
            return pool if isinstance(pool, str) else None
    return None


def to_job_error(error: BaseException, *, step: int | None = None) -> JobError:
    """Why a job failed, for its owner.

    Only messages of our own error tree get out; anything else is a bug, which the logs tell.

    Args:
        step: index of the step that failed, kept in the details.
    """
    details: dict[str, Any] = {} if step is None else {"step": step}
    for cause in _causes(error):
        if isinstance(cause, errors.MoyinError):
            return JobError(
                code=cause.code, message=cause.message, details={**cause.details, **details}
            )
        if isinstance(cause, ApplicationError) and cause.type in _CODES:
            return JobError(
                code=cause.type, message=cause.message, details={**_details(cause), **details}
            )
        if isinstance(cause, TimeoutError):
            return JobError(
                code=_timeout_code(cause), message=_timeout_message(cause), details=details
            )
    return JobError(
        code=errors.MoyinError.code,
        message="the step failed for an internal reason",
        details=details,
    )


def to_batch_error(failed: Mapping[int, BaseException], children: int) -> JobError:
    """Why a batch failed: the code of the first child that did; the details have each one's."""
    errors_of = {index: to_job_error(failed[index]) for index in sorted(failed)}
    first, error = next(iter(errors_of.items()))
    return JobError(
        code=error.code,
        message=f"{len(failed)} of {children} children failed; number {first}: {error.message}",
        details={
            "step": first,
            "children": {
                str(index): {"code": one.code, "message": one.message}
                for index, one in errors_of.items()
            },
        },
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The failures from the outside in."""
    current: BaseException | None = error
    while current is not None:
        if not isinstance(current, ActivityError):
            yield current
        current = current.cause if isinstance(current, FailureError) else current.__cause__


def _details(error: ApplicationError) -> dict[str, Any]:
    first = error.details[0] if error.details else None
    inner = first.get("details") if isinstance(first, dict) else None
    return dict(inner) if isinstance(inner, dict) else {}


def _timeout_code(error: TimeoutError) -> str:
    lost = error.type is TimeoutType.HEARTBEAT
    return errors.WorkerLost.code if lost else errors.StepFailed.code


def _timeout_message(error: TimeoutError) -> str:
    if error.type is TimeoutType.HEARTBEAT:
        return "the worker was lost under the step, every time it was tried"
    return "the step took longer than a step may take"


def _tree(kind: type[errors.MoyinError]) -> Iterator[type[errors.MoyinError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


_CODES = frozenset(kind.code for kind in _tree(errors.MoyinError))
