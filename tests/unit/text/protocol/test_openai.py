from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError
from pydantic_core import to_json

from moyin.domain.chat import (
    ChatResponse,
    EmbeddingResponse,
    Image,
    Message,
    Reasoning,
    Role,
    Started,
    StopReason,
    Text,
    TextDelta,
    Thinking,
    ToolArguments,
    ToolResult,
    ToolStarted,
    ToolUse,
    UsageUpdate,
)
from moyin.domain.money import Usage
from moyin.domain.needs import Needs
from moyin.errors import (
    BackendUnavailable,
    InvalidRequest,
    StreamInterrupted,
    UnsupportedFeature,
)
from moyin.http.validation import validate
from moyin.testing.backends import split_into_deltas
from moyin.text.protocol.anthropic.request_to_upstream import (
    chat_request_to_upstream as to_anthropic,
)
from moyin.text.protocol.openai import wire
from moyin.text.protocol.openai.codec import OpenAICodec, OpenAIEmbeddingsCodec
from moyin.text.protocol.openai.request_to_domain import (
    chat_request_to_domain,
    find_untranslatable_field,
)
from moyin.text.protocol.openai.request_to_upstream import chat_request_to_upstream
from moyin.text.protocol.openai.response import (
    chat_response_to_client,
    chat_response_to_domain,
    embedding_response_to_client,
    embedding_response_to_domain,
)
from moyin.text.protocol.openai.stream import StreamReader, StreamTap, StreamWriter
from tests.unit.text.protocol.conversations import ANSWERS, FULL


@pytest.mark.parametrize("n", [1025, 10**19])
def test_number_of_answers_is_bounded(n: int) -> None:
    """A huge number of answers ``n`` is refused, because it cannot be counted against limits."""
    with pytest.raises(InvalidRequest) as exc_info:
        OpenAICodec().parse(to_json({**SMALL, "n": n}))
    assert exc_info.value.field == "n"


def test_wrong_value_in_a_long_list_gives_few_errors() -> None:
    """The error lists few problems; one for each wrong value and each type would take too long."""
    with pytest.raises(ValidationError) as exc_info:
        wire.EmbeddingBody.model_validate({"model": "m", "input": [1] * 100 + ["a"]})
    assert exc_info.value.error_count() <= 4


SMALL = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def parse_body(**changes: Any) -> wire.ChatBody:
    return validate(wire.ChatBody, {**SMALL, **changes})


def test_request_round_trips() -> None:
    body = chat_request_to_upstream(FULL, stream=False)
    assert chat_request_to_domain(validate(wire.ChatBody, json.loads(to_json(body)))) == FULL


def test_upstream_request_matches_openais_format() -> None:
    body = chat_request_to_upstream(FULL, stream=True)
    assert [message["role"] for message in body["messages"]] == [
        *("system", "user", "assistant", "tool", "tool", "user")
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert body["parallel_tool_calls"] is False
    assert body["response_format"]["json_schema"]["schema"] == FULL.output.schema  # type: ignore[union-attr]
    assert body["messages"][1]["content"][1]["image_url"]["url"] == "data:image/png;base64,aGk="
    assert body["stream_options"] == {"include_usage": True}


def test_system_and_developer_messages_are_hoisted_in_order() -> None:
    request = chat_request_to_domain(
        parse_body(
            messages=[
                {"role": "developer", "content": "a"},
                {"role": "user", "content": "hi"},
                {"role": "system", "content": [{"type": "text", "text": "b"}]},
            ]
        )
    )
    assert request.system == (Text(text="a"), Text(text="b"))
    assert request.messages == (Message(role=Role.USER, parts=(Text(text="hi"),)),)


def test_failed_tool_result_with_picture_is_translated() -> None:
    tool_result = ToolResult(
        tool_use_id="c1", content=(Text(text="no"), Image(url="https://e.org/i")), is_error=True
    )
    request = replace(FULL, messages=(Message(role=Role.USER, parts=(tool_result,)),), system=())
    tool_message, user_message = chat_request_to_upstream(request, stream=False)["messages"]
    assert tool_message == {"role": "tool", "tool_call_id": "c1", "content": "Error: no"}
    assert user_message["content"] == [
        {"type": "image_url", "image_url": {"url": "https://e.org/i"}}
    ]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"n": 2}, "n"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"min_p": 0.1}, "min_p"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "input_audio", "input_audio": {"data": ""}}],
                    }
                ]
            },
            "messages.0.content.0",
        ),
    ],
)
def test_untranslatable_member_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedFeature) as exc_info:
        chat_request_to_domain(parse_body(**changes))
    assert exc_info.value.field == field


