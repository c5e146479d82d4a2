from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from anthropic.types import Message as SdkMessage
from pydantic_core import to_json

from moyin.domain.chat import (
    ChatResponse,
    Finished,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Role,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolArguments,
    ToolResult,
    ToolStarted,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.domain.needs import Needs
from moyin.errors import InvalidRequest, InvalidToolCall, StreamInterrupted, UnsupportedFeature
from moyin.http.validation import parse_arguments, validate
from moyin.testing.backends import split_into_deltas
from moyin.text.protocol.anthropic import wire
from moyin.text.protocol.anthropic.codec import AnthropicCodec, ParsedCountTokensRequest
from moyin.text.protocol.anthropic.errors import render_error
from moyin.text.protocol.anthropic.request_to_domain import chat_request_to_domain
from moyin.text.protocol.anthropic.request_to_upstream import (
    DEFAULT_MAX_TOKENS,
    chat_request_to_upstream,
)
from moyin.text.protocol.anthropic.response import (
    chat_response_to_client,
    chat_response_to_domain,
    usage_to_domain,
)
from moyin.text.protocol.anthropic.schemas import to_claude_schema
from moyin.text.protocol.anthropic.stream import StreamReader, StreamTap, StreamWriter
from moyin.text.protocol.openai.codec import OpenAICodec
from tests.unit.text.protocol.conversations import ANSWERS, FULL

SMALL = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}

CITY = {"type": "string", "examples": ["Paris"]}
# The schema of `FULL` without the keywords that Claude refuses.
CHECKABLE = {
    "type": "object",
    "properties": {"city": CITY},
    "required": ["city"],
    "additionalProperties": False,
}


def parse_body(**changes: Any) -> wire.MessagesBody:
    return validate(wire.MessagesBody, {**SMALL, **changes})


def test_request_round_trips() -> None:
    request = replace(
        FULL,
        system=(Text(text="Be brief.", cache="1h"),),
        reasoning=Reasoning(budget=2000),
        tools=(replace(FULL.tools[0], schema=CHECKABLE),),
        output=OutputFormat(schema=CHECKABLE),
    )
    body = chat_request_to_upstream(request)
    assert chat_request_to_domain(validate(wire.MessagesBody, json.loads(to_json(body)))) == request


def test_upstream_request_matches_anthropics_format() -> None:
    body = chat_request_to_upstream(replace(FULL, max_tokens=None))
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["max_tokens"] == DEFAULT_MAX_TOKENS
    assert body["tool_choice"] == {
        "type": "tool",
        "name": "weather",
        "disable_parallel_tool_use": True,
    }
    assert body["messages"][1]["content"][1]["input"] == {"city": "Paris"}
    assert body["output_config"]["format"]["schema"] == {
        **CHECKABLE,
        "properties": {"city": {**CITY, "description": "{minLength: 1}"}},
    }
    assert body["stop_sequences"] == ["END", "###"]


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(seed=7), "seed"),
        (Sampling(frequency_penalty=0.5), "frequency_penalty"),
        (Sampling(temperature=1.5), "temperature"),
    ],
)
def test_unsupported_sampling_is_refused_by_name(sampling: Sampling, field: str) -> None:
    with pytest.raises(UnsupportedFeature) as exc_info:
        chat_request_to_upstream(replace(FULL, sampling=sampling))
    assert exc_info.value.field == field


def test_json_without_a_schema_is_refused() -> None:
    with pytest.raises(UnsupportedFeature, match="schema"):
        chat_request_to_upstream(replace(FULL, output=OutputFormat()))


@pytest.mark.parametrize("arguments", ["[1]", "{", "null"])
def test_tool_arguments_must_be_an_object(arguments: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_arguments(arguments)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"container": {"id": "x"}}, "container"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "messages.0.content.0.type",
        ),
    ],
)
def test_untranslatable_member_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedFeature) as exc_info:
        chat_request_to_domain(parse_body(**changes))
    assert exc_info.value.field == field


