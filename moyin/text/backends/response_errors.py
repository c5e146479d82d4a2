"""Creates the errors for unusable responses of back ends.

A response is unusable if it has an error status, or embeddings that do not fit the request. The
type of the error depends on the HTTP status only, never on the text of a message.
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

_REJECTED_STATUSES = frozenset({400, 413, 422})
_OVERLOADED_STATUSES = frozenset({429, 503, 529})
_TIMEOUT_STATUSES = frozenset({408, 504})
_MAX_MESSAGE_CHARACTERS = 500
# Seconds; a longer Retry-After of a back end is shortened to an hour.
_MAX_WAIT_SECONDS = 3_600.0


def error_from_status(status: int, message: str, retry_after: str | None) -> MoyinError:
    """Return the error for a back end's response whose status is not 200.

    Args:
        message: the back end's own message. The client sees it only if the status shows that the
            client's request is wrong.
        retry_after: value of the header ``Retry-After``; None if the response has none.
    """
    if status in _REJECTED_STATUSES:
        reason = message[:_MAX_MESSAGE_CHARACTERS]
        return BackendRejected(
            f"the back end refused the request: {reason or f'HTTP status {status}'}",
            reason=reason or None,
        )
    if status == 404:
        # The request may name a wrong file id, or a model that this back end has not loaded.
        return ModelNotFound(
            "the back end does not have the requested model or file; choose another one",
            field="model",
        )
    if status in (401, 403):
        return BackendKeyRejected(
            "the back end rejects its configured API key; replace it in the configuration"
        )
    if status in _OVERLOADED_STATUSES:
        return Overloaded(
            "the back end is overloaded; retry later", retry_after=parse_retry_after(retry_after)
        )
    if status in _TIMEOUT_STATUSES:
        return BackendTimeout(f"the back end reports a timeout (HTTP status {status}); retry later")
    return BackendUnavailable(
        f"the back end failed with HTTP status {status}; retry later",
        retry_after=parse_retry_after(retry_after),
    )


def parse_retry_after(retry_after: str | None) -> float | None:
    """Return the seconds to wait according to ``Retry-After``; None if it is missing or invalid.

    The header's value is either a number of seconds or a date.
    """
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        seconds = _compute_seconds_until(retry_after)
    return min(max(seconds, 0.0), _MAX_WAIT_SECONDS) if math.isfinite(seconds) else None


def _compute_seconds_until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError):
        return math.inf


def validate_embeddings(
    response: EmbeddingResponse, request: EmbeddingRequest
) -> EmbeddingResponse:
    """Return ``response`` unchanged if it fits the request.

    Raises:
        BackendUnavailable: the number of vectors differs from the number of inputs.
        UnsupportedFeature: the vectors do not have the requested dimensions. Some servers ignore
            the member ``dimensions``.
    """
    if len(response.vectors) != len(request.inputs):
        raise BackendUnavailable(
            f"the back end returned {len(response.vectors)} vectors for {len(request.inputs)} inputs",
            may_be_billed=True,
        )
    dimensions = request.dimensions
    sizes = (len(vector) for vector in response.vectors)
    actual_dimensions = next((size for size in sizes if size != dimensions), None)
    if dimensions is not None and actual_dimensions is not None:
        raise UnsupportedFeature(
            f"dimensions must be {actual_dimensions} for this model", field="dimensions"
        )
    return response
