"""Tests responses in the formats of Gemini, Azure OpenAI and Bedrock, for clients of two protocols.

The formats come from bug reports of clients and from the providers' documentation.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from moyin.domain import chat
from moyin.domain.money import Usage
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.openai.response import chat_response_to_domain
from moyin.text.protocol.openai.stream import StreamReader

_SIGNATURE = {"google": {"thought_signature": "EjQKMgEMOdbH"}}
_HEAD = {"created": 1, "id": "gem-1", "model": "gemini", "object": "chat.completion.chunk"}
_FILTER = {"hate": {"filtered": False, "severity": "safe"}}


def make_usage(output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": 9,
        "completion_tokens": output_tokens,
        "total_tokens": 9 + output_tokens,
    }


def make_gemini_call(name: str, arguments: str, **members: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "function": function, "extra_content": _SIGNATURE, **members}


def make_gemini_chunk(
    output_tokens: int, finish_reason: str | None = None, **delta: Any
) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", **delta}}
    if finish_reason is not None:
        choice["finish_reason"] = finish_reason
    return {**_HEAD, "choices": [choice], "usage": make_usage(output_tokens)}


GEMINI_TEXT = [
    make_gemini_chunk(1, content="It is"),
    make_gemini_chunk(3, "stop", content=" sunny."),
]
# Two calls at once: neither has an index, and one has no id; then the reason `stop`.
GEMINI_TOOLS = [
    make_gemini_chunk(
        5,
        tool_calls=[
            make_gemini_call("weather", '{"city":', id="call_1"),
            make_gemini_call("time", "{}", id=""),
        ],
    ),
    make_gemini_chunk(7, "stop"),
]
# The arguments of one call in two events.
GEMINI_PARTS = [
    make_gemini_chunk(5, tool_calls=[make_gemini_call("weather", '{"city":', id="call_1")]),
    make_gemini_chunk(6, tool_calls=[{"function": {"arguments": ' "Rome"}'}}]),
    make_gemini_chunk(7, "stop"),
]
_AZURE = {"id": "chatcmpl-1", "created": 1, "model": "gpt", "object": "chat.completion.chunk"}
_NOTHING = {"id": "", "created": 0, "model": "", "object": ""}
AZURE = [
    {**_NOTHING, "choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _FILTER}]},
    {**_AZURE, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "", "refusal": None},
                            "finish_reason": None, "logprobs": None, "content_filter_results": {}}], "usage": None},
    {**_AZURE, "choices": [{"index": 0, "delta": {"content": "It is sunny."}, "finish_reason": None,
                            "logprobs": None, "content_filter_results": _FILTER}], "usage": None},
    # With the asynchronous filter.
    {**_NOTHING, "choices": [{"index": 0, "finish_reason": None, "content_filter_results": _FILTER,
                              "content_filter_offsets": {"check_offset": 44, "start_offset": 44, "end_offset": 98}}]},
    {**_AZURE, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None,
                            "content_filter_results": {}}], "usage": None},
    {**_AZURE, "choices": [], "usage": make_usage(4)},
]  # fmt: skip
_BEDROCK = {**_AZURE, "model": "openai.gpt-oss-20b-1:0", "service_tier": "default"}
BEDROCK = [
    {**_BEDROCK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "It is"}, "finish_reason": None}]},
    {**_BEDROCK, "choices": [{"index": 0, "delta": {"content": " sunny."}, "finish_reason": None}]},
    {**_BEDROCK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {**_BEDROCK, "choices": [], "usage": make_usage(4), "amazon-bedrock-invocationMetrics": {"inputTokenCount": 9}},
]  # fmt: skip


def encode_stream(events: list[dict[str, Any]], *, has_done: bool) -> bytes:
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return body + b"data: [DONE]\n\n" if has_done else body


def pass_through(body: bytes, **options: Any) -> list[ChatCompletionChunk]:
    """Return the chunks that an OpenAI client gets, strictly validated by OpenAI's own types."""
    request: dict[str, Any] = {"model": "m", "messages": [], "stream": True}
    if options:
        request["stream_options"] = options
    messages = [{"role": "user", "content": "Hi"}]
    parsed_request = OpenAICodec().parse(json.dumps({**request, "messages": messages}).encode())
    tap = parsed_request.create_stream_tap({})
    received_bytes = (
        b"".join(tap.feed(body[at : at + 7]) for at in range(0, len(body), 7)) + tap.flush()
    )
    assert tap.is_finished
    *events, end_event, remainder = received_bytes.split(b"\n\n")
    assert (end_event, remainder) == (b"data: [DONE]", b"")
    chunks = [ChatCompletionChunk.model_validate_json(e.removeprefix(b"data: ")) for e in events]
    for chunk in chunks:
        for choice in chunk.choices:
            # A model of the SDK with its defaults does not show what was missing.
            assert "finish_reason" not in choice.model_fields_set or choice.delta is not None
    return chunks


def translate(body: bytes) -> list[chat.Delta]:
    """Return the deltas that are read from an OpenAI stream, to be sent in other protocols."""
    reader = StreamReader()
    return [d for at in range(0, len(body), 7) for d in reader.feed(body[at : at + 7])] + (
        reader.flush()
    )


