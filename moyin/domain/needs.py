"""What a request asks of a model, and what a model can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moyin.domain.money import GpuRate, Tariff

# What a picture costs a prompt, in tokens: a middle of what providers state.
IMAGE_TOKENS = 1_200
# What a model may or may not be able to do.
ABILITIES = ("tools", "vision", "schema", "thinking")
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """A request, as far as choosing a model goes.

    Attributes:
        prompt_tokens: estimated from the text's length.
        max_tokens: the longest answer that the client wants; None: up to the model.
        longest_input: tokens of the longest input, where each has the context to itself.
        embeddings: it asks for vectors instead of an answer.
        has_cache_markers: it carries prompt-cache markers.
        attachment_bytes: bytes of documents and sound in it, and of the answer's schema, which only some
            servers put into the prompt. Their tokens can't be told from their size, so they count
            for what is set aside, not for whether the prompt fits.
        has_external_content: it names documents whose bytes are not in it, or tools with which the provider
            finds some; ``addresses``: by URL.
    """

    prompt_tokens: int
    max_tokens: int | None = None
    longest_input: int | None = None
    tools: bool = False
    vision: bool = False
    schema: bool = False
    thinking: bool = False
    embeddings: bool = False
    has_cache_markers: bool = False
    attachment_bytes: int = 0
    has_external_content: bool = False
    has_urls: bool = False

    @property
    def context(self) -> int:
        """Tokens that must fit into a model's context at a time."""
        prompt = self.prompt_tokens if self.longest_input is None else self.longest_input
        return prompt + (self.max_tokens or 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model behind a back end.

    Attributes:
        name: as clients call it.
        upstream: as the back end calls it.
        context: tokens of prompt and answer together.
        quality: a tier that aliases may set as a floor; higher is better.
        embeddings: it makes vectors, and no answers.
        gpu: what its machine costs, where tokens have no price of their own; ``tariff`` is then
            free.
    """

    name: str
    upstream: str
    context: int
    tariff: Tariff
    tools: bool = False
    vision: bool = False
    schema: bool = False
    thinking: bool = False
    embeddings: bool = False
    quality: int = 0
    gpu: GpuRate | None = None
    _missing: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        missing = tuple(name for name in ABILITIES if not getattr(self, name))
        object.__setattr__(self, "_missing", missing)

    def supports(self, needs: Needs) -> bool:
        """Whether `lacks` finds nothing; asked of every model for every request."""
        if needs.context > self.context or needs.embeddings is not self.embeddings:
            return False
        for ability in self._missing:  # noqa: SIM110 - a generator takes twice as long
            if getattr(needs, ability):
                return False
        return True

    def unmet_needs(self, needs: Needs) -> tuple[str, ...]:
        """Why this model can't answer, a few words each; nothing when it can."""
        lacks = [f"no {ability}" for ability in self._missing if getattr(needs, ability)]
        if needs.embeddings is not self.embeddings:
            lacks.insert(0, "no embeddings" if needs.embeddings else "no chat")
        if needs.context > self.context:
            lacks.insert(0, f"context of {self.context} tokens")
        return tuple(lacks)


def text_size(text: str) -> int:
    """UTF-8 bytes of ``text``."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def tokens_in(size: int) -> int:
    """Tokens of a text of ``size`` bytes: a quarter of them, which also fits Chinese."""
    return -(-size // _BYTES_PER_TOKEN)


def estimate_tokens(text: str) -> int:
    """Tokens of ``text``, from its length."""
    return tokens_in(text_size(text))


def estimate_message(count: int) -> int:
    """Tokens that the frame around ``count`` messages takes."""
    return count * _TOKENS_PER_MESSAGE


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseConstraints:
    """The form that an answer must have.

    Attributes:
        json: it must be JSON.
        schema: JSON schema that it must match; None: any JSON.
        tools: names of the tools that may be called.
        plain: one answer of text or tool calls is asked for; not several, none by voice.
    """

    json: bool = False
    schema: Mapping[str, Any] | None = None
    tools: frozenset[str] = frozenset()
    plain: bool = True


# Of most requests: whatever the model writes.
UNCONSTRAINED = ResponseConstraints()