def test_system_messages_in_the_conversation_join_the_system_prompt() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "system", "content": "b"}]
    request = chat_request_to_domain(parse_body(system="a", messages=turns))
    assert [text.text for text in request.system] == ["a", "b"]
    assert len(request.messages) == 1


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_response_round_trip_is_valid_for_the_sdk(answer: ChatResponse) -> None:
    body = chat_response_to_client(answer)
    parsed_answer = chat_response_to_domain(json.loads(body))
    assert _drop_empty_signatures(parsed_answer) == answer
    assert SdkMessage.model_validate_json(body).usage.output_tokens == answer.usage.output_tokens


# The members that Claude itself writes as null.
NULLABLE = {"stop_reason", "stop_sequence", "stop_details", "container", "inference_geo"}
NULLABLE |= {"server_tool_use"}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_responses_have_null_only_where_claude_does(answer: ChatResponse) -> None:
    assert list_null_members(json.loads(chat_response_to_client(answer))) <= NULLABLE
    writer = StreamWriter()
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(answer))
    for line in stream.splitlines():
        if line.startswith(b"data: "):
            assert list_null_members(json.loads(line[6:])) <= NULLABLE


def list_null_members(json_value: Any) -> set[str]:
    """Return the names of all members that are null."""
    if isinstance(json_value, list):
        return set().union(*map(list_null_members, json_value))
    if not isinstance(json_value, dict):
        return set()
    return {k for k, v in json_value.items() if v is None}.union(
        *map(list_null_members, json_value.values())
    )


def _drop_empty_signatures(answer: ChatResponse) -> ChatResponse:
    """Return the answer with None for each empty signature.

    Anthropic's protocol requires a signature, so the reasoning of other models gets an empty one.
    """
    parts = [
        replace(p, signature=p.signature or None) if isinstance(p, Thinking) else p
        for p in answer.parts
    ]
    return replace(answer, parts=tuple(parts))


SIGNED = replace(
    ANSWERS["thinking"],
    parts=(Thinking(text="hm hm", signature="sig"), Thinking(redacted="xyz"), Text(text="Yes")),
)


@pytest.mark.parametrize("piece_size", [1, 7, 100_000])
@pytest.mark.parametrize("answer", [*ANSWERS.values(), SIGNED], ids=[*ANSWERS, "signed"])
def test_stream_round_trips(answer: ChatResponse, piece_size: int) -> None:
    writer = StreamWriter()
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(answer))
    reader = StreamReader()
    read_deltas = [
        delta
        for start in range(0, len(stream), piece_size)
        for delta in reader.feed(stream[start : start + piece_size])
    ]
    assert reader.is_finished
    assert read_deltas[1:] == split_into_deltas(answer)[1:]


def test_content_blocks_do_not_overlap() -> None:
    writer = StreamWriter()
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(ANSWERS["tools"]))
    frames = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: ")]
    block_events = [
        (f["type"], f["index"]) for f in frames if f["type"].startswith("content_block_st")
    ]
    assert block_events == [
        (f"content_block_{edge}", index) for index in range(3) for edge in ("start", "stop")
    ]
    assert frames[-2]["delta"]["stop_reason"] == "tool_use"


def test_arguments_for_a_closed_call_interrupt_the_stream() -> None:
    writer = StreamWriter()
    writer.write(ToolStarted(index=0, id="a", name="f"))
    writer.write(ToolArguments(index=0, fragment="{}"))
    writer.write(ToolStarted(index=1, id="b", name="f"))
    assert writer.write(ToolArguments(index=0, fragment="\n")) == b""
    with pytest.raises(StreamInterrupted):
        writer.write(ToolArguments(index=0, fragment="{"))


