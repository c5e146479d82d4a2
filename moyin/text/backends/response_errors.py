"""Translates HTTP statuses of back ends to errors, and checks embeddings.

The translation never depends on the text of a message.
"""

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

__all__ = ["error_from_status", "parse_retry_after", "validate_embeddings"]

_REJECTED = frozenset({400, 413, 422})
_OVERLOADED = frozenset({429, 503, 529})
_TIMED_OUT = frozenset({408, 504})
_MAX_MESSAGE_CHARACTERS = 500
# A back end is tried again after an hour at the latest.
_MAX_WAIT_SECONDS = 3_600.0


def error_from_status(status: int, message: str, retry_after: str | None) -> MoyinError:
    """Return the error for a back end's response.

    ``message`` reaches the client only if the client's own request is wrong. Other messages are for
    the operator.
    """
    if status in _REJECTED:
        reason = message[:_MAX_MESSAGE_CHARACTERS] or f"status {status}"
        return BackendRejected(f"the back end refused the request: {reason}")
    if status == 404:
        # The request may name a wrong file id, or a model that this back end has not loaded.
        return ModelNotFound("the back end does not have this model or file", field="model")
    if status in (401, 403):
        return BackendKeyRejected("the back end rejects the API key that is configured for it")
    if status in _OVERLOADED:
        return Overloaded("the back end is overloaded", retry_after=parse_retry_after(retry_after))
    if status in _TIMED_OUT:
        return BackendTimeout("the back end did not respond in time")
    return BackendUnavailable(
        f"the back end failed with status {status}", retry_after=parse_retry_after(retry_after)
    )


def parse_retry_after(retry_after: str | None) -> float | None:
    """Parse a Retry-After header, which may be a date, to seconds from now; None if invalid."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        seconds = _seconds_until(retry_after)
    return min(max(seconds, 0.0), _MAX_WAIT_SECONDS) if math.isfinite(seconds) else None


def _seconds_until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError):
        return math.inf


def validate_embeddings(
    response: EmbeddingResponse, request: EmbeddingRequest
) -> EmbeddingResponse:
    """Check that ``response`` fits ``request``, and return it.

    Raises:
        BackendUnavailable: the number of vectors differs from the number of inputs.
        UnsupportedFeature: the vectors have other dimensions than requested, because some servers
            ignore that member.
    """
    if len(response.vectors) != len(request.inputs):
        raise BackendUnavailable("the back end must return one vector for each input")
    dimensions = request.dimensions
    sizes = (len(vector) for vector in response.vectors)
    actual = next((size for size in sizes if size != dimensions), None)
    if dimensions is not None and actual is not None:
        raise UnsupportedFeature(f"dimensions must be {actual} for this model", field="dimensions")
    return response