@pytest.mark.parametrize(
    ("events", "has_done"),
    [(GEMINI_TEXT, True), (GEMINI_TEXT, False), (AZURE, True), (BEDROCK, True)],
)
@pytest.mark.parametrize("wants_usage", [True, False])
def test_clients_get_the_text_and_one_total_usage(
    events: list[dict[str, Any]], *, has_done: bool, wants_usage: bool
) -> None:
    body = encode_stream(events, has_done=has_done)
    options = {"include_usage": True} if wants_usage else {}
    chunks = pass_through(body, **options)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "It is sunny."
    usage_totals = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usage_totals) == wants_usage
    assert not wants_usage or chunks[-1].choices == []
    deltas = translate(body)
    assert "".join(d.text for d in deltas if isinstance(d, chat.TextDelta)) == "It is sunny."
    finished_event = deltas[-1]
    assert isinstance(finished_event, chat.Finished)
    output_tokens = (
        usage_totals[0].completion_tokens if usage_totals else finished_event.usage.output_tokens
    )
    assert finished_event.usage == Usage(input_tokens=9, output_tokens=output_tokens)


def test_azure_answer_gets_its_id_and_model_from_the_first_event_with_both() -> None:
    started_event = translate(encode_stream(AZURE, has_done=True))[0]
    assert isinstance(started_event, chat.Started)
    assert (started_event.id, started_event.model) == (_AZURE["id"], _AZURE["model"])


def test_tool_calls_of_gemini_get_an_index_an_id_and_the_right_reason() -> None:
    chunks = pass_through(encode_stream(GEMINI_TOOLS, has_done=True))
    tool_calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
    assert [call.index for call in tool_calls] == [0, 1]
    assert tool_calls[0].id == "call_1" and (tool_calls[1].id or "").startswith("call_")
    # Gemini wants its signature back with the next request.
    assert (tool_calls[0].model_extra or {})["extra_content"] == _SIGNATURE
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tool_calls_of_gemini_are_translated_for_other_protocols() -> None:
    deltas = translate(encode_stream(GEMINI_TOOLS, has_done=False))
    started_tools = [delta for delta in deltas if isinstance(delta, chat.ToolStarted)]
    assert [(delta.index, delta.name) for delta in started_tools] == [(0, "weather"), (1, "time")]
    assert started_tools[0].id == "call_1" and started_tools[1].id.startswith("call_")
    finished_event = deltas[-1]
    assert (
        isinstance(finished_event, chat.Finished)
        and finished_event.stop is chat.StopReason.TOOL_USE
    )


def test_arguments_without_index_belong_to_the_previous_call() -> None:
    body = encode_stream(GEMINI_PARTS, has_done=True)
    chunks = pass_through(body)
    tool_calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
    assert [call.index for call in tool_calls] == [0, 0]
    fragments = [d for d in translate(body) if isinstance(d, chat.ToolArguments)]
    assert [(d.index, d.fragment) for d in fragments] == [(0, '{"city":'), (0, ' "Rome"}')]


def test_calls_of_gemini_with_the_same_index_are_numbered() -> None:
    later_call = {"index": 0, "function": {"arguments": ' "Rome"}'}}
    events = [
        make_gemini_chunk(5, tool_calls=[make_gemini_call("time", "{}", id="a", index=0)]),
        make_gemini_chunk(6, tool_calls=[make_gemini_call("weather", '{"city":', id="b", index=0)]),
        make_gemini_chunk(7, tool_calls=[later_call]),
        # What another server would send next, and the same call once more with its name.
        make_gemini_chunk(8, tool_calls=[make_gemini_call("time", "{", id="c", index=1)]),
        make_gemini_chunk(9, tool_calls=[make_gemini_call("time", "}", id="c", index=1)]),
        make_gemini_chunk(9, "stop"),
    ]
    chunks = pass_through(encode_stream(events, has_done=True))
    tool_calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
    assert [call.index for call in tool_calls] == [0, 1, 1, 2, 2]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_streamed_tool_call_that_ends_with_stop_reports_tool_calls() -> None:
    """Gemini, and OpenAI with a forced tool, send ``stop``; clients must get ``tool_calls``."""
    tool_call = {
        "index": 0,
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }
    events = [
        {**_AZURE, "choices": [{"index": 0, "delta": {"tool_calls": [tool_call]}, "finish_reason": None}]},
        {**_AZURE, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]  # fmt: skip
    assert (
        pass_through(encode_stream(events, has_done=True))[-1].choices[0].finish_reason
        == "tool_calls"
    )


@pytest.mark.parametrize("call_id", ["", "call_1"])
def test_whole_answers_of_gemini_report_tool_calls(call_id: str) -> None:
    tool_call = make_gemini_call("weather", "{}", id=call_id)
    message = {"role": "assistant", "tool_calls": [tool_call]}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body: dict[str, Any] = {
        **_HEAD, "object": "chat.completion", "choices": [choice], "usage": make_usage(2),
    }  # fmt: skip
    response = chat_response_to_domain(body)
    assert response.stop is chat.StopReason.TOOL_USE
    completed_body = OpenAICodec().add_missing_members(b"", body, None)
    answer = ChatCompletion.model_validate_json(completed_body)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls
    assert answer.choices[0].message.tool_calls[0].id.startswith("call_")