def test_invalid_tool_arguments_are_a_model_error() -> None:
    broken_answer = replace(ANSWERS["tools"], parts=(ToolUse(id="a", name="f", arguments="{oops"),))
    with pytest.raises(InvalidToolCall) as exc_info:
        chat_response_to_client(broken_answer)
    error_response = render_error(exc_info.value, "r1", "/v1/messages")
    assert error_response.status == 422
    assert json.loads(error_response.body)["error"] == {
        "type": "api_error",
        "message": "the model called the tool 'f' with arguments that are not a JSON object; "
        "try again, or use another model",
        "code": "invalid_tool_call",
        "details": {"tool": "f", "arguments": "{oops"},
    }


def test_stream_usage_combines_both_events() -> None:
    start_usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 50,
        "cache_creation": {"ephemeral_1h_input_tokens": 20, "ephemeral_5m_input_tokens": 30},
        "output_tokens": 1,
    }
    usage = usage_to_domain({"output_tokens": 42}, earlier_usage=usage_to_domain(start_usage))
    assert usage == Usage(
        input_tokens=10,
        cached_tokens=100,
        cache_write_tokens=30,
        cache_write_1h_tokens=20,
        output_tokens=42,
    )
    assert usage.prompt_tokens == 160


def test_tap_passes_all_bytes_and_reads_usage() -> None:
    writer = StreamWriter()
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(ANSWERS["text"]))
    tap = StreamTap()
    assert b"".join(tap.feed(bytes([byte])) for byte in stream) == stream
    assert tap.is_finished
    assert tap.usage == ANSWERS["text"].usage
    assert tap.tokens == 4, "15 characters"


@pytest.mark.parametrize(
    "piece",
    [
        b"event: x\ndata: {nope}\n\n",
        b'event: error\ndata: {"type":"error","error":{"message":"secret"}}\n\n',
    ],
)
def test_malformed_event_interrupts_without_leaking_its_text(piece: bytes) -> None:
    for feed in (StreamTap().feed, StreamReader().feed):
        with pytest.raises(StreamInterrupted) as exc_info:
            feed(piece)
        assert "secret" not in exc_info.value.message


def test_only_protocol_headers_are_forwarded() -> None:
    headers = [(b"anthropic-beta", b"b1"), (b"x-api-key", b"secret"), (b"cookie", b"c")]
    assert AnthropicCodec().select_forwarded_headers(headers) == {"anthropic-beta": "b1"}


def test_needs_include_every_required_ability() -> None:
    needs = AnthropicCodec().parse(to_json(chat_request_to_upstream(FULL))).derive_needs()
    assert (needs.tools, needs.vision, needs.schema, needs.max_tokens) == (True, True, True, 99)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"thread": {"type": "create"}}, "thread"),
        ({"thinking": {"type": "enabled", "display": "omitted"}}, "thinking.display"),
        (
            {"tools": [{"name": "f", "input_schema": {}, "input_examples": [{}]}]},
            "tools.0.input_examples",
        ),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ],
)
def test_error_names_untranslatable_member(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedFeature) as exc_info:
        chat_request_to_domain(parse_body(**changes))
    assert exc_info.value.field == field
    # Anthropic's SDK reads this to fall back to the whole conversation.
    unsupported_features = exc_info.value.details.get("unsupported")
    assert unsupported_features == (["thread"] if field == "thread" else None)


@pytest.mark.parametrize("name", ["seed", "frequency_penalty", "presence_penalty"])
def test_error_names_unsupported_sampling(name: str) -> None:
    sampling = replace(FULL.sampling, **{name: 1})
    with pytest.raises(UnsupportedFeature) as exc_info:
        chat_request_to_upstream(replace(FULL, sampling=sampling))
    assert exc_info.value.field == name
    if name == "seed":
        with pytest.raises(UnsupportedFeature):
            chat_request_to_upstream(replace(FULL, sampling=replace(FULL.sampling, seed=0)))


