from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
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
from moyin.testing.backends import deltas_of
from moyin.text.protocol.anthropic.request_to_upstream import (
    chat_request_to_upstream as to_anthropic,
)
from moyin.text.protocol.openai import wire
from moyin.text.protocol.openai.codec import OpenAICodec, OpenAIEmbeddingsCodec
from moyin.text.protocol.openai.request_to_domain import (
    chat_request_to_domain,
    first_untranslatable_field,
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

SMALL = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def parse(**changes: Any) -> wire.ChatBody:
    return validate(wire.ChatBody, {**SMALL, **changes})


def test_a_request_survives_the_way_out_and_back() -> None:
    body = chat_request_to_upstream(FULL, stream=False)
    assert chat_request_to_domain(validate(wire.ChatBody, json.loads(to_json(body)))) == FULL


def test_what_goes_out_is_what_openai_defines() -> None:
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
        parse(
            messages=[
                {"role": "developer", "content": "a"},
                {"role": "user", "content": "hi"},
                {"role": "system", "content": [{"type": "text", "text": "b"}]},
            ]
        )
    )
    assert request.system == (Text(text="a"), Text(text="b"))
    assert request.messages == (Message(role=Role.USER, parts=(Text(text="hi"),)),)


def test_a_failed_tool_and_its_picture_reach_the_model() -> None:
    result = ToolResult(
        tool_use_id="c1", content=(Text(text="no"), Image(url="https://e.org/i")), is_error=True
    )
    request = replace(FULL, messages=(Message(role=Role.USER, parts=(result,)),), system=())
    tool, user = chat_request_to_upstream(request, stream=False)["messages"]
    assert tool == {"role": "tool", "tool_call_id": "c1", "content": "Error: no"}
    assert user["content"] == [{"type": "image_url", "image_url": {"url": "https://e.org/i"}}]


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
def test_what_no_other_protocol_carries_is_refused_by_name(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        chat_request_to_domain(parse(**changes))
    assert caught.value.field == field


def test_harmless_and_empty_members_are_no_reason_to_refuse() -> None:
    chat_request_to_domain(
        parse(store=True, metadata={"a": "b"}, logprobs=False, n=1, functions=None)
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
def test_thinking_becomes_effort(reasoning: Reasoning | None, effort: str | None) -> None:
    body = chat_request_to_upstream(replace(FULL, reasoning=reasoning), stream=False)
    assert body.get("reasoning_effort") == effort


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_survives_and_openai_reads_it(answer: ChatResponse) -> None:
    body = chat_response_to_client(answer, created=1)
    assert chat_response_to_domain(json.loads(body)) == answer
    parsed = ChatCompletion.model_validate_json(body)
    assert parsed.choices[0].message.content == (answer.text or None)


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_stream_reassembled_is_the_answer(answer: ChatResponse, size: int) -> None:
    writer = StreamWriter(created=1, include_usage=True)
    written = b"".join(writer.write(delta) for delta in deltas_of(answer))
    reader = StreamReader()
    read = [
        delta
        for start in range(0, len(written), size)
        for delta in reader.feed(written[start : start + size])
    ]
    assert reader.finished
    assert read == deltas_of(answer)


def test_every_event_is_one_that_openai_reads() -> None:
    writer = StreamWriter(created=1, include_usage=True)
    written = b"".join(writer.write(delta) for delta in deltas_of(ANSWERS["tools"]))
    *events, done = [part.removeprefix(b"data: ") for part in written.strip().split(b"\n\n")]
    assert done == b"[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(event) for event in events]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 19


def test_members_that_the_document_requires_are_added_to_a_whole_answer() -> None:
    llama = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}], "x": 1}
    dialect = OpenAICodec()
    whole = json.loads(dialect.complete_response(b"the same", llama, None))
    message = {"role": "assistant", "content": "hi", "refusal": None}
    assert whole == {"choices": [{"index": 0, "message": message, "logprobs": None}], "x": 1}
    assert dialect.complete_response(b"not touched", whole, None) == b"not touched"
    calls = {"choices": [{"logprobs": {"content": []}, "message": {"tool_calls": []}}]}
    choice = json.loads(dialect.complete_response(b"", calls, None))["choices"][0]
    assert choice["logprobs"] == {"content": []}
    assert choice["message"] == {"tool_calls": [], "content": None, "refusal": None}


@pytest.mark.parametrize(
    ("sent", "text"), [("{oops", "{oops"), ({"a": 1}, '{"a":1}'), (None, ""), ("", "")]
)
def test_arguments_of_tool_calls_go_on_as_they_are(sent: Any, text: str) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": sent}}
    answer = chat_response_to_domain({"choices": [{"message": {"tool_calls": [call]}}]})
    assert answer.parts == (ToolUse(id="c1", name="f", arguments=text),)
    chunk = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
    deltas = StreamReader().feed(events(chunk))
    assert "".join(d.fragment for d in deltas if isinstance(d, ToolArguments)) == text


