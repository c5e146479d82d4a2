from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from pydantic_core import to_json

from moyin.domain.chat import (
    ChatResponse,
    Image,
    Message,
    Reasoning,
    Role,
    StopReason,
    Text,
    Thinking,
    ToolChoice,
    ToolResult,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.domain.needs import IMAGE_TOKENS
from moyin.errors import BackendTimeout, InvalidRequest, UnsupportedFeature
from moyin.http.sse import FrameSplitter, parse_event
from moyin.testing.backends import split_into_deltas
from moyin.text.judging.transcripts import decode_stream
from moyin.text.protocol.responses.codec import (
    ParsedResponseRequest,
    ResponsesCodec,
    find_response_id,
)
from tests.unit.text.protocol.conversations import ANSWERS, SCHEMA

CODEC = ResponsesCodec()
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}


def parse_request(**members: Any) -> ParsedResponseRequest:
    return CODEC.parse(to_json({"model": "m", "input": "hi", **members}))


def encode_answer(request: ParsedResponseRequest, answer: ChatResponse) -> dict[str, Any]:
    """Return the encoded answer, validated by the strict types of OpenAI's package."""
    body = request.encode_response(answer)
    Response.model_validate_json(body, strict=True)
    return dict(json.loads(body))


def encode_stream(request: ParsedResponseRequest, answer: ChatResponse) -> list[dict[str, Any]]:
    """Return the events of a streamed answer, validated by OpenAI's package and numbered."""
    writer = request.create_stream_writer()
    body = b"".join(writer.write(delta) for delta in split_into_deltas(answer))
    frames = FrameSplitter().feed(body)
    for frame in frames:
        assert frame.data is not None
        EVENTS.validate_json(frame.data, strict=True)
    events = [parse_event(frame) for frame in frames]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def drop_varying_members(response: dict[str, Any]) -> dict[str, Any]:
    """Return a response without the members that differ in every response."""
    output = [{k: v for k, v in item.items() if k != "id"} for item in response["output"]]
    return {**response, "id": "", "created_at": 0, "output": output}


@pytest.mark.parametrize("answer_name", ANSWERS)
def test_streamed_answer_ends_with_the_whole_one(answer_name: str) -> None:
    answer = ANSWERS[answer_name]
    request = parse_request(tools=[WEATHER])
    events = encode_stream(request, answer)
    whole_response = encode_answer(parse_request(tools=[WEATHER]), answer)
    assert drop_varying_members(events[-1]["response"]) == drop_varying_members(whole_response)
    assert events[-1]["type"] == f"response.{whole_response['status']}"
    assert list(request.record.responses.values()) == [events[-1]["response"]]


@pytest.mark.parametrize("answer_name", ANSWERS)
def test_response_is_read_back(answer_name: str) -> None:
    answer = ANSWERS[answer_name]
    parsed_answer = CODEC.read_response(encode_answer(parse_request(tools=[WEATHER]), answer))
    assert (parsed_answer.parts, parsed_answer.stop, parsed_answer.usage) == (
        answer.parts,
        answer.stop,
        answer.usage,
    )
    body = b"".join(
        map(parse_request(tools=[WEATHER]).create_stream_writer().write, split_into_deltas(answer))
    )
    assert decode_stream(CODEC, body).parts == answer.parts


def test_text_events_are_nested_in_their_item() -> None:
    events = encode_stream(parse_request(), ANSWERS["text"])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event["delta"] for event in events if event["type"].endswith("text.delta")]
    assert "".join(deltas) == "Hello you there"
    usage = events[-1]["response"]["usage"]
    assert usage["input_tokens"] == 15
    assert usage["input_tokens_details"]["cached_tokens"] == 5


def test_answer_that_was_cut_is_incomplete() -> None:
    response = encode_answer(parse_request(max_output_tokens=16), ANSWERS["cut"])
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["max_output_tokens"] == 16


