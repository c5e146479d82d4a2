"""Lists third-party tests that are expected to fail, with reasons; docs/clients.md shows this list.

A listed test that fails for another reason counts as failed. If it always passes, remove it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.acceptance.text_gateway import CLAUDE, LLAMA


@dataclass(frozen=True, kw_only=True)
class ModelLimit:
    """Tests of one module that are expected to fail with one model.

    Attributes:
        module: the module of the tests, without ``test_``.
        names: the tests, each as ``function``, ``Class.function``, or for one case ``function[case``.
        evidence: a pattern that the failure's text must match; other failures are not excused.
        certain: True if the tests must fail; False if they may pass, depending on the model's output.
    """

    module: str
    model: str
    names: tuple[str, ...]
    reason: str
    evidence: str
    certain: bool = True

    def covers(self, module: str, model: str, name: str) -> bool:
        """Return True if the limit applies to a test, such as ``Class.function[case-model]``."""
        if (module, model) != (f"test_{self.module}", self.model):
            return False
        path, _, case = name.partition("[")
        function = path.rpartition(".")[2]
        return any(
            known_name in (path, function)
            or ("[" in known_name and f"{function}[{case}".startswith(known_name))
            for known_name in self.names
        )


_TOOLS = (
    "SmolLM2-135M's chat template has no place for tools, so llama.cpp would leave them out. "
    "Moyin answers 400 and names `tools`"
)
_VISION = "SmolLM2-135M sees no pictures. Moyin answers 400 and names `messages`"
_SCHEMA_BY_TOOL = f"this client asks for structured output by way of a tool. {_TOOLS}"

_NO_TOOLS = "no model under this name supports tools"
# What the clients say of JSON that was cut or does not fit.
_UNENDED = "length limit was reached|Failed to parse|Invalid json"
_NO_VISION = "no model under this name supports vision"

LIMITS = (
    ModelLimit(
        module="openai_sdk",
        model=LLAMA,
        names=("test_a_tool_is_called_and_its_result_read",),
        reason=_TOOLS,
        evidence=_NO_TOOLS,
    ),
    ModelLimit(
        module="openai_sdk",
        model=LLAMA,
        names=("test_a_picture_is_sent_to_the_model",),
        reason=_VISION,
        evidence=_NO_VISION,
    ),
    ModelLimit(
        module="anthropic_sdk",
        model=LLAMA,
        names=("test_a_tool_is_called_and_its_result_read",),
        reason=_TOOLS,
        evidence=_NO_TOOLS,
    ),
    ModelLimit(
        module="anthropic_sdk",
        model=LLAMA,
        names=("test_a_picture_is_sent_to_the_model",),
        reason=_VISION,
        evidence=_NO_VISION,
    ),
    ModelLimit(
        module="ollama_sdk",
        model=LLAMA,
        names=("test_a_tool_is_called_and_its_result_read",),
        reason=_TOOLS,
        evidence=_NO_TOOLS,
    ),
    ModelLimit(
        module="ollama_sdk",
        model=LLAMA,
        names=("test_a_picture_is_sent_to_the_model",),
        reason=_VISION,
        evidence=_NO_VISION,
    ),
    ModelLimit(
        module="llm_comply",
        model=LLAMA,
        names=(
            "test_openai_chat_complies[chat-tool-calling",
            "test_anthropic_complies[anth-tool-calling",
        ),
        reason=_TOOLS,
        evidence=_NO_TOOLS,
    ),
    ModelLimit(
        module="llm_comply",
        model=LLAMA,
        names=(
            "test_openai_chat_complies[chat-image-input",
            "test_anthropic_complies[anth-image-input",
        ),
        reason=_VISION,
        evidence=_NO_VISION,
    ),
    ModelLimit(
        module="llm_comply",
        model=CLAUDE,
        names=("test_openai_chat_complies[chat-tool-calling",),
        reason="SmolLM2-135M stands in for Claude here and, held to no grammar, talks instead "
        "of calling the tool",
        evidence="tool_calls is missing",
    ),
    ModelLimit(
        module="llm_comply",
        model=CLAUDE,
        names=("test_openai_chat_complies[chat-image-input",),
        reason="SmolLM2-135M stands in for Claude here and sees no pictures",
        evidence="HTTP 400",
    ),
    ModelLimit(
        module="langchain",
        model=LLAMA,
        names=(
            "test_tool_calling",
            "test_tool_calling_async",
            "test_bind_runnables_as_tools",
            "test_tool_message_histories_string_content",
            "test_tool_message_histories_list_content",
            "test_tool_choice",
            "test_tool_calling_with_no_arguments",
            "test_tool_message_error_status",
            "test_structured_few_shot_examples",
            "test_agent_loop",
            "test_unicode_tool_call_integration",
        ),
        reason=_TOOLS,
        evidence=_NO_TOOLS,
    ),
    ModelLimit(
        module="langchain",
        model=LLAMA,
        names=(
            "TestOpenAIOnLlama.test_structured_output_pydantic_2_v1",
            "TestAnthropicOnLlama.test_structured_output",
            "TestAnthropicOnLlama.test_structured_output_async",
            "TestAnthropicOnLlama.test_structured_output_pydantic_2_v1",
            "TestAnthropicOnLlama.test_structured_output_optional_param",
            "TestAnthropicOnLlama.test_anthropic_inputs",
        ),
        reason=_SCHEMA_BY_TOOL,
        evidence=_NO_TOOLS,
    ),
    ModelLimit(
        module="langchain",
        model=LLAMA,
        names=(
            "test_structured_output",
            "test_structured_output_async",
            "test_structured_output_pydantic_2_v1",
            "test_structured_output_optional_param",
        ),
        reason="held to a schema, SmolLM2-135M may repeat itself within a text until the limit of "
        "tokens, which leaves JSON without an end",
        evidence=_UNENDED,
        certain=False,
    ),
    ModelLimit(
        module="langchain",
        model=LLAMA,
        names=("test_json_mode",),
        reason="asked for JSON without a schema, SmolLM2-135M does not keep to the members that "
        "the prompt names",
        evidence=_UNENDED,
        certain=False,
    ),
    ModelLimit(
        module="instructor",
        model=LLAMA,
        names=(
            "test_the_openai_client_gets_structured_output[Mode.TOOLS",
            "test_the_anthropic_client_gets_structured_output",
        ),
        reason=_SCHEMA_BY_TOOL,
        evidence=_NO_TOOLS,
    ),
    ModelLimit(
        module="pydantic_ai",
        model=LLAMA,
        names=("test_a_typed_output_is_made_by_a_tool", "test_a_tool_is_called_before_the_answer"),
        reason=_TOOLS,
        evidence=_NO_TOOLS,
    ),
    ModelLimit(
        module="pydantic_ai",
        model=LLAMA,
        names=("test_a_picture_is_sent_to_the_model",),
        reason=_VISION,
        evidence=_NO_VISION,
    ),
)


def find_limit(module: str, model: str, name: str) -> ModelLimit | None:
    """Return the limit that applies to a test, or None."""
    return next((limit for limit in LIMITS if limit.covers(module, model, name)), None)