CHUNK = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "four"}}]}
TOTAL = {"id": "1", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


def events(*bodies: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies)


@pytest.mark.parametrize("hide", [True, False])
def test_the_tap_lets_bytes_pass_and_reads_usage(hide: bool) -> None:
    tap = StreamTap(hide_usage=hide)
    end = b"data: [DONE]\n\n"
    passed = tap.feed(b": ping\n\n" + events(CHUNK, TOTAL) + end)
    shown = events(CHUNK) if hide else events(CHUNK, TOTAL)
    assert passed == b": ping\n\n" + shown + end
    assert tap.usage == Usage(input_tokens=5, output_tokens=2)
    assert (tap.finished, tap.tokens) == (True, 1)


@pytest.mark.parametrize(
    "piece",
    [b"data: {nope}\n\n", b"data: 3\n\n", events({"error": {"message": "secret of the server"}})],
)
def test_a_malformed_event_is_an_interruption_without_its_words(piece: bytes) -> None:
    for feed in (StreamTap(hide_usage=True).feed, StreamReader().feed):
        with pytest.raises(StreamInterrupted) as caught:
            feed(piece)
        assert "secret" not in caught.value.message


def test_a_call_that_a_server_numbers_is_one_in_a_stream_too() -> None:
    call = {"id": 7, "function": {"name": "f", "arguments": "{}"}}
    whole = chat_response_to_domain({"choices": [{"message": {"tool_calls": [call]}}]})
    _, began, _ = StreamReader().feed(events({"choices": [{"delta": {"tool_calls": [call]}}]}))
    assert isinstance(began, ToolStarted)
    assert whole.parts == (ToolUse(id=began.id, name="f", arguments="{}"),)


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": [{"message": 3}]}, {"choices": 1}]
)
def test_an_answer_of_another_shape_is_the_back_ends_fault(body: dict[str, Any]) -> None:
    with pytest.raises(BackendUnavailable):
        chat_response_to_domain(body)


def test_bytes_pass_untouched_when_nothing_must_change() -> None:
    raw = b'{ "model":"m","messages":[{"role":"user","content":"hi"}], "seed": 1e0 }'
    raw = raw.replace(b"1e0", b"1")
    assert OpenAICodec().parse(raw).to_upstream("m", {}) is raw


def test_only_the_model_and_the_wish_for_usage_change() -> None:
    data = {**SMALL, "stream": True, "stream_options": {"x": 1}, "min_p": 0.25}
    call = OpenAICodec().parse(json.dumps(data).encode())
    sent = json.loads(call.to_upstream("other", {}))
    wished = {"stream_options": {"x": 1, "include_usage": True}}
    assert sent == {**data, "model": "other", **wished}


