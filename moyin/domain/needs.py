"""Defines the needs of requests, the models that may meet them, and response constraints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moyin.domain.money import GpuRate, Tariff
from moyin.domain.operation import FREE_UNITS, Operation, UnitRates

# The average number of tokens of a picture in a prompt, by the providers' documents.
IMAGE_TOKENS = 1_200
ABILITIES = ("tools", "vision", "schema", "thinking")  # that only some models have
# Those without which a request still makes sense.
OMITTABLE_ABILITIES = ("tools", "thinking")
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """The needs of a request, by which the router chooses a model.

    Attributes:
        prompt_tokens: the tokens of the prompt, estimated from the length of its text.
        max_tokens: the longest answer that the client accepts; None is the model's default.
        longest_input: the tokens of the longest of several inputs, each of which may fill the whole
            context; None if the prompt is one input.
        choices: the number of alternative answers that the model writes.
        tools, vision, schema, thinking: True if the request uses this ability of a model.
        embeddings: True if the request is for vectors instead of an answer.
        has_cache_markers: True if the request contains prompt-cache markers.
        attachment_bytes: the bytes of documents, audio and the answer's schema (some servers put
            the schema into the prompt). Since it is unknown how many tokens they become, they
            increase the reserved budget, but not ``prompt_tokens``.
        has_files: True if the prompt contains files, such as PDFs, in OpenAI's format.
        has_external_content: True if the provider has to fetch or search for documents.
        has_urls: True if the request names documents by URL.
    """

    prompt_tokens: int
    max_tokens: int | None = None
    longest_input: int | None = None
    choices: int = 1
    tools: bool = False
    vision: bool = False
    schema: bool = False
    thinking: bool = False
    embeddings: bool = False
    has_cache_markers: bool = False
    attachment_bytes: int = 0
    has_files: bool = False
    has_external_content: bool = False
    has_urls: bool = False

    @property
    def context(self) -> int:
        """The tokens that a model's context must hold: the longest input and the answer."""
        input_tokens = self.prompt_tokens if self.longest_input is None else self.longest_input
        return input_tokens + (self.max_tokens or 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model of a back end.

    Attributes:
        name: the name by which clients request the model.
        upstream: the name by which the back end knows the model.
        context: the maximum number of tokens of prompt and answer together.
        tools, vision, schema, thinking: True if the model has this ability.
        embeddings: True if the model makes vectors.
        chat: True if the model answers chats; None means True unless ``embeddings`` is True.
        operations: the kinds of calls that the model answers besides chats and embeddings.
        unit_rates: the prices of units, such as pictures, by which ``operations`` are billed in
            addition to their tokens.
        quality: the operator's quality tier, of which aliases may require a minimum.
        gpu: the cost of the model's machine if tokens have no price; ``tariff`` is then free.
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
    chat: bool | None = None
    operations: frozenset[Operation] = frozenset()
    unit_rates: UnitRates = FREE_UNITS
    quality: int = 0
    gpu: GpuRate | None = None
    _missing: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        missing_abilities = tuple(name for name in ABILITIES if not getattr(self, name))
        object.__setattr__(self, "_missing", missing_abilities)
        if self.chat is None:
            object.__setattr__(self, "chat", not self.embeddings)

    @property
    def calls(self) -> tuple[str, ...]:
        """The calls that the model answers: ``chat``, ``embeddings``, and its operations."""
        main_calls = [name for name in ("chat", "embeddings") if getattr(self, name)]
        return (*main_calls, *self.operations)

    @property
    def takes_prompts(self) -> bool:
        """True if the model answers chats or embedding requests, which its context limits."""
        return bool(self.chat) or self.embeddings

    def supports(self, needs: Needs) -> bool:
        """Return True if the model meets the needs; this runs for every model on every request."""
        if needs.context > self.context or not self._has_call(needs):
            return False
        for ability in self._missing:  # noqa: SIM110 - a generator takes twice as long
            if getattr(needs, ability):
                return False
        return True

    def list_unmet_needs(self, needs: Needs) -> tuple[str, ...]:
        """Return why this model cannot answer, such as ``("no vision",)``; empty if it can."""
        return tuple(
            f"context of {self.context} tokens" if name == "context" else f"no {name}"
            for name in self.list_missing_features(needs)
        )

    def list_missing_features(self, needs: Needs) -> list[str]:
        """Return the features that a request needs and this model does not have.

        They are ``context``, ``chat``, ``embeddings``, or abilities such as ``vision``.
        """
        unmet_needs = [ability for ability in self._missing if getattr(needs, ability)]
        if not self._has_call(needs):
            unmet_needs.insert(0, "embeddings" if needs.embeddings else "chat")
        if needs.context > self.context and self.takes_prompts:
            unmet_needs.insert(0, "context")
        return unmet_needs

    def _has_call(self, needs: Needs) -> bool | None:
        return self.embeddings if needs.embeddings else self.chat


def count_utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def estimate_tokens_from_bytes(size: int) -> int:
    """Return the estimated tokens of ``size`` bytes of UTF-8 text: one for every four bytes.

    This also suits Chinese text.
    """
    return -(-size // _BYTES_PER_TOKEN)


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of ``text`` from its length."""
    return estimate_tokens_from_bytes(count_utf8_bytes(text))


def estimate_delimiter_tokens(count: int) -> int:
    """Estimate the tokens that a chat format adds to ``count`` messages as their delimiters."""
    return count * _TOKENS_PER_MESSAGE


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseConstraints:
    """The constraints that a request sets for its response.

    Attributes:
        json: True if the answer must be JSON.
        schema: the JSON schema that the answer must match; None allows any JSON.
        tools: the names of the tools that the model may call.
        plain: True if the request is for one answer of text or tool calls; False if it is for
            several answers or for audio.
    """

    json: bool = False
    schema: Mapping[str, Any] | None = None
    tools: frozenset[str] = frozenset()
    plain: bool = True


# Most requests set no constraints.
UNCONSTRAINED = ResponseConstraints()
