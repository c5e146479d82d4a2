from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion

from moyin.domain.chat import (
    ChatResponse,
    Message,
    Role,
    StopReason,
    Text,
    Thinking,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.errors import BackendUnavailable, InvalidRequest, UnsupportedFeature
from moyin.testing.backends import make_text_response, split_into_deltas
from moyin.text.protocol.openai.completions import OpenAICompletionsCodec, ParsedCompletionRequest
from moyin.text.protocol.openai.stream import StreamReader

CODEC = OpenAICompletionsCodec()


def parse_request(**changes: Any) -> ParsedCompletionRequest:
    return CODEC.parse(json.dumps({"model": "m", "prompt": "Once upon", **changes}).encode())


def read_events(stream: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream after validating them with OpenAI's SDK in strict mode.

    OpenAI sends a null ``finish_reason`` in all events but the last. The SDK's type rejects null,
    so the validated copy has ``stop`` instead.
    """
    *frames, end_marker, remainder = stream.split(b"\n\n")
    assert (end_marker, remainder) == (b"data: [DONE]", b"")
    events: list[dict[str, Any]] = [json.loads(frame.removeprefix(b"data: ")) for frame in frames]
    for event in events:
        choices = [{**c, "finish_reason": c["finish_reason"] or "stop"} for c in event["choices"]]
        Completion.model_validate({**event, "choices": choices}, strict=True)
    return events


@pytest.mark.parametrize("prompt", ["Once upon", ["Once upon"]])
def test_one_text_becomes_a_chat_with_one_message(prompt: Any) -> None:
    parsed_request = parse_request(
        prompt=prompt, max_tokens=9, stop="END", temperature=0.5, top_p=0.9, seed=7, user="ada",
        frequency_penalty=0.1, presence_penalty=0.2, n=1, best_of=1, echo=False, logprobs=None,
        suffix="", logit_bias=None, stream=True,
    )  # fmt: skip
    request = parsed_request.to_domain("up")
    assert request.messages == (Message(role=Role.USER, parts=(Text(text="Once upon"),)),)
    assert (request.model, request.max_tokens, request.stop) == ("up", 9, ("END",))
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 7)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.1, 0.2)
    assert (request.user, request.system, request.tools) == ("ada", (), ())
    assert parsed_request.select_recent_turns() == (("user", "Once upon"),)
    assert parsed_request.derive_constraints().plain


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"logprobs": 0}, "logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"suffix": "The end."}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_members_that_a_chat_cannot_express_are_refused_by_name(
    changes: dict[str, Any], field: str
) -> None:
    parsed_request = parse_request(**changes)
    with pytest.raises(UnsupportedFeature, match=field) as exc_info:
        parsed_request.to_domain("up")
    assert exc_info.value.field == field
    # The answers of back ends that have the call can be of any kind.
    assert not parsed_request.derive_constraints().plain


def test_unknown_members_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedFeature) as exc_info:
        parse_request(logit_bias={"50256": -100}).to_domain("up")
    assert exc_info.value.field == "logit_bias"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"best_of": 0}, "best_of"),
        ({"temperature": 3}, "temperature"),
        ({"model": ""}, "model"),
    ],
)
def test_invalid_members_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_request(**changes)
    assert (exc_info.value.field or "").startswith(field)


def test_back_ends_of_the_same_format_get_the_same_bytes() -> None:
    parsed_request = parse_request(
        prompt=[[1, 2], [3]], n=2, echo=True, logprobs=1, logit_bias={"1": 1}
    )
    assert parsed_request.to_upstream("m", {}) is parsed_request.raw
    upstream_body = json.loads(parsed_request.to_upstream("up", {}, {"cache_prompt": False}))
    assert upstream_body == {**parsed_request.data, "model": "up", "cache_prompt": False}


def test_streams_are_requested_with_usage() -> None:
    body = json.loads(parse_request(stream=True).to_upstream("m", {}))
    assert body["stream_options"] == {"include_usage": True}


def test_needs_count_prompts_and_answers() -> None:
    assert parse_request(max_tokens=9).derive_needs().max_tokens == 9
    needs = parse_request(prompt=["a" * 40, "b" * 8], n=2, best_of=3, max_tokens=5).derive_needs()
    assert (needs.prompt_tokens, needs.longest_input, needs.context) == (12, 10, 15)
    assert needs.choices == 6
    needs = parse_request(prompt=[1, 2, 3], suffix="12345678").derive_needs()
    assert (needs.prompt_tokens, needs.longest_input, needs.choices) == (5, None, 1)
    assert parse_request(max_tokens=5, n_predict=-1).derive_needs().max_tokens is None


def test_whole_answers_are_valid_for_the_sdk() -> None:
    answer = make_text_response("a time.")
    whole_answer = json.loads(parse_request().encode_response(answer))
    completion = Completion.model_validate(whole_answer, strict=True)
    [choice] = completion.choices
    assert (choice.text, choice.finish_reason, choice.index) == ("a time.", "stop", 0)
    assert completion.usage is not None
    assert completion.usage.total_tokens == 7 + 2
    assert CODEC.read_response(whole_answer) == ChatResponse(
        id="answer-1", model="fake", parts=answer.parts, stop=StopReason.END, usage=answer.usage
    )


@pytest.mark.parametrize("stop", StopReason)
def test_every_reason_to_stop_is_valid_for_the_sdk(stop: StopReason) -> None:
    parts = (Thinking(text="hm"), Text(text="a"), ToolUse(id="c", name="n", arguments="{}"))
    answer = ChatResponse(id="x", model="m", parts=parts, stop=stop, usage=Usage())
    completion = Completion.model_validate_json(
        parse_request().encode_response(answer), strict=True
    )
    assert completion.choices[0].text == "a"
    writer = parse_request(stream=True).create_stream_writer()
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(answer))
    assert [event["choices"][0]["text"] for event in read_events(stream)] == ["a", ""]


@pytest.mark.parametrize("include_usage", [True, False])
def test_streams_are_valid_for_the_sdk(include_usage: bool) -> None:
    parsed_request = parse_request(stream=True, stream_options={"include_usage": include_usage})
    writer = parsed_request.create_stream_writer()
    answer = make_text_response("a long time ago")
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(answer))
    events = read_events(stream)
    if include_usage:
        assert events.pop()["usage"]["completion_tokens"] == 4
    assert "".join(event["choices"][0]["text"] for event in events) == "a long time ago"
    finish_reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert finish_reasons == [None, None, None, None, "stop"]
    assert all("usage" not in event for event in events)


def encode_event(
    text: str, index: int = 0, finish_reason: str | None = None, **members: Any
) -> bytes:
    choice = {"text": text, "index": index, "finish_reason": finish_reason, "logprobs": None}
    body = {"id": "c", "object": "text_completion", "choices": [choice], **members}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def test_forwarded_streams_end_with_the_last_answer() -> None:
    tap = parse_request(prompt=["a", "b"], stream=True).create_stream_tap({})
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    pieces = [
        encode_event("x"),
        encode_event("y", 1),
        encode_event("", 0, "stop"),
        encode_event("", 1, "length", usage=usage),
    ]
    for piece in pieces[:3]:
        assert tap.feed(piece) == piece
    assert (tap.tokens, tap.is_finished) == (2, False)
    # The client did not ask for the usage.
    last_bytes = tap.feed(pieces[3])
    assert b"usage" not in last_bytes and b"length" in last_bytes
    assert tap.flush() == b"data: [DONE]\n\n"
    assert tap.is_finished
    assert tap.usage == Usage(input_tokens=2, output_tokens=3)


def test_a_forwarded_stream_with_an_unfinished_answer_is_incomplete() -> None:
    tap = parse_request(n=2, stream=True).create_stream_tap({})
    tap.feed(encode_event("x", 0, "stop"))
    assert tap.flush() == b""
    assert not tap.is_finished


def test_the_text_of_a_stream_can_be_read() -> None:
    reader = StreamReader()
    deltas = reader.feed(encode_event("one ") + encode_event("two") + encode_event("", 0, "length"))
    assert [getattr(delta, "text", "") for delta in deltas] == ["", "one ", "two"]
    assert reader.flush()[-1].stop is StopReason.MAX_TOKENS  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"text": 1}]}, {"choices": "x"}]
)
def test_malformed_completions_are_backend_errors(body: dict[str, Any]) -> None:
    with pytest.raises(BackendUnavailable):
        CODEC.read_response(body)


def test_answers_without_usage_get_the_estimate() -> None:
    body: dict[str, Any] = {"choices": [{"text": "four"}, {"text": "å"}]}
    assert CODEC.count_output_bytes(body) == 6
    raw_body = json.dumps(body).encode()
    assert CODEC.add_missing_members(raw_body, body, None) is raw_body
    response_body = json.loads(
        CODEC.add_missing_members(raw_body, body, Usage(input_tokens=3, output_tokens=2))
    )
    assert response_body["usage"]["total_tokens"] == 5
    with pytest.raises(BackendUnavailable):
        CODEC.require_answer_member({"data": []})
