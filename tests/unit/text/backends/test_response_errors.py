from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from moyin.domain.chat import EmbeddingRequest, EmbeddingResponse
from moyin.domain.money import Usage
from moyin.errors import (
    BackendKeyRejected,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ModelNotFound,
    Overloaded,
    UnsupportedFeature,
)
from moyin.text.backends.response_errors import (
    error_from_status,
    parse_retry_after,
    validate_embeddings,
)

ANSWER = EmbeddingResponse(model="m", vectors=((1.0, 2.0), (3.0, 4.0)), usage=Usage())


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("999999999", 3600.0),
    ],
)
def test_retry_after_in_seconds_is_parsed(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header) == seconds


def test_retry_after_date_is_converted_to_seconds() -> None:
    assert parse_retry_after(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=2)
    assert parse_retry_after(formatdate(time.time() - 60, usegmt=True)) == 0


@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (400, BackendRejected),
        (401, BackendKeyRejected),
        (403, BackendKeyRejected),
        (404, ModelNotFound),
        (429, Overloaded),
        (504, BackendTimeout),
    ],
)
def test_statuses_map_to_errors(status: int, error_class: type[Exception]) -> None:
    assert isinstance(error_from_status(status, "why", None), error_class)


@pytest.mark.parametrize("dimensions", [None, 2])
def test_matching_vectors_are_accepted(dimensions: int | None) -> None:
    request = EmbeddingRequest(model="m", inputs=("a", "b"), dimensions=dimensions)
    assert validate_embeddings(ANSWER, request) is ANSWER


def test_wrong_number_of_vectors_is_a_backend_error() -> None:
    with pytest.raises(BackendUnavailable):
        validate_embeddings(ANSWER, EmbeddingRequest(model="m", inputs=("a",)))


def test_ignored_dimensions_are_refused() -> None:
    with pytest.raises(UnsupportedFeature, match="dimensions must be 2") as exc_info:
        validate_embeddings(ANSWER, EmbeddingRequest(model="m", inputs=("a", "b"), dimensions=3))
    assert exc_info.value.field == "dimensions"
