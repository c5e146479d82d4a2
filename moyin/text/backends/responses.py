"""From a back end's HTTP status to an error of ours. Never by words in a message."""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime

from moyin.domain.chat import EmbeddingRequest, EmbeddingResponse
from moyin.errors import (
    BackendKeyRejected,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ModelNotFound,
    MoyinError,
    Overloaded,
    UnsupportedFeature,
)

__all__ = ["check_vectors", "error_from_status", "retry_after_seconds"]

_REJECTED = frozenset({400, 413, 422})
_OVERLOADED = frozenset({429, 503, 529})
_TIMED_OUT = frozenset({408, 504})
_LONGEST_MESSAGE = 500
# Whatever a server says, it is asked again after an hour.
_LONGEST_WAIT = 3_600.0


def error_from_status(status: int, message: str, retry_after: str | None) -> MoyinError:
    """The error that a back end's answer means.

    ``message`` reaches the client only where the back end complains about the client's own
    request; anything else it may say is about us.
    """
    if status in _REJECTED:
        told = message[:_LONGEST_MESSAGE] or f"status {status}"
        return BackendRejected(f"the back end refused the request: {told}")
    if status == 404:
        # A file's id that a client made up, or a model that is not there yet: the others are.
        return ModelNotFound("the back end has no such model, or no such file", field="model")
    if status in (401, 403):
        return BackendKeyRejected("the back end refuses the key that it was configured with")
    if status in _OVERLOADED:
        return Overloaded(
            "the back end is overloaded", retry_after=retry_after_seconds(retry_after)
        )
    if status in _TIMED_OUT:
        return BackendTimeout("the back end did not answer in time")
    return BackendUnavailable(
        f"the back end failed with status {status}", retry_after=retry_after_seconds(retry_after)
    )


def retry_after_seconds(retry_after: str | None) -> float | None:
    """A Retry-After header, which may be a date, in seconds from now; None: it says nothing."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        seconds = _until(retry_after)
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else None


def _until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError):
        return math.inf


def check_vectors(answer: EmbeddingResponse, request: EmbeddingRequest) -> EmbeddingResponse:
    """``answer``, where it answers ``request``.

    Raises:
        BackendUnavailable: it has not a vector for each input.
        UnsupportedFeature: its vectors have other dimensions than asked for; some servers do not
            read that member.
    """
    if len(answer.vectors) != len(request.inputs):
        raise BackendUnavailable("the back end did not answer to every input")
    wanted = request.dimensions
    made = next((len(vector) for vector in answer.vectors if len(vector) != wanted), None)
    if wanted is not None and made is not None:
        raise UnsupportedFeature(
            f"the model makes vectors of {made} dimensions", field="dimensions"
        )
    return answer
