"""Holds the needs of a request, the abilities of a model and the constraints on a response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moyin.domain.money import GpuRate, Tariff

# Tokens of a picture in a prompt, an average of the providers' figures.
IMAGE_TOKENS = 1_200
# The optional abilities of models.
ABILITIES = ("tools", "vision", "schema", "thinking")
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """The needs of a request, by which a model is chosen.

    Attributes:
        prompt_tokens: estimated from the length of the text.
        max_tokens: the longest answer that the client accepts; None: the model's default.
        longest_input: tokens of the longest input, if inputs do not share the context.
        embeddings: the request asks for vectors instead of an answer.
        has_cache_markers: the request contains prompt-cache markers.
        attachment_bytes: bytes of documents, audio and the answer's schema. Some servers put the
            schema into the prompt. The size does not give their tokens, so they count for the
            reserved budget, but not for the length of the prompt.
        has_external_content: the request names documents that it does not contain, or tools with
            which the provider finds some.
        has_urls: the request names documents by URL.
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
        """The tokens that must fit into a model's context together."""
        prompt = self.prompt_tokens if self.longest_input is None else self.longest_input
        return prompt + (self.max_tokens or 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model of a back end.

    Attributes:
        name: the clients' name of the model.
        upstream: the back end's name of the model.
        context: tokens of prompt and answer together.
        quality: a tier that aliases may require at least; higher is better.
        embeddings: the model makes vectors instead of answers.
        gpu: the cost of its machine, if tokens have no price; ``tariff`` is then free.
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
        """Tell if the model meets ``needs``. This runs for every model on every request."""
        if needs.context > self.context or needs.embeddings is not self.embeddings:
            return False
        for ability in self._missing:  # noqa: SIM110 - a generator takes twice as long
            if getattr(needs, ability):
                return False
        return True

    def unmet_needs(self, needs: Needs) -> tuple[str, ...]:
        """Return the reasons why this model can't answer, a few words each; empty if it can."""
        unmet = [f"no {ability}" for ability in self._missing if getattr(needs, ability)]
        if needs.embeddings is not self.embeddings:
            unmet.insert(0, "no embeddings" if needs.embeddings else "no chat")
        if needs.context > self.context:
            unmet.insert(0, f"context of {self.context} tokens")
        return tuple(unmet)


def text_size(text: str) -> int:
    """Return the size of ``text`` in UTF-8 bytes."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def tokens_in(size: int) -> int:
    """Estimate the tokens of ``size`` bytes of text: a quarter, which also fits Chinese."""
    return -(-size // _BYTES_PER_TOKEN)


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of ``text`` from its length."""
    return tokens_in(text_size(text))


def estimate_message(count: int) -> int:
    """Estimate the tokens of the delimiters around ``count`` messages."""
    return count * _TOKENS_PER_MESSAGE


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseConstraints:
    """The constraints that a request sets for its response.

    Attributes:
        json: the answer must be JSON.
        schema: the JSON schema that the answer must match; None: any JSON.
        tools: names of the tools that the model may call.
        plain: the request is for one answer of text or tool calls, not for several or for audio.
    """

    json: bool = False
    schema: Mapping[str, Any] | None = None
    tools: frozenset[str] = frozenset()
    plain: bool = True


# Most requests set no constraints.
UNCONSTRAINED = ResponseConstraints()