def test_refusal_has_its_own_part() -> None:
    parts = (Text(text="Well"), Text(text="I refuse", refusal=True))
    answer = replace(ANSWERS["refusal"], parts=parts)
    response = encode_answer(parse_request(), answer)
    assert [item["content"][0]["type"] for item in response["output"]] == ["output_text", "refusal"]
    assert response["output"][1]["content"] == [{"type": "refusal", "refusal": "I refuse"}]
    assert (response["status"], response["incomplete_details"]) == ("completed", None)
    events = encode_stream(parse_request(), answer)
    assert "response.refusal.done" in [event["type"] for event in events]
    assert drop_varying_members(events[-1]["response"]) == drop_varying_members(response)
    parsed_answer = CODEC.read_response(response)
    assert (parsed_answer.parts, parsed_answer.stop) == (parts, StopReason.REFUSAL)


def test_text_before_a_refusal_is_an_incomplete_answer() -> None:
    """An answer that was cut off by a refusal is incomplete; its reason is ``content_filter``."""
    response = encode_answer(parse_request(), ANSWERS["refusal"])
    assert response["output"][0]["content"][0]["text"] == "No"
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "content_filter"}


def test_each_tool_call_is_an_item_with_its_arguments() -> None:
    events = encode_stream(parse_request(tools=[WEATHER]), ANSWERS["tools"])
    done_events = [e for e in events if e["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in done_events] == [
        '{"city":"Paris"}',
        '{"city":"Rome"}',
    ]
    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["message", "function_call", "function_call"]
    assert [item.get("call_id") for item in items] == [None, "c1", "c2"]
    assert [event["output_index"] for event in done_events] == [1, 2]


def test_custom_tool_takes_and_gives_plain_text() -> None:
    custom_tool = {"type": "custom", "name": "patch", "description": "Applies a patch."}
    tool_use = ToolUse(id="c1", name="patch", arguments='{"input":"*** Begin\\n\\"x\\""}')
    answer = ChatResponse(
        id="a", model="m", parts=(tool_use,), stop=StopReason.TOOL_USE, usage=Usage(output_tokens=3)
    )
    request = parse_request(tools=[custom_tool])
    assert request.chat.tools[0].schema["required"] == ["input"]
    [item] = encode_answer(request, answer)["output"]
    assert (item["type"], item["input"]) == ("custom_tool_call", '*** Begin\n"x"')
    events = encode_stream(request, answer)
    inputs = [e["input"] for e in events if e["type"] == "response.custom_tool_call_input.done"]
    assert inputs == ['*** Begin\n"x"']
    next_request = parse_request(
        tools=[custom_tool],
        input=[item, {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"}],
    )
    assert next_request.chat.messages == (
        Message(role=Role.ASSISTANT, parts=(tool_use,)),
        Message(role=Role.USER, parts=(ToolResult(tool_use_id="c1", content=(Text(text="ok"),)),)),
    )


def test_a_tool_in_a_namespace_is_called_under_both_names() -> None:
    inner_tool = {"type": "function", "name": "stop", "parameters": SCHEMA, "strict": False}
    patch_tool = {"type": "custom", "name": "patch"}
    namespace = {
        "type": "namespace",
        "name": "agents",
        "description": "",
        "tools": [inner_tool, patch_tool],
    }
    outer_tool = {**inner_tool, "name": "stop"}
    request = parse_request(tools=[outer_tool, namespace])
    tool_names = [tool.name for tool in request.to_domain("m").tools]
    assert tool_names == ["stop", "agents__stop", "agents__patch"]
    tool_uses = (
        ToolUse(id="c1", name="agents__stop", arguments="{}"),
        ToolUse(id="c2", name="stop", arguments="{}"),
        ToolUse(id="c3", name="agents__patch", arguments='{"input":"x"}'),
    )
    answer = replace(ANSWERS["text"], parts=tool_uses, stop=StopReason.TOOL_USE)
    items = encode_answer(request, answer)["output"]
    assert [(item["name"], item.get("namespace")) for item in items] == [
        ("stop", "agents"),
        ("stop", None),
        ("patch", "agents"),
    ]
    finished_items = [
        e["item"]
        for e in encode_stream(request, answer)
        if e["type"] == "response.output_item.done"
    ]
    assert [drop_varying_members({"output": [a]}) for a in finished_items] == [
        drop_varying_members({"output": [b]}) for b in items
    ]
    next_request = parse_request(tools=[outer_tool, namespace], input=items).to_domain("m")
    assert next_request.messages[0].parts == tool_uses
    parsed_answer = CODEC.read_response(encode_answer(request, answer))
    assert [part.name for part in parsed_answer.parts if isinstance(part, ToolUse)] == [
        tool_use.name for tool_use in tool_uses
    ]
    assert [field for field, _ in request.iterate_schemas()] == [
        "tools.0.parameters",
        "tools.1.tools.0.parameters",
    ]


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'weather'") as exc_info:
        parse_request(tools=[WEATHER, WEATHER])
    assert exc_info.value.field == "tools.1.name"


def test_each_encoded_answer_is_recorded_by_its_id() -> None:
    """A call may encode several answers, as after a rescue; each is recorded under its own id."""
    request = parse_request()
    for answer_name in ("text", "thinking"):
        body = request.encode_response(ANSWERS[answer_name])
        response_id = find_response_id(body)
        assert response_id is not None
        assert request.record.responses[response_id] == json.loads(body)
    writer = request.create_stream_writer()
    first_frames, *other_frames = (
        writer.write(delta) for delta in split_into_deltas(ANSWERS["text"])
    )
    response_id = find_response_id(first_frames)
    assert response_id is not None
    [last_event] = [parse_event(f) for f in FrameSplitter().feed(other_frames[-1])][-1:]
    assert request.record.responses[response_id] == last_event["response"]
    assert len(request.record.responses) == 3
    error_frame = ResponsesCodec(request.record).render_error_event(BackendTimeout("late"), "r")
    [frame] = FrameSplitter().feed(error_frame)
    assert parse_event(frame)["sequence_number"] == last_event["sequence_number"] + 1


def test_custom_tool_call_is_read_back_as_json() -> None:
    custom_tool = {"type": "custom", "name": "shell"}
    tool_use = ToolUse(id="c", name="shell", arguments='{"input":"ls -l"}')
    answer = ChatResponse(
        id="a", model="m", parts=(tool_use,), stop=StopReason.TOOL_USE, usage=Usage(output_tokens=3)
    )
    assert (
        CODEC.read_response(encode_answer(parse_request(tools=[custom_tool]), answer)).parts
        == answer.parts
    )


@pytest.mark.parametrize("proof", [{"redacted": 5}, {"signature": ["x"]}, {"text": None}])
def test_forged_proof_is_refused(proof: dict[str, Any]) -> None:
    content = to_json({"text": "", "signature": None, "redacted": None} | proof)
    item = {"type": "reasoning", "encrypted_content": base64.urlsafe_b64encode(content).decode()}
    with pytest.raises(InvalidRequest) as exc_info:
        parse_request(input=[item])
    assert exc_info.value.field == "input.0.encrypted_content"


@pytest.mark.parametrize(
    "metadata", [{"a": "x" * 513}, {"a" * 65: "x"}, {str(n): "x" for n in range(17)}]
)
def test_metadata_is_bounded(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="metadata"):
        parse_request(metadata=metadata)


@pytest.mark.parametrize(
    "thinking",
    [
        Thinking(text="hm hm", signature="sig"),
        Thinking(redacted="secret"),
    ],
)
def test_reasoning_returns_with_the_proof_of_its_origin(thinking: Thinking) -> None:
    answer = ChatResponse(
        id="a",
        model="m",
        parts=(thinking, Text(text="Yes")),
        stop=StopReason.END,
        usage=Usage(output_tokens=3),
    )
    request = parse_request(include=["reasoning.encrypted_content"])
    for response in (
        encode_answer(request, answer),
        encode_stream(request, answer)[-1]["response"],
    ):
        assert parse_request(input=response["output"]).chat.messages[0].parts == answer.parts
    assert encode_answer(parse_request(), answer)["output"][0]["encrypted_content"] is None


def test_request_is_translated() -> None:
    request = parse_request(
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "Speak English."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,aGk="},
                    {"type": "input_image", "image_url": "https://e.org/a.png", "detail": "auto"},
                ],
            },
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "hm"}],
            },
            {
                "type": "function_call",
                "id": "fc",
                "call_id": "c",
                "name": "weather",
                "arguments": "{}",
            },
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_text", "text": "sunny"}],
            },
        ],
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}},
        max_output_tokens=99,
        temperature=0.5,
        metadata={"project": "x"},
    )
    chat_request = request.to_domain("upstream")
    assert chat_request.model == "upstream"
    assert chat_request.system == (Text(text="Be brief."), Text(text="Speak English."))
    assert chat_request.messages == (
        Message(
            role=Role.USER,
            parts=(
                Text(text="What is this?"),
                Image(media_type="image/png", data="aGk="),
                Image(url="https://e.org/a.png"),
            ),
        ),
        Message(
            role=Role.ASSISTANT,
            parts=(Thinking(text="hm"), ToolUse(id="c", name="weather", arguments="{}")),
        ),
        Message(
            role=Role.USER, parts=(ToolResult(tool_use_id="c", content=(Text(text="sunny"),)),)
        ),
    )
    assert chat_request.tool_choice == ToolChoice(mode="tool", name="weather", parallel=False)
    assert chat_request.reasoning == Reasoning(effort="low", budget=2048)
    assert chat_request.output is not None and chat_request.output.schema == SCHEMA
    needs = request.derive_needs()
    assert needs.tools and needs.vision and needs.schema and needs.thinking
    assert needs.prompt_tokens > 2 * IMAGE_TOKENS
    assert request.picture_urls == ("https://e.org/a.png",)
    request_with_pictures = request.with_pictures(
        {"https://e.org/a.png": Image(media_type="image/png", data="eA==")}
    )
    assert request_with_pictures.chat.messages[0].parts[2] == Image(
        media_type="image/png", data="eA=="
    )
    assert dict(request.iterate_schemas()) == {
        "tools.0.parameters": SCHEMA,
        "text.format.schema": SCHEMA,
    }


