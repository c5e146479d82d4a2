"""Whether a server gave the vectors that it was asked for."""

from __future__ import annotations

from moyin.domain.chat import EmbeddingRequest, EmbeddingResponse
from moyin.errors import BackendUnavailable, UnsupportedFeature

__all__ = ["complete"]


def complete(answer: EmbeddingResponse, request: EmbeddingRequest) -> EmbeddingResponse:
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
