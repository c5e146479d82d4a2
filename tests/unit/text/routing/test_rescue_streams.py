"""Tests that a stream which begins with a fault is replaced before the client gets any of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

import pytest

from moyin.domain.backend import ApiFormat, RawRequest
from moyin.domain.chat import ChatRequest, ChatResponse, Delta, StopReason, Text, ToolUse
from moyin.domain.money import Usage, create_flat_tariff
from moyin.errors import BackendUnavailable, StreamInterrupted
from moyin.testing.backends import FakeBackend
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec, OllamaGenerateCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.quality.estimator import Estimator, Signal
from moyin.text.routing.background_queue import BackgroundQueue
from moyin.text.routing.catalog import Alias, Catalog, HedgingPolicy, RescuePolicy
from moyin.text.routing.router import Router
from tests.unit.text.routing.factories import make_runtime
from tests.unit.text.routing.router_rig import read_stream
from tests.unit.text.routing.test_request_quality import HAIKU, SMALL
from tests.unit.text.routing.test_rescue import BAD, FORMAT, GOOD, SCHEMA, FakeBudget, RescueGateway

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
USED = '{"prompt_tokens": 9, "completion_tokens": 4}'


class RecordingLearning:
    """A stand-in for `QualityLearner` that records signals."""

    def __init__(self) -> None:
        self.background = BackgroundQueue()
        self.signals: list[tuple[str, str, str | None, float]] = []

    def now(self) -> float:
        return 1_000.0

    def needs_load(self, owner: str) -> bool:
        return False

    def record_decision(self, *_: Any) -> None: ...

    def record_signal(
        self,
        owner: str,
        request_id: str,
        signal: Signal,
        *,
        p_good: float,
        comment: str | None = None,
    ) -> None:
        self.signals.append((signal.model, signal.source, comment, signal.score))


class StreamGateway(RescueGateway):
    """A `RescueGateway` with streams and recorded signals."""

    def __init__(self, first_answer: str = BAD, second_answer: str = GOOD, **rules: Any) -> None:
        super().__init__(first_answer, second_answer, **rules)
        self.learning = RecordingLearning()
        fleet = self.router.fleet
        self.router = Router(
            fleet, self.ledger, estimator=Estimator(), learning=cast(Any, self.learning)
        )

    async def stream(
        self, codec: ProtocolCodec | None = None, **changes: Any
    ) -> tuple[str, str, str]:
        """Send a request for a stream, and return the model, the route and the whole body.

        The arguments are those of `ask`.
        """
        model, route, answer = await self.ask(codec, **{"stream": True, **changes})
        body = await read_stream(answer)
        await asyncio.sleep(0)  # the gateway checks the whole answer right after its stream
        self.learning.background.run_tasks()
        return model, route, body.decode()


def encode_stream(*texts: str, finish_reason: str = "stop") -> list[bytes]:
    """Return the pieces of an OpenAI stream with these texts, as an upstream sends it.

    Args:
        finish_reason: the reason for the end of the answer.
    """
    chunks = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    chunks += [{"choices": [{"delta": {"content": text}}]} for text in texts]
    last_chunk = {
        "choices": [{"delta": {}, "finish_reason": finish_reason}],
        "usage": json.loads(USED),
    }
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in (*chunks, last_chunk)] + [
        b"data: [DONE]\n\n"
    ]


async def test_prose_instead_of_requested_json_never_reaches_the_client() -> None:
    gateway = StreamGateway()
    model, route, body = await gateway.stream(response_format=FORMAT)
    assert model == "claude-haiku-5-5"
    assert route.startswith("rescue after json; claude-haiku-5-5: code, p_good 0.")
    assert "Sure!" not in body
    assert "true" in body
    assert [(entry.model, entry.complete) for entry in gateway.ledger] == [
        ("smollm2-135m", False),
        ("claude-haiku-5-5", True),
    ]
    # The upstream call is cancelled as soon as its answer is replaced.
    assert gateway.small.closed_early == 1
    assert gateway.ledger[0].output_tokens == 1
    assert gateway.learning.signals == [("smollm2-135m", "checked", "json", 0.0)]
    assert gateway.router.fleet.runtimes["local"].load == 0


@pytest.mark.parametrize(
    ("codec", "changes"),
    [
        (
            AnthropicCodec(),
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        (OllamaChatCodec(), {"max_tokens": None, "format": SCHEMA}),
        (
            OllamaGenerateCodec(),
            {"max_tokens": None, "messages": None, "format": "json", "prompt": "p"},
        ),
    ],
)
async def test_rescue_works_in_every_protocol(
    codec: ProtocolCodec, changes: dict[str, Any]
) -> None:
    model, route, body = await StreamGateway().stream(codec, **changes)
    assert (model, route.partition(";")[0]) == ("claude-haiku-5-5", "rescue after json")
    assert "Sure" not in body


PASS_THROUGH_CASES: dict[ApiFormat, tuple[ProtocolCodec, dict[str, Any], list[bytes], str]] = {
    ApiFormat.OPENAI: (
        OpenAICodec(),
        {"response_format": FORMAT},
        encode_stream("Sure", "!"),
        "json",
    ),
    ApiFormat.ANTHROPIC: (
        AnthropicCodec(),
        {},
        [
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"1","model":"m",'
            b'"usage":{"input_tokens":9}}}\n\n',
            b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":'
            b'"end_turn"},"usage":{"output_tokens":1}}\n\nevent: message_stop\ndata: '
            b'{"type":"message_stop"}\n\n',
        ],
        "empty",
    ),
    ApiFormat.OLLAMA: (
        OllamaChatCodec(),
        {"max_tokens": None, "tools": [TOOL]},
        [
            b'{"message":{"role":"assistant","content":""},"done":false}\n',
            b'{"message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":'
            b'"nothing","arguments":{}}}]},"done":false}\n',
            b'{"message":{"content":""},"done":true,"prompt_eval_count":9,"eval_count":4}\n',
        ],
        "tool_name",
    ),
}


@pytest.mark.parametrize("api_format", PASS_THROUGH_CASES)
async def test_pass_through_streams_are_checked(api_format: ApiFormat) -> None:
    codec, changes, upstream_pieces, fault = PASS_THROUGH_CASES[api_format]
    gateway = make_forwarding_gateway(api_format, upstream_pieces)
    model, route, _ = await gateway.stream(codec, **changes)
    assert (model, route.partition(";")[0]) == ("claude-haiku-5-5", f"rescue after {fault}")
    assert gateway.ledger[0].input_tokens > 0


@pytest.mark.parametrize("api_format", PASS_THROUGH_CASES)
async def test_finished_pass_through_streams_become_signals(api_format: ApiFormat) -> None:
    codec, changes, upstream_pieces, fault = PASS_THROUGH_CASES[api_format]
    gateway = make_forwarding_gateway(api_format, upstream_pieces, rescue=RescuePolicy.OFF)
    model, _, body = await gateway.stream(codec, **changes)
    assert model == "smollm2-135m"
    assert body
    assert gateway.learning.signals == [("smollm2-135m", "checked", fault, 0.0)]


def make_forwarding_gateway(
    api_format: ApiFormat, upstream_pieces: list[bytes], **rules: Any
) -> StreamGateway:
    """Return a `StreamGateway` that forwards the small model's stream without translation."""
    gateway = StreamGateway(**rules)
    gateway.small = FakeBackend(raw_stream=upstream_pieces, api_format=api_format)
    fleet = gateway.router.fleet
    local_runtime = make_runtime("local", gateway.small)
    catalog = Catalog(
        deployments=(replace(SMALL, api_format=api_format), replace(HAIKU, api_format=None))
    )
    gateway.router.fleet = replace(
        fleet, catalog=catalog, runtimes={**fleet.runtimes, "local": local_runtime}
    )
    return gateway