def test_harmless_and_empty_members_are_dropped() -> None:
    chat_request_to_domain(
        parse_body(store=True, metadata={"a": "b"}, logprobs=False, n=1, functions=None)
    )


@pytest.mark.parametrize(
    ("reasoning", "effort"),
    [
        (Reasoning(effort="high"), "high"),
        (Reasoning(budget=1024), "low"),
        (Reasoning(budget=8000), "medium"),
        (Reasoning(budget=50_000), "high"),
        (Reasoning(enabled=False), None),
        (Reasoning(), "medium"),
        (None, None),
    ],
)
def test_reasoning_becomes_effort(reasoning: Reasoning | None, effort: str | None) -> None:
    body = chat_request_to_upstream(replace(FULL, reasoning=reasoning), stream=False)
    assert body.get("reasoning_effort") == effort


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_response_round_trip_is_valid_for_the_sdk(answer: ChatResponse) -> None:
    body = chat_response_to_client(answer, created=1)
    assert chat_response_to_domain(json.loads(body)) == answer
    completion = ChatCompletion.model_validate_json(body)
    assert completion.choices[0].message.content == (answer.text or None)


@pytest.mark.parametrize("piece_size", [1, 7, 100_000])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_stream_round_trips(answer: ChatResponse, piece_size: int) -> None:
    writer = StreamWriter(created=1, include_usage=True)
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(answer))
    reader = StreamReader()
    read_deltas = [
        delta
        for start in range(0, len(stream), piece_size)
        for delta in reader.feed(stream[start : start + piece_size])
    ]
    assert reader.is_finished
    assert read_deltas == split_into_deltas(answer)


def test_every_event_is_valid_for_the_sdk() -> None:
    writer = StreamWriter(created=1, include_usage=True)
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(ANSWERS["tools"]))
    *events, end_marker = [frame.removeprefix(b"data: ") for frame in stream.strip().split(b"\n\n")]
    assert end_marker == b"[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(event) for event in events]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 19


def test_required_members_are_added_to_a_whole_response() -> None:
    llama_body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
        "x": 1,
    }
    codec = OpenAICodec()
    completed_body = json.loads(codec.add_missing_members(b"the same", llama_body, None))
    message = {"role": "assistant", "content": "hi", "refusal": None}
    assert completed_body == {
        "choices": [{"index": 0, "message": message, "logprobs": None}],
        "x": 1,
    }
    assert codec.add_missing_members(b"not touched", completed_body, None) == b"not touched"
    body_with_calls: dict[str, Any] = {
        "choices": [{"logprobs": {"content": []}, "message": {"tool_calls": []}}]
    }
    choice = json.loads(codec.add_missing_members(b"", body_with_calls, None))["choices"][0]
    assert choice["logprobs"] == {"content": []}
    assert choice["message"] == {"tool_calls": [], "content": None, "refusal": None}


@pytest.mark.parametrize(
    ("sent_arguments", "received_arguments"),
    [("{oops", "{oops"), ({"a": 1}, '{"a":1}'), (None, ""), ("", "")],
)
def test_tool_arguments_are_passed_unchanged(sent_arguments: Any, received_arguments: str) -> None:
    tool_call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": sent_arguments}}
    answer = chat_response_to_domain({"choices": [{"message": {"tool_calls": [tool_call]}}]})
    assert answer.parts == (ToolUse(id="c1", name="f", arguments=received_arguments),)
    chunk = {
        "id": "1",
        "model": "m",
        "choices": [{"index": 0, "delta": {"tool_calls": [tool_call]}}],
    }
    deltas = StreamReader().feed(encode_events(chunk))
    assert "".join(d.fragment for d in deltas if isinstance(d, ToolArguments)) == received_arguments