@pytest.mark.parametrize(
    ("reasoning", "thinking", "effort"),
    [
        (Reasoning(enabled=False), {"type": "disabled"}, None),
        (Reasoning(budget=2000), {"type": "enabled", "budget_tokens": 2000}, None),
        (Reasoning(effort="low", budget=2048), {"type": "adaptive"}, "low"),
        (Reasoning(), {"type": "adaptive"}, None),
    ],
)
def test_reasoning_becomes_thinking_and_effort(
    reasoning: Reasoning, thinking: dict[str, Any], effort: str | None
) -> None:
    body = chat_request_to_upstream(replace(FULL, reasoning=reasoning, output=None))
    assert body["thinking"] == thinking
    assert body.get("output_config", {}).get("effort") == effort


def test_errors_use_anthropics_field_names() -> None:
    error = UnsupportedFeature("no", field="response_format")
    body = json.loads(render_error(error, "r1", "/v1/messages").body)
    assert body["error"]["field"] == "output_config.format"


def test_pictures_by_url_are_inlined_at_any_depth() -> None:
    def make_picture(url: str) -> dict[str, Any]:
        return {"type": "image", "source": {"type": "url", "url": url}}

    tool_result = {
        "type": "tool_result",
        "tool_use_id": "c",
        "content": [make_picture("https://e.org/b")],
    }
    content = [make_picture("https://e.org/a"), tool_result]
    client_body = {**SMALL, "messages": [{"role": "user", "content": content}], "future": 1}
    parsed_request = AnthropicCodec().parse(to_json(client_body))
    assert parsed_request.picture_urls == ("https://e.org/a", "https://e.org/b")
    image = Image(media_type="image/gif", data="R0k=")
    request_with_pictures = parsed_request.with_pictures(
        dict.fromkeys(parsed_request.picture_urls, image)
    )
    assert request_with_pictures.picture_urls == ()
    body = json.loads(request_with_pictures.to_upstream("m", {}))
    gif_source = {"type": "base64", "media_type": "image/gif", "data": "R0k="}
    assert body["messages"][0]["content"][0]["source"] == gif_source
    assert body["messages"][0]["content"][1]["content"][0]["source"] == gif_source
    assert body["future"] == 1


def test_count_request_needs_no_max_tokens() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 40}]}
    parsed_request = ParsedCountTokensRequest.parse(to_json(body))
    assert parsed_request.derive_needs().prompt_tokens == 14
    assert json.loads(parsed_request.to_upstream("up")) == {**body, "model": "up"}


def test_final_total_does_not_count_1h_cache_writes_twice() -> None:
    cache_writes = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 20}
    started_usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 50,
        "cache_creation": cache_writes,
    }
    message = {"id": "m", "model": "m", "usage": {**started_usage, "output_tokens": 1}}
    final_usage = {"input_tokens": 10, "cache_creation_input_tokens": 50, "output_tokens": 42}
    stream = b"".join(
        b"data: " + to_json(event) + b"\n\n"
        for event in (
            {"type": "message_start", "message": message},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": final_usage},
            {"type": "message_stop"},
        )
    )
    total_usage = usage_to_domain({**started_usage, "output_tokens": 42})
    tap = StreamTap()
    tap.feed(stream)
    assert tap.usage == total_usage
    finished_event = StreamReader().feed(stream)[-1]
    assert isinstance(finished_event, Finished) and finished_event.usage == total_usage
    assert (total_usage.cache_write_tokens, total_usage.cache_write_1h_tokens) == (30, 20)


def derive_needs(*content: dict[str, Any]) -> Needs:
    turn = {"role": "user", "content": list(content)}
    return AnthropicCodec().parse(to_json({**SMALL, "messages": [turn]})).derive_needs()


def make_document(**source: str) -> dict[str, Any]:
    return {"type": "document", "source": source}