async def test_good_beginning_passes_unchanged() -> None:
    upstream_pieces = encode_stream('{"ok"', ": ", "true}")
    gateway = make_forwarding_gateway(ApiFormat.OPENAI, upstream_pieces)
    model, _, answer = await gateway.ask(stream=True, response_format=FORMAT)
    assert model == "smollm2-135m"
    assert answer.stream is not None
    pieces = [piece async for piece in answer.stream]
    # The event without a word and the first word come together, the rest as before.
    assert pieces[0] == upstream_pieces[0] + upstream_pieces[1]
    assert (pieces[1:3], pieces[-2]) == (upstream_pieces[2:4], upstream_pieces[-1])
    assert gateway.learning.signals == []


async def test_empty_stream_is_rescued_and_recorded_as_complete() -> None:
    gateway = StreamGateway(first_answer="")
    model, route, _ = await gateway.stream()
    assert (model, route.partition(";")[0]) == ("claude-haiku-5-5", "rescue after empty")
    assert [entry.complete for entry in gateway.ledger] == [True, True]


@pytest.mark.parametrize(
    ("policy", "changes", "first_answer", "is_rescued"),
    [
        (RescuePolicy.OFF, {"response_format": FORMAT}, BAD, False),
        (RescuePolicy.SCHEMA, {"response_format": FORMAT}, BAD, True),
        (RescuePolicy.SCHEMA, {}, "", False),
        (RescuePolicy.CHECKED, {}, "", True),
        (RescuePolicy.CHECKED, {}, BAD, False),
        (RescuePolicy.CHECKED, {"response_format": FORMAT, "model": "smollm2-135m"}, BAD, False),
    ],
)
async def test_rescue_policy_decides_which_faults_are_rescued(
    policy: RescuePolicy, changes: dict[str, Any], first_answer: str, is_rescued: bool
) -> None:
    gateway = StreamGateway(
        first_answer=first_answer, rescue=RescuePolicy.OFF, aliases={"own": Alias(rescue=policy)}
    )
    model, _, _ = await gateway.stream(**{"model": "own", **changes})
    assert (model == "claude-haiku-5-5") is is_rescued


