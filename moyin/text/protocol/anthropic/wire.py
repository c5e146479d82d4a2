"""Defines the request bodies of ``POST /v1/messages`` and ``POST /v1/messages/count_tokens``.

Source: Anthropic's API reference as typed in ``anthropic.types.message_create_params``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from moyin.http.validation import WireModel


class CacheControl(WireModel):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(WireModel):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class ImageSource(WireModel):
    type: Literal["base64", "url", "file"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _require_members_of_type(self) -> ImageSource:
        required_members = {"base64": ("media_type", "data"), "url": ("url",), "file": ()}[
            self.type
        ]
        if missing_members := [name for name in required_members if getattr(self, name) is None]:
            raise ValueError(
                f"an image source of type {self.type!r} requires {missing_members[0]!r}"
            )
        return self


class ImageBlock(WireModel):
    type: Literal["image"]
    source: ImageSource
    cache_control: CacheControl | None = None


class ToolUseBlock(WireModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ThinkingBlock(WireModel):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(WireModel):
    type: Literal["redacted_thinking"]
    data: str


class OtherBlock(WireModel):
    """A document, search result or server tool, which only Anthropic's format has."""

    type: str


_TRANSLATED_BLOCK_TYPES = (
    "text",
    "image",
    "tool_use",
    "tool_result",
    "thinking",
    "redacted_thinking",
)


def _select_block_tag(block: Any) -> str:
    block_type = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return block_type if block_type in _TRANSLATED_BLOCK_TYPES else "other"


ResultContent = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[OtherBlock, Tag("other")],
    Discriminator(
        lambda value: tag if (tag := _select_block_tag(value)) in ("text", "image") else "other"
    ),
]


class ToolResultBlock(WireModel):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[ResultContent] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[OtherBlock, Tag("other")],
    Discriminator(_select_block_tag),
]


class Message(WireModel):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


# Anthropic's tools that the client runs; a version date follows the prefix.
_CLIENT_TOOLS = ("bash_", "computer_", "memory_", "text_editor_")


class Tool(WireModel):
    """A tool: the client's own if its ``type`` is None or ``custom``, else one of Anthropic's."""

    name: str = Field(min_length=1)
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None

    @property
    def is_custom(self) -> bool:
        return self.type in (None, "custom")

    @property
    def is_run_by_anthropic(self) -> bool:
        """True if Anthropic's servers run the tool and use its result in the same request."""
        return not (self.is_custom or (self.type or "").startswith(_CLIENT_TOOLS))


class ToolChoice(WireModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(WireModel):
    """The settings of the model's thinking; ``display`` is ``summarized`` or ``omitted``."""

    type: str
    display: str | None = None
    budget_tokens: int | None = Field(None, ge=1)


class OutputFormat(WireModel):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(WireModel):
    effort: str | None = None
    format: OutputFormat | None = None


class Metadata(WireModel):
    user_id: str | None = None


class CountBody(WireModel):
    """The body of ``POST /v1/messages/count_tokens``: the prompt of a `MessagesBody`."""

    model: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountBody):
    """The body of ``POST /v1/messages``."""

    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    metadata: Metadata | None = None
