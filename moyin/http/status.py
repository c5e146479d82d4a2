"""The one table from error types to HTTP statuses."""

from __future__ import annotations

from collections.abc import Mapping

from moyin import errors

__all__ = ["status_of"]

_STATUS: Mapping[type[errors.MoyinError], int] = {
    errors.RequestError: 400,
    errors.BodyTooLarge: 413,
    errors.PictureTooLarge: 413,
    errors.UserStorageFull: 413,
    errors.BodyTooSlow: 408,
    errors.MissingKey: 401,
    errors.InvalidKey: 401,
    errors.InvalidCredentials: 401,
    errors.InvalidToken: 401,
    errors.AccessError: 403,
    errors.BudgetExceeded: 402,
    errors.LimitExceeded: 429,
    errors.NotFound: 404,
    errors.IdempotencyMismatch: 422,
    errors.Conflict: 409,
    errors.Overloaded: 429,
    errors.Unavailable: 503,
    errors.BackendRejected: 400,
    errors.BackendTimeout: 504,
    # Clients try a 5xx again, and pay again for what the model wrote.
    errors.InvalidToolCall: 422,
    errors.BackendError: 502,
    errors.StepError: 502,
    errors.MoyinError: 500,
}


def status_of(error: errors.MoyinError) -> int:
    """The status of the nearest type in the error's family."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