def test_needs_include_documents() -> None:
    text_document = make_document(type="text", media_type="text/plain", data="x" * 4_000)
    assert 1_000 < derive_needs(text_document).prompt_tokens < 1_050, "it is text"
    pdf_document = make_document(type="base64", media_type="application/pdf", data="A" * 4_000)
    needs = derive_needs(pdf_document)
    assert 4_000 < needs.attachment_bytes < 4_200
    assert needs.prompt_tokens < 50, "base64 is not counted as text"
    nested_block = {
        "type": "tool_result",
        "tool_use_id": "c",
        "content": [text_document, pdf_document],
    }
    assert derive_needs(nested_block).prompt_tokens > 1_000
    assert derive_needs(nested_block).attachment_bytes > 4_000
    inner_image = {"type": "image", "source": {"type": "url", "url": "https://e.org/a"}}
    mixed_document = {"type": "document", "source": {"type": "content", "content": [inner_image]}}
    for block in (
        make_document(type="url", url="https://e.org/a.pdf"),
        make_document(type="file", file_id="f1"),
        {
            "type": "tool_result",
            "tool_use_id": "c",
            "content": [make_document(type="file", file_id="1")],
        },
        mixed_document,
    ):
        assert derive_needs(block).has_external_content, block
    # A URL in the text of a document is not a source.
    text_with_url = make_document(type="text", media_type="text/plain", data='"type":"url"')
    assert not any(
        derive_needs(block).has_external_content
        for block in (text_document, pdf_document, text_with_url)
    )
    assert derive_needs({"type": "redacted_thinking", "data": "x" * 400}).prompt_tokens > 100


@pytest.mark.parametrize(
    ("changes", "is_external"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, True),
        ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, True),
        ({"mcp_servers": [{"type": "url", "url": "https://e.org", "name": "e"}]}, True),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, False),
        ({"tools": [{"type": "custom", "name": "f", "input_schema": {}}]}, False),
    ],
)
def test_provider_tools_are_external_content(changes: dict[str, Any], is_external: bool) -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    parsed_request = AnthropicCodec().parse(to_json({**body, **changes}))
    assert parsed_request.derive_needs().has_external_content is is_external


@pytest.mark.parametrize(
    ("block", "has_urls"),
    [
        ({"type": "text", "text": '"url":'}, False),
        ({"type": "image", "source": {"type": "base64", "data": "", "media_type": "x"}}, False),
        ({"type": "image", "source": {"type": "url", "url": "http://10.0.0.1"}}, True),
        (make_document(type="url", url="http://10.0.0.1"), True),
        (make_document(type="text", data='"url":"http://10.0.0.1"'), False),
        (make_document(type="base64", data="", url="http://10.0.0.1"), True),
        ({"type": "web_search_tool_result", "content": [{"url": "http://e.org"}]}, False),
        (
            {
                "type": "tool_result",
                "tool_use_id": "c",
                "content": [make_document(type="url", url="http://10.0.0.1")],
            },
            True,
        ),
    ],
)
def test_urls_of_content_blocks_are_detected(block: dict[str, Any], has_urls: bool) -> None:
    turn = {"role": "user", "content": [block]}
    parsed_request = ParsedCountTokensRequest.parse(to_json({"model": "m", "messages": [turn]}))
    assert parsed_request.has_urls is has_urls
    if block["type"] != "image":
        assert derive_needs(block).has_urls is has_urls, "messages and counts agree"


def convert_turns(*messages: tuple[Role, tuple[Part, ...]]) -> list[dict[str, Any]]:
    conversation = tuple(Message(role=role, parts=parts) for role, parts in messages)
    body: list[dict[str, Any]] = chat_request_to_upstream(replace(FULL, messages=conversation))[
        "messages"
    ]
    return body