CHUNK = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "four"}}]}
TOTAL = {"id": "1", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


def encode_events(*bodies: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies)


@pytest.mark.parametrize("hides_usage", [True, False])
def test_tap_passes_bytes_and_reads_usage(hides_usage: bool) -> None:
    tap = StreamTap(hide_usage=hides_usage)
    end_marker = b"data: [DONE]\n\n"
    passed_bytes = tap.feed(b": ping\n\n" + encode_events(CHUNK, TOTAL) + end_marker)
    shown_events = encode_events(CHUNK) if hides_usage else encode_events(CHUNK, TOTAL)
    assert passed_bytes == b": ping\n\n" + shown_events + end_marker
    assert tap.usage == Usage(input_tokens=5, output_tokens=2)
    assert (tap.is_finished, tap.tokens) == (True, 1)


@pytest.mark.parametrize(
    "piece",
    [
        b"data: {nope}\n\n",
        b"data: 3\n\n",
        encode_events({"error": {"message": "secret of the server"}}),
    ],
)
def test_malformed_event_interrupts_without_leaking_its_text(piece: bytes) -> None:
    for feed in (StreamTap(hide_usage=True).feed, StreamReader().feed):
        with pytest.raises(StreamInterrupted) as exc_info:
            feed(piece)
        assert "secret" not in exc_info.value.message


def test_numeric_tool_call_id_becomes_text() -> None:
    tool_call = {"id": 7, "function": {"name": "f", "arguments": "{}"}}
    answer = chat_response_to_domain({"choices": [{"message": {"tool_calls": [tool_call]}}]})
    _, tool_started, _ = StreamReader().feed(
        encode_events({"choices": [{"delta": {"tool_calls": [tool_call]}}]})
    )
    assert isinstance(tool_started, ToolStarted)
    assert answer.parts == (ToolUse(id=tool_started.id, name="f", arguments="{}"),)


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": [{"message": 3}]}, {"choices": 1}]
)
def test_malformed_response_is_a_backend_error(body: dict[str, Any]) -> None:
    with pytest.raises(BackendUnavailable):
        chat_response_to_domain(body)


def test_unchanged_request_keeps_its_bytes() -> None:
    raw_body = b'{ "model":"m","messages":[{"role":"user","content":"hi"}], "seed": 1e0 }'
    raw_body = raw_body.replace(b"1e0", b"1")
    assert OpenAICodec().parse(raw_body).to_upstream("m", {}) is raw_body


def test_only_model_and_include_usage_change() -> None:
    client_body = {**SMALL, "stream": True, "stream_options": {"x": 1}, "min_p": 0.25}
    parsed_request = OpenAICodec().parse(json.dumps(client_body).encode())
    body = json.loads(parsed_request.to_upstream("other", {}))
    expected_options = {"stream_options": {"x": 1, "include_usage": True}}
    assert body == {**client_body, "model": "other", **expected_options}


