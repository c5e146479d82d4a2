"""From a back end's HTTP status to an error of ours. Never by words in a message."""

from __future__ import annotations

from moyin.errors import (
    BackendKeyRefused,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    MoyinError,
    Overloaded,
)

__all__ = ["error_of", "seconds_of"]

_REJECTED = frozenset({400, 413, 422})
_OVERLOADED = frozenset({429, 503, 529})
_TIMED_OUT = frozenset({408, 504})
_LONGEST_MESSAGE = 500


def error_of(status: int, message: str, retry_after: str | None) -> MoyinError:
    """The error that a back end's answer means.

    ``message`` reaches the client only where the back end complains about the client's own
    request; anything else it may say is about us.
    """
    if status in _REJECTED:
        told = message[:_LONGEST_MESSAGE] or f"status {status}"
        return BackendRejected(f"the back end refused the request: {told}")
    if status in (401, 403):
        return BackendKeyRefused("the back end refuses the key that it was configured with")
    if status in _OVERLOADED:
        return Overloaded("the back end is overloaded", retry_after=seconds_of(retry_after))
    if status in _TIMED_OUT:
        return BackendTimeout("the back end did not answer in time")
    return BackendUnavailable(
        f"the back end failed with status {status}", retry_after=seconds_of(retry_after)
    )


def seconds_of(retry_after: str | None) -> float | None:
    """A Retry-After header in seconds; its form as a date is not used by model servers."""
    try:
        return None if retry_after is None else max(float(retry_after), 0.0)
    except ValueError:
        return None
