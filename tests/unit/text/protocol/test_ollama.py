from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import ollama
import pytest

from moyin.domain.chat import (
    ChatResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    Role,
    Sampling,
    Text,
    TextDelta,
    Thinking,
    ToolArguments,
    ToolChoice,
    ToolResult,
    ToolStarted,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.errors import (
    BackendUnavailable,
    InvalidRequest,
    InvalidToolCall,
    StreamInterrupted,
    UnsupportedFeature,
)
from moyin.http.validation import validate
from moyin.testing.backends import split_into_deltas
from moyin.text.backends.response_errors import error_from_status
from moyin.text.protocol.ollama import wire
from moyin.text.protocol.ollama.codec import (
    OllamaChatCodec,
    OllamaEmbedCodec,
    OllamaEmbeddingsCodec,
    OllamaGenerateCodec,
)
from moyin.text.protocol.ollama.errors import render_error
from moyin.text.protocol.ollama.request_to_domain import chat_request_to_domain
from moyin.text.protocol.ollama.request_to_upstream import (
    chat_request_to_upstream,
    choose_context_window,
    embedding_request_to_upstream,
)
from moyin.text.protocol.ollama.response import (
    chat_response_to_client,
    chat_response_to_domain,
    embedding_response_to_domain,
    generate_response_to_client,
    tool_call_to_client,
)
from moyin.text.protocol.ollama.stream import (
    StreamTap,
    StreamWriter,
    encode_chat_content,
    encode_generate_content,
)
from tests.unit.text.protocol.conversations import ANSWERS, FULL, SCHEMA

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 40).decode()
# A request with features that Ollama supports.
PLAIN = replace(
    FULL,
    tool_choice=None,
    tools=(replace(FULL.tools[0], strict=None),),
    user=None,
    output=OutputFormat(schema=SCHEMA),
    reasoning=Reasoning(enabled=False),
    messages=(
        Message(
            role=Role.USER,
            parts=(Text(text="What is this?"), Image(media_type="image/png", data=PNG)),
        ),
        *FULL.messages[1:],
    ),
)


def parse_body(**changes: Any) -> wire.ChatBody:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return validate(wire.ChatBody, {**body, **changes})


def test_request_round_trips() -> None:
    body = json.loads(json.dumps(chat_request_to_upstream(PLAIN, context=8192, stream=False)))
    assert chat_request_to_domain(validate(wire.ChatBody, body), "m") == PLAIN


def test_upstream_request_matches_ollamas_format() -> None:
    body = chat_request_to_upstream(PLAIN, context=8192, stream=True)
    assert [m["role"] for m in body["messages"]] == [
        *("system", "user", "assistant", "tool", "tool", "user")
    ]
    assert body["messages"][1]["images"] == [PNG]
    assert body["messages"][2]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert body["messages"][3]["tool_name"] == "weather"
    assert (body["format"], body["think"]) == (SCHEMA, False)
    assert body["options"]["num_predict"] == 99


@pytest.mark.parametrize(
    ("prompt_tokens", "answer_tokens", "context", "expected_window"),
    [
        (10, 10, 100_000, 4096),
        (3000, None, 100_000, 8192),
        (4000, 0, 100_000, 8192),
        (20_000, 1000, 100_000, 32_768),
        (20_000, 1000, 24_000, 24_000),
    ],
)
def test_context_window_fits_prompt_and_answer(
    prompt_tokens: int, answer_tokens: int | None, context: int, expected_window: int
) -> None:
    assert choose_context_window(prompt_tokens, answer_tokens, context) == expected_window


@pytest.mark.parametrize(
    ("tool_choice", "field"),
    [
        (ToolChoice(mode="required"), "tool_choice"),
        (ToolChoice(mode="tool", name="weather"), "tool_choice"),
        (ToolChoice(parallel=False), "parallel_tool_calls"),
    ],
)
def test_unsupported_tool_choice_is_refused_by_name(tool_choice: ToolChoice, field: str) -> None:
    with pytest.raises(UnsupportedFeature) as exc_info:
        chat_request_to_upstream(
            replace(PLAIN, tool_choice=tool_choice), context=8192, stream=False
        )
    assert exc_info.value.field == field


def test_tool_choice_none_omits_tools() -> None:
    request = replace(PLAIN, tool_choice=ToolChoice(mode="none"))
    assert "tools" not in chat_request_to_upstream(request, context=8192, stream=False)


