"""Translates whole responses and usage between the Responses API and `moyin.domain`."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from moyin.domain.chat import (
    ChatResponse,
    Part,
    StopReason,
    Text,
    Thinking,
    TokenLogprob,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.http.validation import new_malformed_response_error, parse_token_count, require_text
from moyin.text.protocol.logprobs import encode_logprobs
from moyin.text.protocol.responses import wire
from moyin.text.protocol.responses.request_to_domain import (
    decode_custom_tool_input,
    encode_custom_tool_arguments,
    encode_reasoning_proof,
)
from moyin.text.protocol.responses.tools import OfferedTool, join_name, list_tools

_INCOMPLETE = {
    StopReason.MAX_TOKENS: "max_output_tokens",
    StopReason.REFUSAL: "content_filter",
}
_STOP_REASONS = {reason: stop for stop, reason in _INCOMPLETE.items()}


def new_id(prefix: str) -> str:
    """Return a new unique id, such as ``msg_…`` for the prefix ``msg``."""
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """The members of a response object that are known from the request.

    Attributes:
        id: the response's id.
        created: Unix seconds.
        proofs: the ``encrypted_content`` of each reasoning item by item id. It is collected even if
            the client did not request it, because the provider needs it in the next request.
    """

    id: str
    created: int
    body: wire.ResponseBody
    proofs: dict[str, str] = field(default_factory=dict)
    _item_numbers: Iterator[int] = field(default_factory=itertools.count, init=False)

    @property
    def includes_proof(self) -> bool:
        """True if the client requested ``reasoning.encrypted_content``."""
        return wire.PROOF_OF_REASONING in (self.body.include or ())

    @property
    def tools(self) -> Mapping[str, OfferedTool]:
        """The tools that the client offers, by the names under which models see them."""
        return list_tools(self.body)

    def build_started_response(self, model: str) -> dict[str, Any]:
        """Return the response object with the status ``in_progress``.

        Args:
            model: the name of the model that the object shows.
        """
        return self._build_response_object(model, "in_progress", [], None, StopReason.END)

    def build_ended_response(
        self, model: str, output: list[dict[str, Any]], usage: Usage, stop: StopReason
    ) -> dict[str, Any]:
        """Return the response object of an answer that has ended."""
        has_refusal = stop is StopReason.REFUSAL and any(map(_is_refusal, output))
        is_incomplete = stop in _INCOMPLETE and not has_refusal
        status = "incomplete" if is_incomplete else "completed"
        return self._build_response_object(model, status, output, usage_to_client(usage), stop)

    def encode_items(self, response: ChatResponse) -> list[dict[str, Any]]:
        """Encode the parts of a whole answer as output items; adjacent texts become one message."""
        items: list[dict[str, Any]] = []
        for part in response.parts:
            match part:
                case Text() if items and _continues_message(items[-1], part):
                    content = items[-1]["content"]
                    content.append(
                        encode_text_part(part.text, is_refusal=part.refusal, logprobs=part.logprobs)
                    )
                case Text():
                    item = encode_message_item(
                        part.text,
                        is_refusal=part.refusal,
                        item_id=self.new_item_id("msg"),
                        logprobs=part.logprobs,
                    )
                    items.append(item)
                case Thinking():
                    items.append(self.encode_reasoning_item(part, item_id=self.new_item_id("rs")))
                case ToolUse():
                    item_id = self.new_item_id("fc")
                    items.append(encode_function_call_item(part, self.tools, item_id=item_id))
        return items

    def new_item_id(self, prefix: str) -> str:
        """Return a new id for an output item, such as ``msg_…`` for the prefix ``msg``.

        The id contains the response's id, so that the stored response of an item can be found.
        """
        return f"{prefix}_{self.id.removeprefix('resp_')}_{next(self._item_numbers)}"

    def encode_reasoning_item(self, part: Thinking, *, item_id: str) -> dict[str, Any]:
        """Encode reasoning as an item, which the client may send back."""
        proof = encode_reasoning_proof(part)
        if proof is not None:
            self.proofs[item_id] = proof
        return {
            "id": item_id,
            "type": "reasoning",
            "status": "completed",
            "summary": [{"type": "summary_text", "text": part.text}] if part.text else [],
            "encrypted_content": proof if self.includes_proof else None,
        }

    def _build_response_object(
        self,
        model: str,
        status: str,
        output: list[dict[str, Any]],
        usage: dict[str, Any] | None,
        stop: StopReason,
    ) -> dict[str, Any]:
        body = self.body
        extra_members = body.extras
        text_format = body.text.format if body.text is not None else None
        reasoning = body.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": bool(body.background),
            "error": None,
            "incomplete_details": {"reason": _INCOMPLETE[stop]} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": extra_members.get("max_tool_calls"),
            "metadata": body.metadata or {},
            "model": model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {
                "effort": None if reasoning is None else reasoning.effort,
                "summary": None if reasoning is None else reasoning.summary,
            },
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": {
                "format": {"type": "text"} if text_format is None else _dump_model(text_format),
                "verbosity": (body.text.verbosity if body.text is not None else None) or "medium",
            },
            "tool_choice": "auto" if body.tool_choice is None else _dump_model(body.tool_choice),
            "tools": [_dump_tool(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": usage,
            "user": body.user,
        }


def encode_message_item(
    text: str,
    *,
    is_refusal: bool = False,
    item_id: str,
    logprobs: Iterable[TokenLogprob] = (),
) -> dict[str, Any]:
    """Encode text as a message item of the assistant.

    Args:
        is_refusal: True if the text explains why the model refuses the request.
        logprobs: the probabilities of the text's tokens; empty if they were not requested.
    """
    return {
        "id": item_id,
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [encode_text_part(text, is_refusal=is_refusal, logprobs=logprobs)],
    }


def encode_text_part(
    text: str, *, is_refusal: bool = False, logprobs: Iterable[TokenLogprob] = ()
) -> dict[str, Any]:
    """Encode text as a part of a message item.

    Args:
        is_refusal: True if the text explains why the model refuses the request.
        logprobs: the probabilities of the text's tokens; empty if they were not requested.
    """
    if is_refusal:
        return {"type": "refusal", "refusal": text}
    token_logprobs = encode_logprobs(logprobs)
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": token_logprobs}


def encode_function_call_item(
    call: ToolUse,
    tools: Mapping[str, OfferedTool],
    *,
    item_id: str,
    status: str = "completed",
) -> dict[str, Any]:
    """Encode a model's tool call as an output item.

    Args:
        tools: the tools that the client offers, by the names under which models see them.
    """
    offered_tool = tools.get(call.name)
    # A model may call a tool that the client did not offer.
    name = call.name if offered_tool is None else offered_tool.tool.name
    namespace_member = (
        {}
        if offered_tool is None or offered_tool.namespace is None
        else {"namespace": offered_tool.namespace}
    )
    if offered_tool is not None and offered_tool.is_custom:
        return {
            "id": item_id,
            "type": "custom_tool_call",
            "status": status,
            "call_id": call.id,
            "name": name,
            **namespace_member,
            "input": decode_custom_tool_input(call.arguments) if call.arguments else "",
        }
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": name,
        **namespace_member,
        "arguments": call.arguments,
    }


def usage_to_client(usage: Usage) -> dict[str, Any]:
    """Encode ``usage`` in OpenAI's format, whose input tokens include the cached tokens."""
    cache_write_tokens = usage.cache_write_tokens + usage.cache_write_1h_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


