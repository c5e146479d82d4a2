"""Translates requests of `moyin.domain.chat` to OpenAI's format.

It also embeds pictures in requests that a client sent in this format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moyin.domain import chat
from moyin.errors import UnsupportedFeature

# The largest thinking budget, in tokens, of each effort level below "high".
_EFFORTS_BY_BUDGET = ((2048, "low"), (8192, "medium"))


def chat_request_to_upstream(request: chat.ChatRequest, *, stream: bool) -> dict[str, Any]:
    """Translate a chat request to the body of ``POST /v1/chat/completions``.

    Args:
        stream: True to request a stream.

    Raises:
        UnsupportedFeature: a user's message has a part that OpenAI's format cannot express.
    """
    body: dict[str, Any] = {
        "model": request.model,
        "messages": list(_encode_messages(request)),
        "max_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "top_k": request.sampling.top_k,
        "frequency_penalty": request.sampling.frequency_penalty,
        "presence_penalty": request.sampling.presence_penalty,
        "seed": request.sampling.seed,
        "tools": [_encode_tool(tool) for tool in request.tools] or None,
        "response_format": _encode_response_format(request.output),
        "reasoning_effort": _select_effort(request.reasoning),
        "logprobs": True if request.logprobs is not None else None,
        "top_logprobs": request.logprobs,
        "user": request.user,
    }
    if (choice := request.tool_choice) is not None and request.tools:
        tool_choice = {"type": "function", "function": {"name": choice.name}}
        body["tool_choice"] = tool_choice if choice.mode == "tool" else choice.mode
        body["parallel_tool_calls"] = choice.parallel
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return {name: value for name, value in body.items() if value is not None}


def embedding_request_to_upstream(request: chat.EmbeddingRequest) -> dict[str, Any]:
    """Translate a request for embeddings to the body of ``POST /v1/embeddings``."""
    body: dict[str, Any] = {
        "model": request.model,
        "input": list(request.inputs),
        "encoding_format": "float",
        "dimensions": request.dimensions,
        "user": request.user,
    }
    return {name: value for name, value in body.items() if value is not None}


def embed_pictures(
    message: Mapping[str, Any], pictures: Mapping[str, chat.Image]
) -> dict[str, Any]:
    """Return a client's message in which data URLs replace the URLs of pictures.

    Args:
        pictures: the fetched pictures, by the URL that the client sent.
    """
    if not isinstance(message.get("content"), list):
        return {**message}
    content = [_embed_picture(part, pictures) for part in message["content"]]
    return {**message, "content": content}


def _embed_picture(
    part: Mapping[str, Any], pictures: Mapping[str, chat.Image]
) -> Mapping[str, Any]:
    if part["type"] != "image_url":
        return part
    picture = pictures.get(part["image_url"]["url"])
    if picture is None:
        return part
    return {**part, "image_url": {**part["image_url"], "url": encode_data_url(picture)}}


def _encode_messages(request: chat.ChatRequest) -> Iterator[dict[str, Any]]:
    if request.system:
        yield {"role": "system", "content": "\n\n".join(part.text for part in request.system)}
    for message in request.messages:
        if message.role is chat.Role.ASSISTANT:
            yield _encode_assistant_message(message.parts)
        else:
            yield from _encode_user_messages(message.parts)


def _encode_assistant_message(parts: Sequence[chat.Part]) -> dict[str, Any]:
    text = "".join(part.text for part in parts if isinstance(part, chat.Text))
    tool_calls = [
        {
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        for part in parts
        if isinstance(part, chat.ToolUse)
    ]
    body: dict[str, Any] = {"role": "assistant", "content": text or None}
    if tool_calls:
        body["tool_calls"] = tool_calls
    if thinking := "".join(part.text for part in parts if isinstance(part, chat.Thinking)):
        body["reasoning_content"] = thinking
    return body


def _encode_user_messages(parts: Sequence[chat.Part]) -> Iterator[dict[str, Any]]:
    """Encode a user message: yield one message per tool result, then one for the other parts.

    Pictures and documents in tool results move to the last message, because tool messages
    contain only text.
    """
    user_parts: list[chat.Part] = []
    for part in parts:
        if not isinstance(part, chat.ToolResult):
            user_parts.append(part)
            continue
        text = "".join(
            inner_part.text for inner_part in part.content if isinstance(inner_part, chat.Text)
        )
        user_parts.extend(
            inner_part for inner_part in part.content if not isinstance(inner_part, chat.Text)
        )
        content = f"Error: {text}" if part.is_error else text
        yield {"role": "tool", "tool_call_id": part.tool_use_id, "content": content}
    if len(user_parts) == 1 and isinstance(user_parts[0], chat.Text):
        yield {"role": "user", "content": user_parts[0].text}
    elif user_parts:
        yield {"role": "user", "content": [_encode_content_part(part) for part in user_parts]}


def _encode_content_part(part: chat.Part) -> dict[str, Any]:
    if isinstance(part, chat.Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, chat.Image):
        return {"type": "image_url", "image_url": {"url": part.url or encode_data_url(part)}}
    if isinstance(part, chat.Document):
        file = {"filename": part.name or "document.pdf", "file_data": encode_data_url(part)}
        return {"type": "file", "file": file}
    raise UnsupportedFeature(
        f"messages: a user's message may only contain text, pictures and documents, "
        f"not {type(part).__name__}",
        field="messages",
    )


def _encode_tool(tool: chat.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.schema)}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _encode_response_format(output: chat.OutputFormat | None) -> dict[str, Any] | None:
    if output is None:
        return None
    if output.schema is None:
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": output.name, "schema": dict(output.schema)}
    if output.description is not None:
        schema["description"] = output.description
    if output.strict is not None:
        schema["strict"] = output.strict
    return {"type": "json_schema", "json_schema": schema}


def _select_effort(reasoning: chat.Reasoning | None) -> str | None:
    """Return the effort level; None if reasoning is disabled or the client did not mention it.

    Disabled reasoning is not sent as "none", because models that never reason refuse the member.
    """
    if reasoning is None or not reasoning.enabled:
        return None
    if reasoning.effort is not None:
        return reasoning.effort
    if reasoning.budget is None:
        return "medium"
    return next((level for limit, level in _EFFORTS_BY_BUDGET if reasoning.budget <= limit), "high")


def encode_data_url(part: chat.Image | chat.Document) -> str:
    """Encode a document, or a picture that has ``data``, as a data URL."""
    return f"data:{part.media_type};base64,{part.data}"