@pytest.mark.parametrize(
    ("reasoning", "expected_think"),
    [
        (None, None),
        (Reasoning(enabled=False), False),
        (Reasoning(budget=5000), True),
        (Reasoning(effort="xhigh"), "high"),
        (Reasoning(effort="low"), "low"),
    ],
)
def test_reasoning_becomes_think(
    reasoning: Reasoning | None, expected_think: bool | str | None
) -> None:
    body = chat_request_to_upstream(replace(PLAIN, reasoning=reasoning), context=8192, stream=False)
    assert body.get("think") == expected_think


def test_tool_results_without_ids_match_their_calls() -> None:
    def make_call(name: str) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {}}}

    request = chat_request_to_domain(
        parse_body(
            messages=[
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "tool_calls": [make_call("a"), make_call("b"), make_call("a")],
                },
                {"role": "tool", "tool_name": "b", "content": "B"},
                {"role": "tool", "tool_name": "a", "content": "A1"},
                {"role": "tool", "content": "A2"},
            ]
        ),
        "m",
    )
    tool_use_ids = [part.id for part in request.messages[1].parts if isinstance(part, ToolUse)]
    assert len(set(tool_use_ids)) == 3
    assert request.messages[2].parts == (
        ToolResult(tool_use_id=tool_use_ids[1], content=(Text(text="B"),)),
        ToolResult(tool_use_id=tool_use_ids[0], content=(Text(text="A1"),)),
        ToolResult(tool_use_id=tool_use_ids[2], content=(Text(text="A2"),)),
    )


def test_options_become_sampling_or_are_refused_by_name() -> None:
    body = parse_body(
        options={"seed": 0, "top_k": 5, "num_predict": -1, "stop": "END", "num_thread": 8},
        keep_alive="5m",
        think="low",
    )
    request = chat_request_to_domain(body, "m")
    assert request.sampling == Sampling(seed=0, top_k=5)
    assert (request.max_tokens, request.stop) == (None, ("END",))
    assert request.reasoning == Reasoning(effort="low", budget=2048)
    for changes, field in (
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"suffix": "end"}, "suffix"),
    ):
        with pytest.raises(UnsupportedFeature) as exc_info:
            chat_request_to_domain(parse_body(**changes), "m")
        assert exc_info.value.field == field


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([{"role": "tool", "content": "x"}], "messages.0"),
        ([{"role": "user", "images": ["/etc/passwd"]}], "messages.0.images.0"),
        ([{"role": "user", "images": ["http://①②⑦.0.0.1/"]}], "messages.0.images.0"),
    ],
)
def test_error_names_invalid_message(messages: list[Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        chat_request_to_domain(parse_body(messages=messages), "m")
    assert exc_info.value.field == field


def test_generate_becomes_a_chat_of_one_turn() -> None:
    body = {"model": "m", "prompt": "look", "system": "Brief.", "images": [PNG], "format": "json"}
    parsed_request = OllamaGenerateCodec().parse(json.dumps(body).encode())
    request = parsed_request.to_domain("up")
    (turn,) = request.messages
    assert turn.parts == (Text(text="look"), Image(media_type="image/png", data=PNG))
    assert (request.model, request.system, request.output) == (
        *("up", (Text(text="Brief."),)),
        OutputFormat(),
    )
    assert (
        parsed_request.is_streamed,
        parsed_request.derive_needs().vision,
        parsed_request.model_load_response,
    ) == (
        True,
        True,
        None,
    )
    with pytest.raises(UnsupportedFeature, match="raw"):
        OllamaGenerateCodec().parse(b'{"model":"m","prompt":"x","raw":true}').to_domain("m")


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_response_round_trip_is_valid_for_the_sdk(answer: ChatResponse) -> None:
    body = chat_response_to_client(answer, model="m", nanoseconds=5)
    parsed_answer = chat_response_to_domain(json.loads(body))
    # Ollama's format has neither refusals nor cached tokens.
    assert parsed_answer.parts == answer.parts
    assert parsed_answer.usage.prompt_tokens == answer.usage.prompt_tokens
    sdk_response = ollama.ChatResponse.model_validate_json(body)
    assert (sdk_response.message.content, sdk_response.total_duration) == (answer.text, 5)
    if not any(isinstance(part, ToolUse) for part in answer.parts):
        generate_body = generate_response_to_client(answer, model="m", nanoseconds=5)
        assert ollama.GenerateResponse.model_validate_json(generate_body).response == answer.text


@pytest.mark.parametrize("piece_size", [1, 7, 100_000])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_stream_passes_the_tap_and_is_valid_for_the_sdk(
    answer: ChatResponse, piece_size: int
) -> None:
    writer = StreamWriter(encode_chat_content, "m")
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(answer))
    tap = StreamTap("m")
    pieces = [stream[start : start + piece_size] for start in range(0, len(stream), piece_size)]
    assert b"".join(map(tap.feed, pieces)) == stream
    assert tap.is_finished
    assert tap.usage == Usage(
        input_tokens=answer.usage.prompt_tokens, output_tokens=answer.usage.output_tokens
    )
    parsed_lines = [ollama.ChatResponse.model_validate_json(line) for line in stream.splitlines()]
    assert "".join(line.message.content or "" for line in parsed_lines) == answer.text
    calls = [
        parsed_request for line in parsed_lines for parsed_request in line.message.tool_calls or ()
    ]
    tool_uses = [part for part in answer.parts if isinstance(part, ToolUse)]
    assert [dict(parsed_request.function.arguments) for parsed_request in calls] == [
        json.loads(tool_use.arguments) for tool_use in tool_uses
    ]
    thoughts = [part.text for part in answer.parts if isinstance(part, Thinking)]
    assert "".join(line.message.thinking or "" for line in parsed_lines) == "".join(thoughts)
    assert tap.tokens >= len(calls)


def test_generate_stream_is_valid_for_the_sdk() -> None:
    writer = StreamWriter(encode_generate_content, "m")
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(ANSWERS["thinking"]))
    parsed_lines = [
        ollama.GenerateResponse.model_validate_json(line) for line in stream.splitlines()
    ]
    assert "".join(line.response or "" for line in parsed_lines) == "Yes"
    assert "".join(line.thinking or "" for line in parsed_lines) == "hm hm"
    assert parsed_lines[-1].done_reason == "stop"