def test_blank_texts_are_dropped_and_turns_alternate() -> None:
    tool_result = ToolResult(tool_use_id="c", content=(Text(text=""),))
    sent_turns = convert_turns(
        (Role.USER, (Text(text="run"), Text(text=" \n"))),
        (Role.ASSISTANT, (Text(text=""), ToolUse(id="c", name="sh", arguments="{}"))),
        (Role.USER, (tool_result,)),
        (Role.ASSISTANT, (Text(text=""), Thinking(text="another's"))),
        (Role.USER, (Text(text="go on"),)),
    )
    assert [
        (turn["role"], [block["type"] for block in turn["content"]]) for turn in sent_turns
    ] == [
        ("user", ["text"]),
        ("assistant", ["tool_use"]),
        ("user", ["tool_result", "text"]),
    ]
    assert "content" not in sent_turns[2]["content"][0]
    assert "system" not in chat_request_to_upstream(replace(FULL, system=(Text(text=""),)))


def test_tool_call_ids_are_sanitised_consistently() -> None:
    sent_turns = convert_turns(
        (Role.ASSISTANT, (ToolUse(id="functions.sh:0", name="sh", arguments="{}"),)),
        (Role.USER, (ToolResult(tool_use_id="functions.sh:0", content=()),)),
    )
    assert sent_turns[0]["content"][0]["id"] == "functions_sh_0"
    assert sent_turns[1]["content"][0]["tool_use_id"] == "functions_sh_0"


def test_jpg_media_type_is_corrected() -> None:
    picture = Image(media_type="image/jpg", data="/9j/")
    ((block,),) = (turn["content"] for turn in convert_turns((Role.USER, (picture,))))
    assert block["source"] == {"type": "base64", "media_type": "image/jpeg", "data": "/9j/"}


@pytest.mark.parametrize(("top_p", "sent_top_p"), [(1, None), (1.0, None), (0.9, 0.9), (0, 0)])
def test_top_p_of_one_is_omitted(top_p: float, sent_top_p: float | None) -> None:
    body = chat_request_to_upstream(replace(FULL, sampling=Sampling(temperature=0.7, top_p=top_p)))
    assert (body["temperature"], body.get("top_p")) == (0.7, sent_top_p)


