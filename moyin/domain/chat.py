"""Defines requests to models and their responses, independent of any API format.

Every API format is translated to and from these types, so that any client can use any back end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from moyin.domain.money import Usage


class Role(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A token with the logarithm of its probability, and the most probable alternatives.

    Attributes:
        data: the bytes of the token, which may be a part of a character; None if unknown.
    """

    token: str
    logprob: float
    data: bytes | None = None
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Plain text, with its prompt-cache marker ``cache``: ``5m``, ``1h`` or None.

    ``refusal`` is True if the text explains why the model refuses the request. ``logprobs`` are the
    probabilities of the text's tokens, if they were requested.
    """

    text: str
    cache: str | None = None
    refusal: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A picture, either as ``data`` (base64) with its ``media_type`` or as ``url``."""

    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A file that is not text, such as a PDF, as ``data`` (base64); text files are `Text`."""

    media_type: str
    data: str
    name: str | None = None
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolUse:
    """A model's call of a tool; ``arguments`` is the JSON text that the model wrote."""

    id: str
    name: str
    arguments: str
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """The result of the tool call with the id ``tool_use_id``."""

    tool_use_id: str
    content: tuple[Text | Image | Document, ...]
    is_error: bool = False
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """The model's reasoning.

    Attributes:
        signature: the provider's proof that its model wrote the reasoning.
        redacted: the reasoning as encrypted by the provider, which replaces the text.
    """

    text: str = ""
    signature: str | None = None
    redacted: str | None = None


Part: TypeAlias = Text | Image | Document | ToolUse | ToolResult | Thinking


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A function that the model may call; ``schema`` is the JSON schema of its arguments."""

    name: str
    schema: Mapping[str, Any]
    description: str | None = None
    strict: bool | None = None
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolChoice:
    """The client's constraint on the tools that the model calls.

    Attributes:
        name: the tool that the model must call in the mode ``tool``.
        parallel: False allows only one call in each turn.
    """

    mode: Literal["auto", "none", "required", "tool"] = "auto"
    name: str | None = None
    parallel: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """The request for an answer in JSON that matches ``schema``; None allows any JSON."""

    name: str = "answer"
    schema: Mapping[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasoning:
    """The settings of the model's reasoning.

    Attributes:
        budget: the maximum number of tokens of reasoning.
        effort: the provider's name for the amount of reasoning, such as ``high``.
        adaptive: True if the model decides how much it reasons.
    """

    enabled: bool = True
    budget: int | None = None
    effort: str | None = None
    adaptive: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    min_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A request for a model's next message in a conversation.

    Attributes:
        model: the back end's name of the model.
        system: the system prompts, which precede the conversation.
        max_tokens: the maximum length of the answer in tokens; None uses the back end's default.
        logprobs: the number of alternatives, with probabilities, to return for each token of the
            answer; None requests no probabilities.
        user: the client's id of the end user.
    """

    model: str
    messages: tuple[Message, ...]
    system: tuple[Text, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    output: OutputFormat | None = None
    reasoning: Reasoning | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int | None = None
    user: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingRequest:
    """A request for the embedding vectors of texts, with ``dimensions`` or the model's default."""

    model: str
    inputs: tuple[str, ...]
    dimensions: int | None = None
    user: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingResponse:
    """The embedding vectors of a request, in the order of its inputs."""

    model: str
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage


class StopReason(StrEnum):
    END = "end"
    MAX_TOKENS = "max_tokens"
    STOP_SEQUENCE = "stop_sequence"
    TOOL_USE = "tool_use"
    REFUSAL = "refusal"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatResponse:
    """A model's whole answer; ``stop_sequence`` is the string that ended the answer, if known."""

    id: str
    model: str
    parts: tuple[Part, ...]
    stop: StopReason
    usage: Usage
    stop_sequence: str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """The probabilities of the tokens of the answer's text."""
        texts = (part for part in self.parts if isinstance(part, Text))
        return tuple(token for part in texts for token in part.logprobs)

    @property
    def output_text(self) -> str:
        """All that the model wrote: reasoning, text and the arguments of tool calls, joined."""
        texts = (
            p.text if isinstance(p, Text | Thinking) else _get_arguments(p) for p in self.parts
        )
        return "".join(texts)


def _get_arguments(part: Part) -> str:
    return part.arguments if isinstance(part, ToolUse) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The first delta of every stream; ``usage`` holds the known token counts of the prompt."""

    id: str
    model: str
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDelta:
    """More text of the answer; ``refusal`` is True if the text explains a refusal.

    ``logprobs`` are the probabilities of the text's tokens, if they were requested.
    """

    text: str
    refusal: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinkingDelta:
    """More reasoning; a delta with ``signature`` or ``redacted`` has no text."""

    text: str = ""
    signature: str | None = None
    redacted: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolStarted:
    """The beginning of the answer's tool call number ``index``, which counts from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolArguments:
    """More of the JSON arguments of the answer's tool call number ``index``."""

    index: int
    fragment: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageUpdate:
    """The token usage so far, which some servers report during a stream; clients never see it."""

    usage: Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The last delta of every complete stream."""

    stop: StopReason
    usage: Usage
    stop_sequence: str | None = None


Delta: TypeAlias = (
    Started | TextDelta | ThinkingDelta | ToolStarted | ToolArguments | UsageUpdate | Finished
)
