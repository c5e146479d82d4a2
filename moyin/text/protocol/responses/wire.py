"""Defines the request body of ``POST /v1/responses``.

Source: OpenAI's API reference as typed in ``openai.types.responses.response_create_params``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moyin.http.validation import WireModel

# The value of ``include`` that requests the provider's proofs of reasoning.
PROOF_OF_REASONING = "reasoning.encrypted_content"
# The value of ``include`` that requests the probabilities of the answer's tokens.
LOGPROBS_OF_TEXT = "message.output_text.logprobs"


class InputText(WireModel):
    type: Literal["input_text"]
    text: str


class OutputText(WireModel):
    type: Literal["output_text"]
    text: str


class Refusal(WireModel):
    type: Literal["refusal"]
    refusal: str


class InputImage(WireModel):
    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None


class InputFile(WireModel):
    """A file given by id, or by content as base64 or a data URL."""

    type: Literal["input_file"]
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None


ContentPart = Annotated[
    InputText | OutputText | Refusal | InputImage | InputFile, Field(discriminator="type")
]


class Message(WireModel):
    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]


class FunctionCall(WireModel):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    namespace: str | None = None
    arguments: str


class CustomToolCall(WireModel):
    type: Literal["custom_tool_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    namespace: str | None = None
    input: str


class ToolOutput(WireModel):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str = Field(min_length=1)
    output: str | list[ContentPart]


class ReasoningText(WireModel):
    type: Literal["summary_text", "reasoning_text"]
    text: str


class ReasoningItem(WireModel):
    type: Literal["reasoning"]
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


InputItem = Annotated[
    Message | FunctionCall | CustomToolCall | ToolOutput | ReasoningItem,
    Field(discriminator="type"),
]


class FunctionTool(WireModel):
    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomFormat(WireModel):
    type: Literal["text"]


class CustomTool(WireModel):
    """A tool whose argument is free text. Grammars are rejected: no back end supports them."""

    type: Literal["custom"]
    name: str = Field(min_length=1)
    description: str | None = None
    format: CustomFormat | None = None


class NamespaceTool(WireModel):
    """A group of tools. Calls name the group and the tool."""

    type: Literal["namespace"]
    name: str = Field(min_length=1)
    description: str = ""
    tools: list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]]


Tool = Annotated[FunctionTool | CustomTool | NamespaceTool, Field(discriminator="type")]


class NamedTool(WireModel):
    type: Literal["function", "custom"]
    name: str


class AllowedTools(WireModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class TextFormat(WireModel):
    """The format of the answer's text. ``schema`` is required for ``json_schema``."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _require_schema(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("schema is required for json_schema")
        return self


class TextConfig(WireModel):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(WireModel):
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(WireModel):
    include_obfuscation: bool | None = None


class ResponseBody(WireModel):
    """The body of ``POST /v1/responses``; a string as ``input`` is one message of the user."""

    model: str = Field(min_length=1)
    input: str | Annotated[list[InputItem], Field(fail_fast=True)] = Field(min_length=1)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    prompt_cache_key: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = Field(None, max_length=512)

    @model_validator(mode="before")
    @classmethod
    def _add_missing_types(cls, data: Any) -> Any:
        """Add the type ``message`` to items without a type, which clients may omit."""
        if not isinstance(data, dict) or not isinstance(items := data.get("input"), list):
            return data
        if all(not isinstance(item, dict) or "type" in item for item in items):
            return data
        typed_items = [
            {"type": "message", **item} if isinstance(item, dict) else item for item in items
        ]
        return {**data, "input": typed_items}
