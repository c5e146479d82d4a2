"""What a request asks of a model, and what a model can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moyin.domain.money import Tariff

# What a picture costs a prompt, in tokens: a middle of what providers state.
IMAGE_TOKENS = 1_200
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """A request, as far as choosing a model goes.

    Attributes:
        prompt_tokens: estimated from the text's length.
        max_tokens: the longest answer that the client wants; None: up to the model.
    """

    prompt_tokens: int
    max_tokens: int | None = None
    tools: bool = False
    vision: bool = False
    schema: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model behind a back end.

    Attributes:
        name: as clients call it.
        upstream: as the back end calls it.
        context: tokens of prompt and answer together.
        quality: a tier that aliases may set as a floor; higher is better.
    """

    name: str
    upstream: str
    context: int
    tariff: Tariff
    tools: bool = False
    vision: bool = False
    schema: bool = False
    quality: int = 0

    def lacks(self, needs: Needs) -> Iterator[str]:
        """Why this model can't answer, a few words each; nothing when it can."""
        if needs.prompt_tokens + (needs.max_tokens or 0) > self.context:
            yield f"context of {self.context} tokens"
        for ability in ("tools", "vision", "schema"):
            if getattr(needs, ability) and not getattr(self, ability):
                yield f"no {ability}"


def estimate_tokens(text: str) -> int:
    """Tokens of ``text``: a quarter of its UTF-8 bytes, which also fits Chinese."""
    size = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
    return -(-size // _BYTES_PER_TOKEN)


def estimate_message(count: int) -> int:
    """Tokens that the frame around ``count`` messages takes."""
    return count * _TOKENS_PER_MESSAGE