def test_needs_include_every_required_ability() -> None:
    body = chat_request_to_upstream(FULL, stream=False)
    needs = OpenAICodec().parse(to_json(body)).derive_needs()
    assert (needs.tools, needs.vision, needs.schema, needs.max_tokens) == (True, True, True, 99)
    assert 2400 < needs.prompt_tokens < 2600


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"tools": [{"type": "function", "function": {"name": "f", "examples": [1]}}]},
            "tools.0.function.examples",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            "messages.0.content.0.x",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "audio": {"id": "1"}}]},
            "messages.0.audio",
        ),
    ],
)
def test_untranslatable_nested_member_is_refused_by_name(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(UnsupportedFeature) as exc_info:
        chat_request_to_domain(parse_body(**changes))
    assert exc_info.value.field == field


def test_tool_choice_without_tools_is_refused() -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        chat_request_to_domain(parse_body(tool_choice="required"))
    assert exc_info.value.field == "tool_choice"


def test_cache_markers_and_signed_thinking_reach_claude() -> None:
    cache_marker = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    thinking_block = {"type": "thinking", "thinking": "hm", "signature": "s"}
    function = {"name": "f", "parameters": {"type": "object"}}
    request = chat_request_to_domain(
        parse_body(
            messages=[
                {"role": "system", "content": [{"type": "text", "text": "a", **cache_marker}]},
                {"role": "user", "content": [{"type": "text", "text": "b", **cache_marker}]},
                {
                    "role": "assistant",
                    "content": "c",
                    "reasoning_content": "hm",
                    "thinking_blocks": [thinking_block, {"type": "redacted_thinking", "data": "d"}],
                },
                {"role": "user", "content": "e"},
                {"role": "assistant", "content": "f", "reasoning_content": "another's"},
                {"role": "user", "content": "g"},
            ],
            tools=[{"type": "function", "function": function, **cache_marker}],
        )
    )
    body = to_anthropic(request)
    assert body["system"] == [{"type": "text", "text": "a", **cache_marker}]
    assert body["messages"][0]["content"] == [{"type": "text", "text": "b", **cache_marker}]
    assert body["tools"][0]["cache_control"] == cache_marker["cache_control"]
    assert body["messages"][1]["content"] == [
        thinking_block,
        {"type": "redacted_thinking", "data": "d"},
        {"type": "text", "text": "c"},
    ]
    assert body["messages"][3]["content"] == [{"type": "text", "text": "f"}]


def test_claudes_thinking_blocks_round_trip() -> None:
    signed_answer = replace(
        ANSWERS["thinking"],
        parts=(Thinking(text="hm hm", signature="s"), Thinking(redacted="d"), Text(text="Yes")),
    )
    body = json.loads(chat_response_to_client(signed_answer, created=1))
    assert body["choices"][0]["message"]["reasoning_content"] == "hm hm"
    assert chat_response_to_domain(body) == signed_answer
    writer = StreamWriter(created=1, include_usage=False)
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(signed_answer))
    blocks = [
        block
        for event in stream.split(b"\n\n")
        if event.startswith(b"data: {")
        for choice in json.loads(event[6:])["choices"]
        for block in choice["delta"].get("thinking_blocks", ())
    ]
    assert blocks == body["choices"][0]["message"]["thinking_blocks"]


TIMED = {**CHUNK, "timings": {"prompt_n": 5, "cache_n": 3, "predicted_n": 4, "prompt_ms": 1.5}}


def test_usage_reported_during_a_stream_is_used() -> None:
    usage = Usage(input_tokens=5, cached_tokens=3, output_tokens=4)
    role_event = {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    tap = StreamTap(hide_usage=True)
    tap.feed(encode_events(role_event, TIMED))
    assert (tap.usage, tap.tokens, tap.is_finished) == (usage, 1, False)
    started_event, usage_update, text_delta = StreamReader().feed(encode_events(role_event, TIMED))
    assert started_event == Started(id="1", model="m", usage=usage)
    assert usage_update == UsageUpdate(usage=usage)
    assert text_delta == TextDelta(text="four")


def test_stop_sequence_is_read_from_the_response() -> None:
    choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}
    answer = chat_response_to_domain({"choices": [{**choice, "stop_reason": "END"}]})
    assert (answer.stop, answer.stop_sequence) == (StopReason.STOP_SEQUENCE, "END")
    unstopped_answer = chat_response_to_domain({"choices": [{**choice, "stop_reason": 128009}]})
    assert (unstopped_answer.stop, unstopped_answer.stop_sequence) == (StopReason.END, None)


def test_additions_never_replace_client_members() -> None:
    client_body = {**SMALL, "stream": True, "stream_options": {"include_usage": True}, "a": 1}
    parsed_request = OpenAICodec().parse(json.dumps(client_body).encode())
    added_members = {"stream_options": {"continuous_usage_stats": True}, "a": 2, "b": 3}
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert json.loads(parsed_request.to_upstream("m", added_members)) == {
        **client_body,
        "stream_options": options,
        "b": 3,
    }


