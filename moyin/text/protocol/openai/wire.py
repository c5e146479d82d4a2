"""Defines the request bodies of ``/v1/chat/completions``, ``/v1/completions`` and ``/v1/embeddings``.

Source: OpenAI's API reference as typed in ``openai.types.chat.completion_create_params``,
``openai.types.completion_create_params`` and ``openai.types.embedding_create_params``.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from moyin.http.validation import WireModel

# Validation stops at the first wrong value, because a list may have hundreds of thousands.
_Texts = Annotated[list[str], Field(fail_fast=True)]
_Tokens = Annotated[list[int], Field(fail_fast=True)]
TextsOrTokens = str | _Texts | _Tokens | Annotated[list[_Tokens], Field(fail_fast=True)]


class CacheControl(WireModel):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Cacheable(WireModel):
    """Base of members on which clients may set Anthropic's marker for the prompt cache.

    Other gateways accept this marker in OpenAI's protocol, too.
    """

    cache_control: CacheControl | None = None


class TextPart(Cacheable):
    type: Literal["text"]
    text: str


class ImageUrl(WireModel):
    url: str


class ImagePart(Cacheable):
    type: Literal["image_url"]
    image_url: ImageUrl


class FilePart(Cacheable):
    """A file given by id or by content; the back end validates the members of ``file``."""

    type: Literal["file"]
    file: dict[str, Any]

    @property
    def file_data(self) -> str | None:
        """The content of the file as base64 or as a data URL, or None if the part lacks it."""
        data = self.file.get("file_data")
        is_content = isinstance(data, str) and not data.startswith(("http:", "https:"))
        return data if is_content else None

    @property
    def filename(self) -> str | None:
        name = self.file.get("filename")
        return name if isinstance(name, str) else None


class OtherPart(WireModel):
    """An audio or refusal part; other API formats support only refusals."""

    type: Literal["input_audio", "refusal"]


ContentPart = Annotated[TextPart | ImagePart | FilePart | OtherPart, Field(discriminator="type")]


class SystemMessage(WireModel):
    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(WireModel):
    role: Literal["user"]
    content: str | list[ContentPart]


class FunctionCall(WireModel):
    name: str
    arguments: str


class ToolCall(WireModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ThinkingBlock(WireModel):
    """A block of Claude's thinking, in the format that other gateways use in OpenAI's protocol."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: str = ""
    signature: str | None = None
    data: str | None = None


class AssistantMessage(WireModel):
    role: Literal["assistant"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    thinking_blocks: list[ThinkingBlock] | None = None


class ToolMessage(WireModel):
    role: Literal["tool"]
    tool_call_id: str
    content: str | list[TextPart]


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(WireModel):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Cacheable):
    type: Literal["function"]
    function: Function


class ChosenFunction(WireModel):
    name: str


class NamedChoice(WireModel):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(WireModel):
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(WireModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(WireModel):
    include_usage: bool | None = None


class GenerationBody(WireModel):
    """Base of the bodies that request text, with the members that all of them share."""

    model: str = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = None
    stop: str | _Texts | None = None
    n: int | None = Field(None, ge=1, le=1_024)
    user: str | None = None

    def _compute_max_output_tokens(self, *limits: int | None) -> int | None:
        """Return the highest limit on output tokens that any server may read from the body.

        Servers read the limit from different members. llama.cpp prefers its own ``n_predict``,
        which means no limit if it is negative or too large for a float, such as ``1e999``.

        Args:
            limits: the values of the members that this call has for the limit, such as
                ``max_tokens``; None for each member that is not set.

        Returns:
            The limit; None if some server may apply none.
        """
        positive_limits = [limit for limit in limits if limit]
        n_predict = self.extras.get("n_predict")
        if isinstance(n_predict, int | float):
            if n_predict < 0 or n_predict == math.inf:
                return None
            positive_limits.append(int(n_predict))
        return max(filter(None, positive_limits), default=None)


class ChatBody(GenerationBody):
    """The body of ``POST /v1/chat/completions``.

    ``max_completion_tokens`` is the newer name of ``max_tokens``.
    """

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def output_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def max_output_tokens(self) -> int | None:
        """The highest limit on output tokens that any server may read from the body.

        None if a server may apply no limit.
        """
        return self._compute_max_output_tokens(self.max_completion_tokens, self.max_tokens)


class CompletionBody(GenerationBody):
    """The body of ``POST /v1/completions``, OpenAI's older call that continues a text.

    ``prompt`` is one text or several, each as a string or as the model's token ids.
    """

    prompt: TextsOrTokens = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=0)
    best_of: int | None = Field(None, ge=1, le=1_024)
    echo: bool | None = None
    logprobs: int | bool | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list, even if the client sent only one prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @property
    def choice_count(self) -> int:
        """The number of answers in the response: ``n`` for each prompt."""
        return len(self.prompts) * (self.n or 1)

    @property
    def max_output_tokens(self) -> int | None:
        """The highest limit on output tokens that any server may read from the body.

        None if a server may apply no limit.
        """
        return self._compute_max_output_tokens(self.max_tokens)


class EmbeddingBody(WireModel):
    """The body of ``POST /v1/embeddings``.

    ``input`` is one text or several, each as a string or as the model's token ids.
    """

    model: str = Field(min_length=1)
    input: TextsOrTokens = Field(min_length=1)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The inputs as a list, even if the client sent only one input."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input