@pytest.mark.parametrize("arguments", ["{", "[1]", "3"])
def test_invalid_tool_arguments_are_a_model_error(arguments: str) -> None:
    tool_use = ToolUse(id="c", name="f", arguments=arguments)
    with pytest.raises(InvalidToolCall) as exc_info:
        tool_call_to_client(0, tool_use)
    assert exc_info.value.details == {"tool": "f", "arguments": arguments}
    writer = StreamWriter(encode_chat_content, "m")
    writer.write(ToolStarted(index=0, id="c", name="f"))
    writer.write(ToolArguments(index=0, fragment=arguments))
    with pytest.raises(InvalidToolCall):
        writer.write(TextDelta(text="x"))
    with pytest.raises(StreamInterrupted):
        StreamWriter(encode_chat_content, "m").write(ToolArguments(index=0, fragment="{}"))


@pytest.mark.parametrize("line", [b"nope\n", b"3\n", b'{"error":"secret of the server"}\n'])
def test_malformed_line_interrupts_without_leaking_its_text(line: bytes) -> None:
    with pytest.raises(StreamInterrupted) as exc_info:
        StreamTap("m").feed(line)
    assert "secret" not in exc_info.value.message


def test_only_changed_members_are_rewritten() -> None:
    raw_body = (
        b'{ "model":"m", "messages":[{"role":"user","content":"hi"}], "options":{"num_ctx":7} }'
    )
    parsed_request = OllamaChatCodec().parse(raw_body)
    assert parsed_request.to_upstream("m", {}) is raw_body
    body = json.loads(parsed_request.to_upstream("up", {"options": {"num_ctx": 4096, "x": 1}}))
    assert body == {**json.loads(raw_body), "model": "up", "options": {"num_ctx": 7, "x": 1}}


def test_needs_include_every_required_ability() -> None:
    body = chat_request_to_upstream(
        replace(PLAIN, reasoning=Reasoning()), context=9000, stream=False
    )
    needs = OllamaChatCodec().parse(json.dumps(body).encode()).derive_needs()
    assert (needs.tools, needs.vision, needs.schema, needs.thinking) == (True, True, True, True)
    assert needs.max_tokens == 99
    assert 1200 < needs.prompt_tokens < 1400
    embedding_needs = (
        OllamaEmbedCodec().parse(b'{"model":"m","input":["four","eightee!"]}').derive_needs()
    )
    assert (
        embedding_needs.embeddings,
        embedding_needs.prompt_tokens,
        embedding_needs.longest_input,
    ) == (True, 3, 2)


def test_embedding_request_does_not_truncate() -> None:
    request = EmbeddingRequest(model="m", inputs=("a", "b"), dimensions=3)
    body = embedding_request_to_upstream(request, context=2048)
    assert body == {
        "model": "m",
        "input": ["a", "b"],
        "truncate": False,
        "dimensions": 3,
        "options": {"num_ctx": 2048},
    }
    with pytest.raises(BackendUnavailable):
        embedding_response_to_domain({"embeddings": [1.0]})