def usage_to_domain(usage: Any) -> Usage:
    """Translate the ``usage`` member of a response; all counts are 0 if it is missing."""
    if not isinstance(usage, Mapping):
        return Usage()
    input_details, output_details = (
        usage.get(f"{direction}_tokens_details") for direction in ("input", "output")
    )
    input_details = input_details if isinstance(input_details, Mapping) else {}
    output_details = output_details if isinstance(output_details, Mapping) else {}
    cached_tokens = parse_token_count(input_details.get("cached_tokens"))
    cache_write_tokens = parse_token_count(input_details.get("cache_write_tokens"))
    return Usage(
        input_tokens=max(
            parse_token_count(usage.get("input_tokens")) - cached_tokens - cache_write_tokens, 0
        ),
        cached_tokens=cached_tokens,
        cache_write_tokens=cache_write_tokens,
        output_tokens=parse_token_count(usage.get("output_tokens")),
        reasoning_tokens=parse_token_count(output_details.get("reasoning_tokens")),
    )


def chat_response_to_domain(body: Mapping[str, Any]) -> ChatResponse:
    """Translate a response object to a `ChatResponse`.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    try:
        parts = tuple(part for item in body["output"] for part in _item_to_parts(item))
        stop = StopReason.END
        if any(isinstance(part, ToolUse) for part in parts):
            stop = StopReason.TOOL_USE
        if details := body.get("incomplete_details"):
            stop = _STOP_REASONS.get(details["reason"], StopReason.END)
        if any(map(_is_refusal, body["output"])):
            stop = StopReason.REFUSAL
        return ChatResponse(
            id=str(body["id"]),
            model=str(body["model"]),
            parts=parts,
            stop=stop,
            usage=usage_to_domain(body.get("usage")),
        )
    except (KeyError, TypeError, AttributeError):
        raise new_malformed_response_error() from None


def _item_to_parts(item: Mapping[str, Any]) -> list[Part]:
    match item["type"]:
        case "message":
            return [_part_to_text(part) for part in item["content"]]
        case "function_call":
            return [
                ToolUse(id=item["call_id"], name=_read_tool_name(item), arguments=item["arguments"])
            ]
        case "custom_tool_call":
            arguments = encode_custom_tool_arguments(item["input"])
            return [ToolUse(id=item["call_id"], name=_read_tool_name(item), arguments=arguments)]
        case "reasoning":
            return [Thinking(text="\n\n".join(part["text"] for part in item["summary"]))]
        case _:
            return []


def _part_to_text(part: Mapping[str, Any]) -> Text:
    if part["type"] == "refusal":
        return Text(text=require_text(part["refusal"]), refusal=True)
    return Text(text=require_text(part["text"]))


def _continues_message(item: Mapping[str, Any], part: Text) -> bool:
    """Return True if the output item is a message to which the text ``part`` can be added.

    A refusal and ordinary text are never in the same message.
    """
    return item["type"] == "message" and _is_refusal(item) is part.refusal


def _read_tool_name(item: Mapping[str, Any]) -> str:
    return join_name(item.get("namespace"), item["name"])


def _is_refusal(item: Mapping[str, Any]) -> bool:
    return item["type"] == "message" and any(part["type"] == "refusal" for part in item["content"])


def _dump_model(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return value.model_dump(by_alias=True, exclude_none=True)


def _dump_tool(tool: Any) -> dict[str, Any]:
    encoded_tool: dict[str, Any] = _dump_model(tool)
    if encoded_tool["type"] == "function":
        # OpenAI's API reference requires both members.
        return {"parameters": None, "strict": None, **encoded_tool}
    return encoded_tool