def test_pictures_by_url_are_inlined() -> None:
    urls = ["https://e.org/a", "data:image/png;base64,aGk=", "https://e.org/b", "https://e.org/a"]
    content = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    client_body = {**SMALL, "messages": [{"role": "user", "content": content}], "min_p": 0.1}
    parsed_request = OpenAICodec().parse(json.dumps(client_body).encode())
    assert parsed_request.picture_urls == ("https://e.org/a", "https://e.org/b")
    image = Image(media_type="image/gif", data="R0k=")
    request_with_pictures = parsed_request.with_pictures(
        {"https://e.org/a": image, "https://e.org/b": image}
    )
    assert request_with_pictures.picture_urls == ()
    body = json.loads(request_with_pictures.to_upstream("m", {}))
    assert body["min_p"] == 0.1
    gif = {"url": "data:image/gif;base64,R0k=", "detail": "low"}
    assert [part["image_url"] for part in body["messages"][0]["content"]] == [
        *(gif, {"url": urls[1], "detail": "low"}),
        *(gif, gif),
    ]


@pytest.mark.parametrize(
    ("client_input", "inputs"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_embedding_input_is_normalised_to_a_list(client_input: Any, inputs: list[Any]) -> None:
    parsed_request = OpenAIEmbeddingsCodec().parse(
        json.dumps({"model": "m", "input": client_input}).encode()
    )
    assert parsed_request.body.inputs == inputs
    assert parsed_request.derive_needs().embeddings
    if isinstance(inputs[0], list):
        with pytest.raises(UnsupportedFeature) as exc_info:
            parsed_request.to_domain("m")
        assert exc_info.value.field == "input"


def test_embeddings_round_trip_as_base64_and_numbers() -> None:
    answer = EmbeddingResponse(model="m", vectors=((0.5, -2.0),), usage=Usage(input_tokens=3))
    body = json.loads(embedding_response_to_client(answer, as_base64=True))
    packed_vector = base64.b64decode(body["data"][0]["embedding"])
    assert struct.unpack("<2f", packed_vector) == (0.5, -2.0)
    body_with_numbers = json.loads(embedding_response_to_client(answer, as_base64=False))
    assert embedding_response_to_domain(body_with_numbers) == answer
    bodies: list[Any] = [{}, {"data": [{}]}, {"data": 3}, []]
    for wrong_body in bodies:
        with pytest.raises(BackendUnavailable):
            embedding_response_to_domain(wrong_body)


PROGRESS = {**CHUNK, "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}


@pytest.mark.parametrize(
    ("options", "sends_progress", "sends_totals"),
    [
        (None, False, False),
        ({"include_usage": False}, False, False),
        ({"include_usage": True}, False, True),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
    ],
)
def test_continuous_usage_reaches_only_clients_that_requested_it(
    options: dict[str, bool] | None, sends_progress: bool, sends_totals: bool
) -> None:
    client_body = {**SMALL, "stream": True, "stream_options": options}
    parsed_request = OpenAICodec().parse(json.dumps(client_body).encode())
    tap = parsed_request.create_stream_tap({"stream_options": {"continuous_usage_stats": True}})
    plain_events = encode_events(CHUNK)
    passed_bytes = tap.feed(plain_events + encode_events(PROGRESS))
    assert passed_bytes.startswith(plain_events), "events without usage are unchanged"
    assert tap.usage == Usage(input_tokens=5, output_tokens=1), (
        "an interrupted stream is charged by it"
    )
    event = json.loads(passed_bytes.removeprefix(plain_events).removeprefix(b"data: "))
    assert event == (PROGRESS if sends_progress else CHUNK)
    assert (tap.feed(encode_events(TOTAL)) == encode_events(TOTAL)) is sends_totals


def test_totals_in_an_event_with_text_reach_the_client() -> None:
    client_body = {**SMALL, "stream": True, "stream_options": {"include_usage": True}}
    tap = OpenAICodec().parse(json.dumps(client_body).encode()).create_stream_tap({})
    # As OpenAI's document has it: in an event of its own, at the end.
    total_event = {**PROGRESS, "choices": []}
    end_marker = b"data: [DONE]\n\n"
    *received_events, end_event, _ = tap.feed(encode_events(PROGRESS) + end_marker).split(b"\n\n")
    assert [json.loads(event.removeprefix(b"data: ")) for event in received_events] == [
        CHUNK,
        total_event,
    ]
    assert end_event == end_marker.strip()


def derive_needs(*parts: dict[str, Any]) -> Needs:
    turn = {"role": "user", "content": list(parts)}
    return OpenAICodec().parse(json.dumps({**SMALL, "messages": [turn]}).encode()).derive_needs()


def test_needs_include_files_and_audio() -> None:
    file_part = {
        "type": "file",
        "file": {"file_data": "data:application/pdf;base64," + "A" * 4_000},
    }
    audio_part = {"type": "input_audio", "input_audio": {"data": "A" * 4_000, "format": "wav"}}
    for part in (file_part, audio_part):
        needs = derive_needs(part)
        assert 4_000 < needs.attachment_bytes < 4_200
        assert (needs.has_external_content, needs.prompt_tokens) == (False, 4)
    for external_file in ({"file_id": "f1"}, {"file_data": "https://e.org/a.pdf"}):
        assert derive_needs({"type": "file", "file": external_file}).has_external_content
    text_needs = derive_needs({"type": "text", "text": "hi"})
    assert (text_needs.attachment_bytes, text_needs.has_external_content) == (0, False)
    messages_with_audio = [SMALL["messages"][0], {"role": "assistant", "audio": {"id": "a1"}}]
    body = json.dumps({**SMALL, "messages": messages_with_audio}).encode()
    assert OpenAICodec().parse(body).derive_needs().has_external_content


@pytest.mark.parametrize(
    ("limits", "expected_tokens"),
    [
        ({"max_tokens": 2, "n_predict": 40}, 40),
        ({"max_tokens": 40, "n_predict": 2}, 40),
        ({"n_predict": 40.5}, 40),
        ({"max_tokens": 2, "max_completion_tokens": 40}, 40),
        ({"max_tokens": 40, "max_completion_tokens": 2}, 40),
        ({"max_tokens": 2, "n_predict": -1}, None),
        ({"max_tokens": 2, "n_predict": 1e999}, None),
        ({"max_tokens": 2, "n_predict": None}, 2),
        ({}, None),
    ],
)
def test_max_tokens_is_the_largest_limit_of_any_server(
    limits: dict[str, Any], expected_tokens: int | None
) -> None:
    """Of several token limits the largest counts, because servers obey different members."""
    unlimited_body = {name: value for name, value in SMALL.items() if name != "max_tokens"}
    body = json.dumps({**unlimited_body, **limits}).replace("Infinity", "1e999").encode()
    assert OpenAICodec().parse(body).derive_needs().max_tokens == expected_tokens


def test_needs_include_schema_and_thinking() -> None:
    response_format = {
        "type": "json_schema",
        "json_schema": {"schema": {"description": "x" * 4_000}},
    }
    plain_needs = OpenAICodec().parse(json.dumps(SMALL).encode()).derive_needs()
    needs = (
        OpenAICodec()
        .parse(json.dumps({**SMALL, "response_format": response_format}).encode())
        .derive_needs()
    )
    assert needs.prompt_tokens == plain_needs.prompt_tokens
    assert 4_000 < needs.attachment_bytes < 4_200
    blocks = [{"type": "thinking", "thinking": "x" * 400, "signature": "s"}]
    for thinking_members in (
        {"reasoning_content": "x" * 400},
        {"thinking_blocks": blocks},
        {"reasoning_content": "x" * 400, "thinking_blocks": blocks},
    ):
        turns = [*SMALL["messages"], {"role": "assistant", **thinking_members}]
        body = json.dumps({**SMALL, "messages": turns}).encode()
        assert (
            OpenAICodec().parse(body).derive_needs().prompt_tokens
            == plain_needs.prompt_tokens + 104
        )


def test_only_default_verbosity_is_translatable() -> None:
    client_body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    for verbosity, field in (("low", "verbosity"), ("medium", None), (None, None)):
        body = validate(wire.ChatBody, {**client_body, "verbosity": verbosity})
        assert find_untranslatable_field(body) == field


def test_events_after_done_are_dropped() -> None:
    tap, reader = StreamTap(hide_usage=True), StreamReader()
    stream_end = encode_events(CHUNK) + b"data: [DONE]\n\n"
    assert tap.feed(stream_end + b"data: nope\n\n") == stream_end
    assert len(reader.feed(stream_end + b"data: nope\n\n")) == len(StreamReader().feed(stream_end))
