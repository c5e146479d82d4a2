from __future__ import annotations

import pytest

from moyin.domain.chat import EmbeddingRequest, EmbeddingResponse
from moyin.domain.money import Usage
from moyin.errors import BackendUnavailable, UnsupportedFeature
from moyin.text.backends.vectors import complete

ANSWER = EmbeddingResponse(model="m", vectors=((1.0, 2.0), (3.0, 4.0)), usage=Usage())


@pytest.mark.parametrize("dimensions", [None, 2])
def test_what_was_asked_for_is_let_through(dimensions: int | None) -> None:
    request = EmbeddingRequest(model="m", inputs=("a", "b"), dimensions=dimensions)
    assert complete(ANSWER, request) is ANSWER


def test_a_missing_vector_is_the_back_ends_fault() -> None:
    with pytest.raises(BackendUnavailable):
        complete(ANSWER, EmbeddingRequest(model="m", inputs=("a",)))


def test_dimensions_that_nobody_read_are_named() -> None:
    with pytest.raises(UnsupportedFeature, match="2 dimensions") as caught:
        complete(ANSWER, EmbeddingRequest(model="m", inputs=("a", "b"), dimensions=3))
    assert caught.value.field == "dimensions"