def test_errors_use_ollamas_field_names() -> None:
    error = UnsupportedFeature("no", field="response_format")
    error_response = render_error(error, "r1", "/v1/ollama/api/chat")
    assert error_response.status == 400
    assert json.loads(error_response.body) == {
        "error": "no",
        "code": "unsupported_feature",
        "request_id": "r1",
        "field": "format",
    }


@pytest.mark.parametrize(
    ("message", "shown_message"),
    [
        ("the input length exceeds the context length",) * 2,
        ("", "the back end refused the request: HTTP status 400"),
    ],
)
def test_refusals_of_a_host_keep_its_message(message: str, shown_message: str) -> None:
    error = error_from_status(400, message, None)
    error_response = render_error(error, "r1", "/v1/ollama/api/embed")
    assert error_response.status == 400
    assert json.loads(error_response.body) == {
        "error": shown_message,
        "code": "backend_rejected",
        "request_id": "r1",
    }


def test_unknown_members_are_ignored() -> None:
    body = parse_body(
        useTools=False, extra={"a": 1}, options={"no_such": 3, "num_gpu": 1, "min_p": 0}
    )
    request = chat_request_to_domain(body, "m")
    assert request.sampling == Sampling()


def test_llama_sampling_options_are_translated() -> None:
    options = {"repeat_penalty": 1.1, "min_p": 0.05}
    request = chat_request_to_domain(parse_body(options=options), "m")
    assert request.sampling == Sampling(repeat_penalty=1.1, min_p=0.05)
    body = chat_request_to_upstream(request, context=8192, stream=False)
    assert body["options"].items() >= options.items()
    neutral_request = parse_body(options={"repeat_penalty": 1.0, "min_p": 0.0})
    assert chat_request_to_domain(neutral_request, "m").sampling == Sampling()


@pytest.mark.parametrize(
    ("members", "done_reason"),
    [
        ({}, "load"), ({"keep_alive": "5m"}, "load"), ({"keep_alive": -1}, "load"),
        ({"keep_alive": 0}, "unload"), ({"keep_alive": "0"}, "unload"), ({"keep_alive": "0s"}, "unload"),
        ({"keep_alive": 0.0}, "unload"), ({"keep_alive": "10s"}, "load"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("has_null_prompt", [False, True])
def test_request_without_prompt_loads_or_unloads_the_model(
    members: dict[str, Any], done_reason: str, has_null_prompt: bool
) -> None:
    for codec, name in ((OllamaChatCodec(), "messages"), (OllamaGenerateCodec(), "prompt")):
        body = {"model": "m", **({name: None} if has_null_prompt else {}), **members}
        parsed_request = codec.parse(json.dumps(body).encode())
        assert parsed_request.model_load_response is not None
        load_response = json.loads(parsed_request.model_load_response)
        assert (load_response["done"], load_response["done_reason"], load_response["model"]) == (
            True,
            done_reason,
            "m",
        )
        assert parsed_request.derive_needs().prompt_tokens >= 0
        assert list(parsed_request.select_recent_turns()) == []


def test_last_object_has_every_duration() -> None:
    duration_names = ("load_duration", "prompt_eval_duration", "eval_duration")
    answer = ANSWERS["text"]
    for body in (
        json.loads(chat_response_to_client(answer, model="m", nanoseconds=5)),
        json.loads(generate_response_to_client(answer, model="m", nanoseconds=5)),
    ):
        assert [body[name] for name in duration_names] == [0, 0, 5]
    writer = StreamWriter(encode_chat_content, "m")
    last_object = json.loads(
        b"".join(map(writer.write, split_into_deltas(answer))).splitlines()[-1]
    )
    assert 0 < last_object["prompt_eval_duration"] < last_object["total_duration"]
    duration_sum = last_object["prompt_eval_duration"] + last_object["eval_duration"]
    assert duration_sum == last_object["total_duration"]


def test_older_embeddings_call_has_its_own_response_format() -> None:
    parsed_request = OllamaEmbeddingsCodec().parse(
        b'{"model":"m","prompt":"hello","options":{"num_gpu":1}}'
    )
    assert parsed_request.derive_needs().embeddings
    assert parsed_request.to_domain("up") == EmbeddingRequest(model="up", inputs=("hello",))
    answer = EmbeddingResponse(model="m", vectors=((0.5, 1.0),), usage=Usage())
    assert json.loads(parsed_request.encode_response(answer)) == {"embedding": [0.5, 1.0]}
