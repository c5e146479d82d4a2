"""One conversation with a model, in no protocol's words.

Every protocol translates to and from these types, so that any client reaches any back end.
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
class Text:
    """Plain text. ``cache`` is a prompt-cache marker after it: ``5m``, ``1h`` or none."""

    text: str
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A picture: either ``data`` (base64) with its ``media_type``, or ``url``."""

    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolUse:
    """The model calls a tool. ``arguments`` is the JSON text that the model wrote."""

    id: str
    name: str
    arguments: str
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """What the tool said to the call ``tool_use_id``."""

    tool_use_id: str
    content: tuple[Text | Image, ...]
    is_error: bool = False
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """The model's reasoning. ``signature`` proves it to the provider that made it;
    ``redacted`` is the provider's encrypted form, which replaces the text."""

    text: str = ""
    signature: str | None = None
    redacted: str | None = None


Part: TypeAlias = Text | Image | ToolUse | ToolResult | Thinking


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A function that the model may call. ``schema`` is the JSON schema of its arguments."""

    name: str
    schema: Mapping[str, Any]
    description: str | None = None
    strict: bool | None = None
    cache: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolChoice:
    """``tool`` forces the tool ``name``; ``parallel`` False allows one call per turn."""

    mode: Literal["auto", "none", "required", "tool"] = "auto"
    name: str | None = None
    parallel: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """The answer must be JSON; with a ``schema`` it must match it."""

    name: str = "answer"
    schema: Mapping[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasoning:
    """How much the model may think. ``budget`` in tokens; ``effort`` a provider's word for it."""

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
    """What a client asks.

    Attributes:
        model: the name that the back end knows.
        system: texts before the conversation.
        max_tokens: largest answer, in tokens; None leaves it to the back end.
        user: the end user, as the client names them.
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
    user: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingRequest:
    """Texts to turn into vectors. ``dimensions`` None: as many as the model makes."""

    model: str
    inputs: tuple[str, ...]
    dimensions: int | None = None
    user: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingResponse:
    """A vector for each input, in their order."""

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
    """A finished answer. ``stop_sequence`` is the string that ended it, where known."""

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
    def written(self) -> str:
        """All that the model wrote: its thinking, its text, its calls' arguments."""
        texts = (p.text if isinstance(p, Text | Thinking) else _arguments(p) for p in self.parts)
        return "".join(texts)


def _arguments(part: Part) -> str:
    return part.arguments if isinstance(part, ToolUse) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """First delta of every stream; ``usage`` holds what is known of the prompt."""

    id: str
    model: str
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDelta:
    """More text. With ``refusal`` it says why the model does not do what was asked for."""

    text: str
    refusal: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinkingDelta:
    """More reasoning. A ``signature`` or ``redacted`` delta carries no text."""

    text: str = ""
    signature: str | None = None
    redacted: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolStarted:
    """Tool call number ``index`` (from 0) of this answer begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolArguments:
    """More of the JSON text of tool call ``index``."""

    index: int
    fragment: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageUpdate:
    """What was used up to here, from servers that count on the way. Clients are not told."""

    usage: Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """Last delta of every complete stream."""

    stop: StopReason
    usage: Usage
    stop_sequence: str | None = None


Delta: TypeAlias = (
    Started | TextDelta | ThinkingDelta | ToolStarted | ToolArguments | UsageUpdate | Finished
)