OPEN = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0},
        "homes": {"type": "array", "items": {"$ref": "#/$defs/Home"}},
    },
    "required": ["age"],
    "$defs": {"Home": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_response_schemas_are_closed() -> None:
    body = chat_request_to_upstream(replace(FULL, output=OutputFormat(schema=OPEN)))
    schema = body["output_config"]["format"]["schema"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Home"]["additionalProperties"] is False
    assert schema["required"] == ["age"]
    assert schema["properties"]["age"] == {"type": "integer", "description": "{minimum: 0}"}
    assert "additionalProperties" not in OPEN, "the client's schema is not changed"


def make_closed_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


BOUND = {
    **make_closed_object(
        age={"type": "integer", "minimum": 0, "maximum": 150, "description": "In years."},
        # Property names and the values of defaults are not keywords.
        minimum={"type": ["number", "null"], "multipleOf": 0.5, "default": {"minimum": 1}},
        tags={"type": "array", "minItems": 1, "maxItems": 3, "uniqueItems": True},
        pair={"type": "array", "minItems": 2, "items": {"type": "string", "maxLength": 9}},
        when={"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        size={"oneOf": [{"type": "string", "format": "int32"}, {"$ref": "#/definitions/Size"}]},
        code={"type": "string", "pattern": r"^[A-Z]{3}(?:-\d+)?$"},
        price={"type": "string", "pattern": r"^(?!0)\d+$"},
    ),
    "definitions": {"Size": {"type": "number", "exclusiveMinimum": 0}},
}
CHECKED = {
    **make_closed_object(
        age={"type": "integer", "description": "In years.\n\n{minimum: 0, maximum: 150}"},
        minimum={
            "type": ["number", "null"],
            "default": {"minimum": 1},
            "description": "{multipleOf: 0.5}",
        },
        tags={
            "type": "array",
            "minItems": 1,
            "description": "{maxItems: 3, uniqueItems: True}",
        },
        pair={
            "type": "array",
            "items": {"type": "string", "description": "{maxLength: 9}"},
            "description": "{minItems: 2}",
        },
        when={"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        size={
            "anyOf": [
                {"type": "string", "description": "{format: int32}"},
                {"$ref": "#/definitions/Size"},
            ]
        },
        code={"type": "string", "pattern": r"^[A-Z]{3}(?:-\d+)?$"},
        price={"type": "string", "description": r"{pattern: ^(?!0)\d+$}"},
    ),
    "definitions": {"Size": {"type": "number", "description": "{exclusiveMinimum: 0}"}},
}


def test_refused_keywords_move_into_descriptions() -> None:
    schema_before = json.dumps(BOUND)
    tools = (
        Tool(name="strict", schema=BOUND, strict=True),
        Tool(name="free", schema=BOUND),
        Tool(name="open", schema=OPEN, strict=True),
    )
    body = chat_request_to_upstream(replace(FULL, tools=tools, output=OutputFormat(schema=BOUND)))
    assert body["output_config"]["format"]["schema"] == CHECKED
    strict_schema, free_schema, open_schema = (tool["input_schema"] for tool in body["tools"])
    assert (strict_schema, free_schema) == (CHECKED, BOUND), (
        "only a strict tool constrains the model"
    )
    assert open_schema["additionalProperties"] is False
    assert json.dumps(BOUND) == schema_before, "the client's schema is not changed"


def test_unsupported_strict_tool_is_refused_by_name() -> None:
    tool = Tool(name="f", schema={"type": "object"}, strict=True)
    with pytest.raises(UnsupportedFeature) as exc_info:
        chat_request_to_upstream(replace(FULL, tools=(tool,)))
    assert exc_info.value.field == "tools"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"type": ["string", "null"]}}},
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "properties": {"a": True}},
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/definitions/A"}},
            "definitions": {"A": {"type": "string"}},
        },
    ],
    ids=["any", "map", "types", "anything", "true", "definitions"],
)
def test_unsupported_response_schema_is_refused_by_name(schema: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeature) as exc_info:
        chat_request_to_upstream(replace(FULL, output=OutputFormat(schema=schema)))
    assert exc_info.value.field == "response_format"


def test_strict_tool_without_parameters_has_a_closed_schema() -> None:
    tool = {"type": "function", "function": {"name": "now", "strict": True}}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    request = OpenAICodec().parse(to_json(body)).to_domain("m")
    assert chat_request_to_upstream(request)["tools"][0]["input_schema"] == make_closed_object()


@pytest.mark.parametrize(
    ("pattern", "is_supported"),
    [
        (r"^\(?\d{3}\)?$", True),
        (r"^\\b$", True),
        (r"^a\b", False),
        (r"^\\\b", False),
        (r"^\\(?!x)", False),
        (r"(a)\1", False),
    ],
)
def test_supported_pattern_is_kept(pattern: str, is_supported: bool) -> None:
    schema = to_claude_schema({"type": "string", "pattern": pattern})
    assert (schema.get("pattern") == pattern) is is_supported
    assert ("description" in schema) is not is_supported


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "data": "aGk="},
        {"type": "base64", "media_type": "image/png"},
        {"type": "url"},
    ],
)
def test_incomplete_picture_source_is_refused(source: dict[str, Any]) -> None:
    block = {"type": "image", "source": source}
    with pytest.raises(InvalidRequest, match="requires") as exc_info:
        parse_body(messages=[{"role": "user", "content": [block]}])
    assert exc_info.value.field == "messages.0.content.0.source"


def test_attachment_bytes_include_the_schema() -> None:
    schema = {"type": "object", "description": "x" * 4_000}
    output_config = {"format": {"type": "json_schema", "schema": schema}}
    needs = (
        AnthropicCodec().parse(to_json({**SMALL, "output_config": output_config})).derive_needs()
    )
    assert needs.schema and 4_000 < needs.attachment_bytes < 4_200