async def test_first_stream_continues_when_the_better_model_fails() -> None:
    gateway = StreamGateway()
    gateway.claude.error = BackendUnavailable("away")
    model, _, body = await gateway.stream(response_format=FORMAT)
    assert model == "smollm2-135m"
    assert all(word in body for word in BAD.split())
    assert [entry.complete for entry in gateway.ledger if entry.model == "smollm2-135m"] == [True]


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("price", [Decimal(0), Decimal("0.01")])
async def test_both_calls_are_charged_to_the_reservation(price: Decimal, streams: bool) -> None:
    gateway, budget = StreamGateway(), FakeBudget()
    model = replace(SMALL.model, tariff=create_flat_tariff(price, price))
    catalog = Catalog(deployments=(replace(SMALL, model=model), HAIKU))
    gateway.router.fleet = replace(gateway.router.fleet, catalog=catalog)
    answering_model, _, answer = await gateway.ask(
        stream=streams, budget=budget, response_format=FORMAT
    )
    if streams:
        await read_stream(answer)
    assert answering_model == "claude-haiku-5-5"
    assert 0 < budget.spent <= budget.reserved


async def test_stream_without_time_left_is_not_rescued() -> None:
    assert (await StreamGateway(timeout=1.0).stream(response_format=FORMAT))[0] == "smollm2-135m"


async def test_stream_failing_before_its_first_word_falls_back() -> None:
    gateway = make_forwarding_gateway(ApiFormat.OPENAI, encode_stream("Hello"))
    gateway.small.error = StreamInterrupted("gone")
    gateway.small.chunks_before_error = 1
    gateway.router.fleet.runtimes["local"].retries = 0
    model, route, _ = await gateway.stream()
    assert (model, route) == ("claude-haiku-5-5", "fallback after stream_interrupted")
    # The prompt was read, and is paid for.
    assert gateway.ledger[0].input_tokens > 0
    assert not gateway.ledger[0].complete