def test_needs_see_everything_that_a_model_must_be_able_to_do() -> None:
    body = chat_request_to_upstream(FULL, stream=False)
    needs = OpenAICodec().parse(to_json(body)).needs()
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
def test_members_inside_are_named_as_well(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        chat_request_to_domain(parse(**changes))
    assert caught.value.field == field


def test_a_tool_choice_without_tools_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_request_to_domain(parse(tool_choice="required"))
    assert caught.value.field == "tool_choice"


def test_markers_and_signed_thoughts_reach_claude() -> None:
    marker = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    function = {"name": "f", "parameters": {"type": "object"}}
    request = chat_request_to_domain(
        parse(
            messages=[
                {"role": "system", "content": [{"type": "text", "text": "a", **marker}]},
                {"role": "user", "content": [{"type": "text", "text": "b", **marker}]},
                {
                    "role": "assistant",
                    "content": "c",
                    "reasoning_content": "hm",
                    "thinking_blocks": [thought, {"type": "redacted_thinking", "data": "d"}],
                },
                {"role": "user", "content": "e"},
                {"role": "assistant", "content": "f", "reasoning_content": "another's"},
                {"role": "user", "content": "g"},
            ],
            tools=[{"type": "function", "function": function, **marker}],
        )
    )
    body = to_anthropic(request)
    assert body["system"] == [{"type": "text", "text": "a", **marker}]
    assert body["messages"][0]["content"] == [{"type": "text", "text": "b", **marker}]
    assert body["tools"][0]["cache_control"] == marker["cache_control"]
    assert body["messages"][1]["content"] == [
        thought,
        {"type": "redacted_thinking", "data": "d"},
        {"type": "text", "text": "c"},
    ]
    assert body["messages"][3]["content"] == [{"type": "text", "text": "f"}]


def test_claudes_blocks_reach_the_client_and_come_back() -> None:
    signed = replace(
        ANSWERS["thinking"],
        parts=(Thinking(text="hm hm", signature="s"), Thinking(redacted="d"), Text(text="Yes")),
    )
    body = json.loads(chat_response_to_client(signed, created=1))
    assert body["choices"][0]["message"]["reasoning_content"] == "hm hm"
    assert chat_response_to_domain(body) == signed
    writer = StreamWriter(created=1, include_usage=False)
    written = b"".join(writer.write(delta) for delta in deltas_of(signed))
    blocks = [
        block
        for event in written.split(b"\n\n")
        if event.startswith(b"data: {")
        for choice in json.loads(event[6:])["choices"]
        for block in choice["delta"].get("thinking_blocks", ())
    ]
    assert blocks == body["choices"][0]["message"]["thinking_blocks"]


TIMED = {**CHUNK, "timings": {"prompt_n": 5, "cache_n": 3, "predicted_n": 4, "prompt_ms": 1.5}}


def test_a_server_that_counts_on_the_way_is_believed() -> None:
    usage = Usage(input_tokens=5, cached_tokens=3, output_tokens=4)
    role = {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    tap = StreamTap(hide_usage=True)
    tap.feed(events(role, TIMED))
    assert (tap.usage, tap.tokens, tap.finished) == (usage, 1, False)
    started, counted, text = StreamReader().feed(events(role, TIMED))
    assert started == Started(id="1", model="m", usage=usage)
    assert counted == UsageUpdate(usage=usage)
    assert text == TextDelta(text="four")


def test_a_stop_string_is_told_where_the_server_tells_it() -> None:
    choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}
    answer = chat_response_to_domain({"choices": [{**choice, "stop_reason": "END"}]})
    assert (answer.stop, answer.stop_sequence) == (StopReason.STOP_SEQUENCE, "END")
    plain = chat_response_to_domain({"choices": [{**choice, "stop_reason": 128009}]})
    assert (plain.stop, plain.stop_sequence) == (StopReason.END, None)


def test_what_a_back_end_adds_never_replaces_what_the_client_said() -> None:
    data = {**SMALL, "stream": True, "stream_options": {"include_usage": True}, "a": 1}
    call = OpenAICodec().parse(json.dumps(data).encode())
    added = {"stream_options": {"continuous_usage_stats": True}, "a": 2, "b": 3}
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert json.loads(call.to_upstream("m", added)) == {**data, "stream_options": options, "b": 3}


def test_pictures_by_url_are_found_and_replaced() -> None:
    urls = ["https://e.org/a", "data:image/png;base64,aGk=", "https://e.org/b", "https://e.org/a"]
    content = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    data = {**SMALL, "messages": [{"role": "user", "content": content}], "min_p": 0.1}
    call = OpenAICodec().parse(json.dumps(data).encode())
    assert call.picture_urls == ("https://e.org/a", "https://e.org/b")
    image = Image(media_type="image/gif", data="R0k=")
    inlined = call.with_pictures({"https://e.org/a": image, "https://e.org/b": image})
    assert inlined.picture_urls == ()
    sent = json.loads(inlined.to_upstream("m", {}))
    assert sent["min_p"] == 0.1
    gif = {"url": "data:image/gif;base64,R0k=", "detail": "low"}
    assert [part["image_url"] for part in sent["messages"][0]["content"]] == [
        *(gif, {"url": urls[1], "detail": "low"}),
        *(gif, gif),
    ]


@pytest.mark.parametrize(
    ("given", "inputs"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_an_input_is_one_or_several(given: Any, inputs: list[Any]) -> None:
    call = OpenAIEmbeddingsCodec().parse(json.dumps({"model": "m", "input": given}).encode())
    assert call.body.inputs == inputs
    assert call.needs().embeddings
    if isinstance(inputs[0], list):
        with pytest.raises(UnsupportedFeature) as caught:
            call.to_domain("m")
        assert caught.value.field == "input"


def test_vectors_are_packed_as_openai_packs_them() -> None:
    answer = EmbeddingResponse(model="m", vectors=((0.5, -2.0),), usage=Usage(input_tokens=3))
    body = json.loads(embedding_response_to_client(answer, as_base64=True))
    packed = base64.b64decode(body["data"][0]["embedding"])
    assert struct.unpack("<2f", packed) == (0.5, -2.0)
    plain = json.loads(embedding_response_to_client(answer, as_base64=False))
    assert embedding_response_to_domain(plain) == answer
    for wrong in ({}, {"data": [{}]}, {"data": 3}, []):
        with pytest.raises(BackendUnavailable):
            embedding_response_to_domain(wrong)


PROGRESS = {**CHUNK, "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}


@pytest.mark.parametrize(
    ("options", "progress", "totals"),
    [
        (None, False, False),
        ({"include_usage": False}, False, False),
        ({"include_usage": True}, False, True),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
    ],
)
def test_usage_on_the_way_reaches_only_who_asked_for_it(
    options: dict[str, bool] | None, progress: bool, totals: bool
) -> None:
    data = {**SMALL, "stream": True, "stream_options": options}
    call = OpenAICodec().parse(json.dumps(data).encode())
    tap = call.stream_tap({"stream_options": {"continuous_usage_stats": True}})
    plain = events(CHUNK)
    passed = tap.feed(plain + events(PROGRESS))
    assert passed.startswith(plain), "what carries none is not touched"
    assert tap.usage == Usage(input_tokens=5, output_tokens=1), "a cut stream is booked by it"
    told = json.loads(passed.removeprefix(plain).removeprefix(b"data: "))
    assert told == (PROGRESS if progress else CHUNK)
    assert (tap.feed(events(TOTAL)) == events(TOTAL)) is totals


def test_totals_in_the_last_event_with_text_reach_who_asked() -> None:
    data = {**SMALL, "stream": True, "stream_options": {"include_usage": True}}
    tap = OpenAICodec().parse(json.dumps(data).encode()).stream_tap({})
    assert tap.feed(events(PROGRESS)) == events(PROGRESS)


def needs_of(*parts: dict[str, Any]) -> Needs:
    turn = {"role": "user", "content": list(parts)}
    return OpenAICodec().parse(json.dumps({**SMALL, "messages": [turn]}).encode()).needs()


def test_files_and_sound_are_set_aside_for() -> None:
    file = {"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 4_000}}
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 4_000, "format": "wav"}}
    for part in (file, sound):
        needs = needs_of(part)
        assert 4_000 < needs.attachment_bytes < 4_200
        assert (needs.has_external_content, needs.prompt_tokens) == (False, 4)
    for named in ({"file_id": "f1"}, {"file_data": "https://e.org/a.pdf"}):
        assert needs_of({"type": "file", "file": named}).has_external_content
    plain = needs_of({"type": "text", "text": "hi"})
    assert (plain.attachment_bytes, plain.has_external_content) == (0, False)
    spoken = [SMALL["messages"][0], {"role": "assistant", "audio": {"id": "a1"}}]  # type: ignore[index]
    body = json.dumps({**SMALL, "messages": spoken}).encode()
    assert OpenAICodec().parse(body).needs().has_external_content


@pytest.mark.parametrize(
    ("limits", "most"),
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
def test_the_longest_answer_that_any_server_would_give_is_set_aside_for(
    limits: dict[str, Any], most: int | None
) -> None:
    """As llama.cpp's server was seen to do."""
    plain = {name: value for name, value in SMALL.items() if name != "max_tokens"}
    body = json.dumps({**plain, **limits}).replace("Infinity", "1e999").encode()
    assert OpenAICodec().parse(body).needs().max_tokens == most


def test_a_schema_is_set_aside_for_and_thoughts_are_part_of_the_prompt() -> None:
    form = {"type": "json_schema", "json_schema": {"schema": {"description": "x" * 4_000}}}
    plain = OpenAICodec().parse(json.dumps(SMALL).encode()).needs()
    needs = OpenAICodec().parse(json.dumps({**SMALL, "response_format": form}).encode()).needs()
    assert needs.prompt_tokens == plain.prompt_tokens
    assert 4_000 < needs.attachment_bytes < 4_200
    blocks = [{"type": "thinking", "thinking": "x" * 400, "signature": "s"}]
    for thoughts in (
        {"reasoning_content": "x" * 400},
        {"thinking_blocks": blocks},
        {"reasoning_content": "x" * 400, "thinking_blocks": blocks},
    ):
        turns = [*SMALL["messages"], {"role": "assistant", **thoughts}]  # type: ignore[misc]
        body = json.dumps({**SMALL, "messages": turns}).encode()
        assert OpenAICodec().parse(body).needs().prompt_tokens == plain.prompt_tokens + 104


def test_verbosity_is_refused_where_it_can_not_be_carried() -> None:
    data = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    for word, field in (("low", "verbosity"), ("medium", None), (None, None)):
        body = validate(wire.ChatBody, {**data, "verbosity": word})
        assert first_untranslatable_field(body) == field


def test_what_follows_the_end_of_a_stream_is_left_out() -> None:
    tap, reader = StreamTap(hide_usage=True), StreamReader()
    end = events(CHUNK) + b"data: [DONE]\n\n"
    assert tap.feed(end + b"data: nope\n\n") == end
    assert len(reader.feed(end + b"data: nope\n\n")) == len(StreamReader().feed(end))
