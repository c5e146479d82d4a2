"""Defines the request bodies of ``/api/chat``, ``/api/generate``, ``/api/embed`` and ``/api/show``.

Source: ``api/types.go`` of Ollama, and the types of its Python SDK.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from moyin.http.validation import WireModel

# A zero duration, as a number of seconds or in Go's notation.
_ZERO_DURATION = re.compile(r"0+(?:\.0*)?(?:ns|us|µs|ms|s|m|h)?")


class CalledFunction(WireModel):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class ToolCall(WireModel):
    """A tool call of the model; older servers omit its ``id``."""

    id: str | None = None
    function: CalledFunction


class Message(WireModel):
    """A message, whose ``images`` are base64.

    A message of the role ``tool`` has the result of a tool call. Its ``tool_call_id`` or
    ``tool_name`` identifies the call; without either, it is the oldest call without a result.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        return self.content or ""


class Function(WireModel):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(WireModel):
    type: str | None = None
    function: Function


class Options(WireModel):
    """The options that other protocols support, too; a negative ``num_predict`` means no limit."""

    num_predict: int | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class GenerationBody(WireModel):
    """The members that `ChatBody` and `GenerateBody` share; both calls stream by default."""

    model: str = Field(min_length=1)
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | str | None = None
    options: Options | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def is_streamed(self) -> bool:
        return self.stream is not False

    @property
    def unloads_model(self) -> bool:
        """True if ``keep_alive`` is zero, which unloads the model immediately."""
        return _ZERO_DURATION.fullmatch(str(self.keep_alive)) is not None

    @property
    def output_limit(self) -> int | None:
        limit = self.options.num_predict if self.options is not None else None
        return limit if limit is not None and limit > 0 else None

    @property
    def schema_(self) -> dict[str, Any] | None:
        return self.format if isinstance(self.format, dict) else None


class ChatBody(GenerationBody):
    """The body of ``/api/chat``.

    A request without messages only loads the model, or unloads it if ``keep_alive`` is 0.
    """

    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class GenerateBody(GenerationBody):
    """The body of ``/api/generate``, whose ``images`` are base64.

    A request without a prompt only loads the model, or unloads it if ``keep_alive`` is 0.
    """

    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None


class EmbedBody(WireModel):
    model: str = Field(min_length=1)
    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = Field(None, ge=1)
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)


class EmbeddingsBody(WireModel):
    """The body of ``/api/embeddings``, the older call for a single vector."""

    model: str = Field(min_length=1)
    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.prompt,)


class ShowBody(WireModel):
    """The body of ``/api/show``; ``name`` is the older name of ``model``."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


class PullBody(WireModel):
    """The body of ``/api/pull``; ``name`` is the older name of ``model``."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None

    @property
    def model_name(self) -> str:
        return self.model or self.name or ""