def test_allowed_tools_hide_the_others() -> None:
    other_tool = {"type": "function", "name": "other"}
    tool_choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "other"}],
    }
    chat_request = parse_request(tools=[WEATHER, other_tool], tool_choice=tool_choice).chat
    assert [tool.name for tool in chat_request.tools] == ["other"]
    assert chat_request.tool_choice == ToolChoice(mode="required")


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        (
            {"tools": [{"type": "custom", "name": "p", "format": {"type": "grammar"}}]},
            "tools.0.format.type",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": []}, "input"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"type": "reasoning", "encrypted_content": "?"}]}, "input.0.encrypted_content"),
    ],
)
def test_invalid_request_names_the_field(members: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_request(**members)
    assert exc_info.value.field == field


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"prompt": {"id": "p"}}, "prompt"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]},
            "input.0.content.0.file_url",
        ),
    ],
)
def test_unsupported_members_of_responses_are_refused_by_name(
    members: dict[str, Any], field: str
) -> None:
    with pytest.raises(UnsupportedFeature) as exc_info:
        parse_request(**members)
    assert exc_info.value.field == field


def test_broken_stream_ends_with_an_error_event() -> None:
    [frame] = FrameSplitter().feed(CODEC.render_error_event(BackendTimeout("too slow"), "r1"))
    assert frame.data is not None
    event = EVENTS.validate_json(frame.data, strict=True)
    assert (event.type, event.message) == ("error", "too slow")