class SlowBackend(FakeBackend):
    """A back end that sends the first event at once, and the rest when the test releases it."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(raw_stream=pieces)
        self.may_proceed, self.is_waiting = asyncio.Event(), asyncio.Event()

    async def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        async with aclosing(super().forward_stream(request)) as pieces:
            yield await anext(pieces)
            self.is_waiting.set()
            await self.may_proceed.wait()
            async for piece in pieces:
                yield piece


@pytest.fixture
def shorten_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moyin.text.routing.metered_stream._MAX_HELD_SECONDS", 0.01)


@pytest.mark.usefixtures("shorten_hold")
async def test_slow_first_word_ends_the_hold_without_loss() -> None:
    upstream_pieces = encode_stream("Hello", " there")
    gateway = make_forwarding_gateway(ApiFormat.OPENAI, upstream_pieces)
    slow_backend = SlowBackend(upstream_pieces)
    gateway.router.fleet.runtimes["local"].backend = slow_backend
    gateway.router.fleet.runtimes["local"].pass_through = slow_backend
    model, _, answer = await gateway.ask(stream=True)
    assert model == "smollm2-135m"
    assert answer.stream is not None
    assert await anext(answer.stream) == upstream_pieces[0]
    slow_backend.may_proceed.set()
    assert b"Hello" in await anext(answer.stream)
    assert b"[DONE]" in await read_stream(answer)


@pytest.mark.usefixtures("shorten_hold")
async def test_disconnect_while_waiting_for_a_word_ends_the_call() -> None:
    upstream_pieces = encode_stream("Hello")
    gateway = make_forwarding_gateway(ApiFormat.OPENAI, upstream_pieces)
    slow_backend = SlowBackend(upstream_pieces)
    gateway.router.fleet.runtimes["local"].backend = slow_backend
    gateway.router.fleet.runtimes["local"].pass_through = slow_backend
    _, _, answer = await gateway.ask(stream=True)
    assert answer.stream is not None
    await answer.stream.aclose()
    assert slow_backend.closed_early == 1
    assert gateway.router.fleet.runtimes["local"].load == 0


async def test_disconnect_while_the_stream_is_held_ends_the_call() -> None:
    slow_backend = SlowBackend(encode_stream("Hello"))
    gateway = make_forwarding_gateway(ApiFormat.OPENAI, [])
    gateway.router.fleet.runtimes["local"].backend = slow_backend
    gateway.router.fleet.runtimes["local"].pass_through = slow_backend
    call_task = asyncio.create_task(gateway.ask(stream=True))
    await slow_backend.is_waiting.wait()
    call_task.cancel()
    await asyncio.wait([call_task])
    assert call_task.cancelled()
    assert slow_backend.closed_early == 1
    assert gateway.router.fleet.runtimes["local"].load == 0
    assert [entry.complete for entry in gateway.ledger] == [False]


async def test_a_stream_may_be_held_until_it_is_checked_as_a_whole() -> None:
    faulty_answer = '{"ok": "not a boolean"}'
    assert (await StreamGateway(first_answer=faulty_answer).stream(response_format=FORMAT))[
        0
    ] == "smollm2-135m"
    holding_gateway = StreamGateway(first_answer=faulty_answer, hold_streams=True)
    model, route, body = await holding_gateway.stream(response_format=FORMAT)
    assert (model, route.partition(";")[0]) == ("claude-haiku-5-5", "rescue after schema")
    assert "not" not in body
    # Text without a required format is not held until its end.
    plain_text_gateway = StreamGateway(first_answer="one two three", hold_streams=True)
    _, _, answer = await plain_text_gateway.ask(stream=True)
    assert answer.stream is not None
    assert answer.stream.final_usage is None
    await answer.stream.aclose()


async def test_held_stream_without_a_fault_is_sent_unchanged() -> None:
    holding_gateway = StreamGateway(first_answer=GOOD, hold_streams=True)
    model, _, body = await holding_gateway.stream(response_format=FORMAT)
    assert model == "smollm2-135m"
    assert body.endswith("data: [DONE]\n\n: x-moyin-cost-usd=0\n\n")
    assert holding_gateway.learning.signals == []


async def test_rescue_does_not_wait_for_the_last_slot() -> None:
    """The faulty answer is sent, because both models run on one host, whose only slot it occupies."""
    gateway = StreamGateway()
    local_runtime = make_runtime("local", gateway.small, limit=1)
    local_runtime.pass_through = None
    deployments = (SMALL, replace(HAIKU, backend="local"))
    gateway.router.fleet = replace(
        gateway.router.fleet,
        catalog=Catalog(deployments=deployments),
        runtimes={"local": local_runtime},
    )
    assert (await gateway.stream(response_format=FORMAT))[0] == "smollm2-135m"


LOOP = "I will do that for you now. " * 40


@pytest.mark.parametrize(
    ("first_answer", "changes", "comment"),
    [
        ('{"ok": 1}', {"response_format": FORMAT}, "schema"),
        ('{"ok": tr', {"response_format": FORMAT}, "json"),
        (LOOP, {}, "repeating"),
        ("Fine.", {}, None),
    ],
)
async def test_faults_of_a_stream_become_signals_when_it_has_ended(
    first_answer: str, changes: dict[str, Any], comment: str | None
) -> None:
    gateway = StreamGateway(first_answer=first_answer, rescue=RescuePolicy.OFF)
    model, _, _ = await gateway.stream(**changes)
    assert model == "smollm2-135m"
    expected_signals = [] if comment is None else [("smollm2-135m", "checked", comment, 0.0)]
    assert gateway.learning.signals == expected_signals


def make_finished_response(*parts: Any, stop: StopReason) -> ChatResponse:
    return ChatResponse(id="1", model="m", parts=parts, stop=stop, usage=Usage(output_tokens=3))


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("answer", "max_tokens", "expected_signal"),
    [
        (
            make_finished_response(Text(text="a b"), stop=StopReason.MAX_TOKENS),
            2_000,
            ("cut", "cut", 0.3),
        ),
        (
            make_finished_response(Text(text="a b"), stop=StopReason.MAX_TOKENS),
            None,
            ("cut", "cut", 0.3),
        ),
        (make_finished_response(Text(text="a b"), stop=StopReason.MAX_TOKENS), 50, None),
        (make_finished_response(stop=StopReason.REFUSAL), 50, ("checked", "refused", 0.0)),
        (
            make_finished_response(
                ToolUse(id="1", name="look_up", arguments="{x"), stop=StopReason.TOOL_USE
            ),
            50,
            ("checked", "tool_arguments", 0.0),
        ),
    ],
)
async def test_cut_answers_refusals_and_broken_arguments_become_signals(
    answer: ChatResponse,
    max_tokens: int | None,
    expected_signal: tuple[str, str, float] | None,
    streams: bool,
) -> None:
    gateway = StreamGateway(rescue=RescuePolicy.OFF)
    gateway.small.answer = answer
    changes: dict[str, Any] = {"max_tokens": max_tokens, "tools": [TOOL]}
    if streams:
        await gateway.stream(**changes)
    else:
        await gateway.ask(**changes)
        gateway.learning.background.run_tasks()
    assert gateway.learning.signals == (
        [] if expected_signal is None else [("smollm2-135m", *expected_signal)]
    )


class NeverStartingBackend(FakeBackend):
    """A back end that never begins to answer."""

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        await asyncio.Event().wait()
        yield  # type: ignore[misc]


async def test_hedged_call_records_the_model_that_answered() -> None:
    gateway = StreamGateway(rescue=RescuePolicy.OFF, hedging=HedgingPolicy(share=0.5))
    local_runtime = gateway.router.fleet.runtimes["local"]
    local_runtime.backend = NeverStartingBackend()
    gateway.claude.answer = make_finished_response(stop=StopReason.REFUSAL)
    latency_estimator = local_runtime.get_latency_estimator("smollm2-135m")
    for _ in range(40):
        latency_estimator.record(
            prompt_tokens=9, output_tokens=9, first_token_seconds=0.001, seconds=0.1, concurrency=1
        )
    gateway.router._hedge._credit = 5.0
    model, route, _ = await gateway.stream()
    assert (model, route) == ("claude-haiku-5-5", "hedged")
    assert gateway.learning.signals == [("claude-haiku-5-5", "checked", "refused", 0.0)]
