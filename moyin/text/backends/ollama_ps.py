"""Which models an Ollama host holds in memory."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic_core import from_json

from moyin.errors import BackendUnavailable
from moyin.text.backends.http import HttpClient

__all__ = ["resident_models"]

_SECONDS = 3.0
_DEFAULT_TAG = ":latest"


async def resident_models(http: HttpClient) -> frozenset[str]:
    """Names of what ``GET /api/ps`` lists; ``llama3.2:latest`` is also ``llama3.2``.

    Raises:
        BackendUnavailable, BackendTimeout, Overloaded, BackendRejected
    """
    body = await http.get("/api/ps", _SECONDS)
    try:
        return frozenset(_names(from_json(body)["models"]))
    except (ValueError, KeyError, TypeError):
        raise BackendUnavailable("the back end's answer has not the shape of one") from None


def _names(models: list[dict[str, str]]) -> Iterator[str]:
    for model in models:
        yield model["name"]
        yield model["name"].removesuffix(_DEFAULT_TAG)
