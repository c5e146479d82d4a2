"""``POST /v1/embeddings``: shapes, and translation to and from the domain. Pure.

Source: OpenAI's API reference as typed in ``openai.types.embedding_create_params``.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from pydantic_core import to_json

from moyin.domain.chat import EmbeddingRequest, EmbeddingResponse
from moyin.domain.money import Usage
from moyin.errors import BackendUnavailable, UnsupportedFeature
from moyin.http.validation import WireModel
from moyin.text.protocol.openai.response import usage_of

__all__ = ["EmbedBody", "body_of", "embed_answer", "embed_body", "to_domain"]


class EmbedBody(WireModel):
    """``input`` is one text or several, as text or as token numbers of the model."""

    model: str = Field(min_length=1)
    input: str | list[str] | list[int] | list[list[int]] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """Several inputs, whichever way one or more were written."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


def to_domain(body: EmbedBody, model: str) -> EmbeddingRequest:
    """The request in the domain's words.

    Raises:
        UnsupportedFeature: its input is token numbers, which another server's model has not.
    """
    texts = tuple(text for text in body.inputs if isinstance(text, str))
    if len(texts) != len(body.inputs):
        raise UnsupportedFeature("input must be text for this back end", field="input")
    for name, value in body.extras.items():
        if value:
            raise UnsupportedFeature(f"{name} can't be carried to this back end", field=name)
    return EmbeddingRequest(model=model, inputs=texts, dimensions=body.dimensions, user=body.user)


def embed_body(request: EmbeddingRequest) -> dict[str, Any]:
    """The request as an OpenAI-compatible server takes it."""
    body: dict[str, Any] = {
        "model": request.model,
        "input": list(request.inputs),
        "encoding_format": "float",
        "dimensions": request.dimensions,
        "user": request.user,
    }
    return {name: value for name, value in body.items() if value is not None}


def embed_answer(body: Any) -> EmbeddingResponse:
    """A server's answer in the domain's words.

    Raises:
        BackendUnavailable: it has not the shape of one.
    """
    try:
        rows = sorted(body["data"], key=lambda row: row["index"])
        vectors = tuple(tuple(map(float, row["embedding"])) for row in rows)
        model = str(body.get("model", ""))
        usage = usage_of(body) or Usage()
    except (KeyError, TypeError, AttributeError, ValueError):
        raise BackendUnavailable("the back end's answer has not the shape of one") from None
    return EmbeddingResponse(model=model, vectors=vectors, usage=usage)


def body_of(answer: EmbeddingResponse, *, as_base64: bool) -> bytes:
    """The answer as an OpenAI client reads it."""
    rows = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _packed(vector) if as_base64 else vector,
        }
        for index, vector in enumerate(answer.vectors)
    ]
    tokens = answer.usage.prompt_tokens
    usage: Mapping[str, int] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return to_json({"object": "list", "data": rows, "model": answer.model, "usage": usage})


def _packed(vector: tuple[float, ...]) -> str:
    """Little-endian 32-bit floats, as OpenAI packs them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
