from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import Text, Thinking, ToolUse
from moyin.domain.money import Usage
from moyin.errors import (
    BackendKeyRejected,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    InvalidToolCall,
    ModelNotFound,
    MoyinError,
    Overloaded,
    ServiceUnavailable,
    StreamInterrupted,
    UnsupportedFeature,
)
from moyin.testing.backends import FakeBackend, make_text_response
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec, OllamaGenerateCodec
from moyin.text.protocol.openai.codec import OpenAICodec, OpenAIEmbeddingsCodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.loaded_models import LoadedModels, ModelState
from tests.unit.text.routing.router_rig import CHEAP, CHUNK, DONE, RAW, TOTAL, Rig, read_stream


async def test_bytes_pass_unchanged_and_are_charged() -> None:
    rig = Rig(FakeBackend(raw=RAW), tariff=CHEAP)
    answer = await rig.ask()
    assert answer.body is RAW
    headers = dict(answer.headers)
    assert headers[b"x-moyin-cost-usd"] == b"0.002"
    assert headers[b"x-moyin-backend"] == b"b0"
    assert headers[b"x-moyin-model"] == b"m0"
    assert headers[b"x-moyin-route"] == b"only"
    (entry,) = rig.ledger
    assert (entry.input_tokens, entry.output_tokens, entry.cost_usd) == (
        1000,
        500,
        Decimal("0.002"),
    )
    assert entry.complete


@pytest.mark.parametrize("stream", [False, True])
async def test_the_other_protocol_is_translated(stream: bool) -> None:
    backend = FakeBackend(make_text_response("Hello you"), api_format=ApiFormat.OPENAI)
    rig = Rig(backend)
    answer = await rig.ask(AnthropicCodec(), stream=stream)
    body = await read_stream(answer) if stream else answer.body
    assert b"Hello" in body and b"end_turn" in body
    assert rig.ledger[0].output_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [BackendUnavailable("x"), StreamInterrupted("x")])
async def test_a_failure_before_the_first_byte_falls_back(error: MoyinError, stream: bool) -> None:
    rig = Rig(FakeBackend(error=error), FakeBackend(raw=RAW, raw_stream=[CHUNK, DONE]))
    answer = await rig.ask(stream=stream)
    if stream:
        await read_stream(answer)
    assert dict(answer.headers)[b"x-moyin-backend"] == b"b1"
    assert dict(answer.headers)[b"x-moyin-route"] == f"fallback after {error.code}".encode()
    # The back end that broke off may bill the prompt.
    billed_backends = ["b0"] if isinstance(error, StreamInterrupted) else []
    assert [entry.backend for entry in rig.ledger] == [*billed_backends, "b1"]
    assert [runtime.load for runtime in rig.runtimes] == [0, 0]


@pytest.mark.parametrize("raw_response", [b"<html>", b"[]"])
async def test_malformed_answer_falls_back(raw_response: bytes) -> None:
    rig = Rig(FakeBackend(raw=raw_response), FakeBackend(raw=RAW))
    assert (await rig.ask()).body is RAW


async def test_an_empty_stream_falls_back() -> None:
    rig = Rig(FakeBackend(raw_stream=[]), FakeBackend(raw_stream=[CHUNK, DONE]))
    assert CHUNK in await read_stream(await rig.ask(stream=True))


async def test_rejected_request_is_not_sent_to_another_back_end() -> None:
    second_backend = FakeBackend(raw=RAW)
    rig = Rig(FakeBackend(error=BackendRejected("no")), second_backend)
    with pytest.raises(BackendRejected):
        await rig.ask()
    assert not second_backend.requests
    assert rig.runtimes[0].health.is_up


async def test_last_failure_is_raised_when_all_fail() -> None:
    rig = Rig(
        FakeBackend(error=BackendUnavailable("one")), FakeBackend(error=BackendUnavailable("two"))
    )
    with pytest.raises(BackendUnavailable, match="two"):
        await rig.ask()


async def test_rejected_own_key_is_hidden_and_opens_the_breaker_at_once() -> None:
    rig = Rig(FakeBackend(error=BackendKeyRejected("key")))
    for _ in range(2):
        with pytest.raises(ServiceUnavailable):
            await rig.ask()
    assert len(rig.runtimes[0].backend.requests) == 1  # type: ignore[attr-defined]


async def test_a_member_that_one_back_end_lacks_is_routed_around() -> None:
    rig = Rig(FakeBackend(api_format=ApiFormat.ANTHROPIC), FakeBackend(raw=RAW))
    answer = await rig.ask(min_p=0.1)
    assert dict(answer.headers)[b"x-moyin-backend"] == b"b1"
    assert rig.runtimes[0].health == rig.runtimes[1].health


async def test_error_after_the_first_byte_becomes_an_error_event() -> None:
    error = StreamInterrupted("cut")
    rig = Rig(FakeBackend(raw_stream=[CHUNK, CHUNK], error=error, chunks_before_error=1))
    stream_bytes = await read_stream(await rig.ask(stream=True))
    assert stream_bytes.startswith(CHUNK)
    assert b'"code":"stream_interrupted"' in stream_bytes
    assert stream_bytes.endswith(b": x-moyin-cost-usd=0\n\n")
    assert not rig.ledger[0].complete
    assert rig.ledger[0].output_tokens == 1


async def test_stream_that_ends_without_done_is_interrupted() -> None:
    rig = Rig(FakeBackend(raw_stream=[CHUNK]))
    assert b"stream_interrupted" in await read_stream(await rig.ask(stream=True))


async def test_a_stream_ends_with_its_cost() -> None:
    rig = Rig(FakeBackend(raw_stream=[CHUNK, TOTAL, DONE]), tariff=CHEAP)
    stream_bytes = await read_stream(await rig.ask(stream=True))
    assert stream_bytes == CHUNK + DONE + b": x-moyin-cost-usd=0.002\n\n"
    assert rig.ledger[0].complete


@pytest.mark.parametrize("received_count", [0, 1])
async def test_disconnect_cancels_upstream_and_charges_the_sent_part(received_count: int) -> None:
    backend = FakeBackend(raw_stream=[CHUNK] * 100)
    rig = Rig(backend, tariff=CHEAP)
    stream = (await rig.ask(stream=True)).stream
    assert stream is not None
    for _ in range(received_count):
        await anext(stream)
    await stream.aclose()
    assert backend.closed_early == 1
    (entry,) = rig.ledger
    assert (entry.complete, entry.output_tokens) == (False, 1)
    assert entry.cost_usd > 0
    assert rig.runtimes[0].load == 0
    await stream.aclose()
    assert len(rig.ledger) == 1


async def test_cancelled_call_releases_its_slot() -> None:
    class SlowBackend(FakeBackend):
        async def forward(self, request: object) -> bytes:
            await asyncio.sleep(30)
            return b""

    rig = Rig(SlowBackend())
    call_task = asyncio.create_task(rig.ask())
    await asyncio.sleep(0.01)
    assert rig.runtimes[0].load == 1
    call_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call_task
    assert rig.runtimes[0].load == 0


async def test_three_failures_exclude_a_back_end() -> None:
    broken_backend = FakeBackend(error=BackendUnavailable("x"))
    rig = Rig(broken_backend, FakeBackend(raw=RAW))
    for _ in range(5):
        await rig.ask()
    assert len(broken_backend.requests) == 3


async def test_unknown_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound):
        await Rig(FakeBackend()).ask(model="gpt-2")


async def test_health_checks_exclude_and_readmit_a_back_end() -> None:
    backend = FakeBackend(raw=RAW, error=BackendUnavailable("x"))
    rig = Rig(backend)
    health_changes: list[tuple[str, bool]] = []
    (runtime,) = rig.runtimes
    await runtime.check_health(lambda name, up: health_changes.append((name, up)))
    with pytest.raises(ServiceUnavailable):
        await rig.ask()
    assert not backend.requests
    backend.error = None
    await runtime.check_health(lambda name, up: health_changes.append((name, up)))
    assert (await rig.ask()).body is RAW
    assert health_changes == [("b0", False), ("b0", True)]


async def test_one_failed_probe_does_not_exclude_a_back_end() -> None:
    """A back end stays in use if one probe fails, because the probe is repeated.

    A probe may time out only because the gateway's process was suspended.
    """
    backend = FakeBackend()
    original_probe, failures = backend.probe, [BackendTimeout("x")]

    async def fail_once() -> None:
        if failures:
            raise failures.pop()
        await original_probe()

    backend.probe = fail_once  # type: ignore[method-assign]
    (runtime,) = Rig(backend).runtimes
    await runtime.check_health(lambda name, up: None)
    assert runtime.is_up and not failures


UNABLE = UnsupportedFeature("Ollama can't be made to call a tool", field="tool_choice")


async def test_inability_of_one_back_end_does_not_hide_a_retryable_failure() -> None:
    overloaded_backend = FakeBackend(error=Overloaded("x", retry_after=7))
    rig = Rig(overloaded_backend, FakeBackend(error=UNABLE, api_format=ApiFormat.OLLAMA))
    with pytest.raises(Overloaded) as exc_info:
        await rig.ask()
    assert exc_info.value.retry_after == 7
    # From now on its breaker is open, and only the other one is asked.
    with pytest.raises(ServiceUnavailable) as second_exc_info:
        await rig.ask()
    assert second_exc_info.value.retry_after == 7
    assert len(overloaded_backend.requests) == 1


async def test_error_names_the_field_when_no_back_end_is_able() -> None:
    unable_backends = [FakeBackend(error=UNABLE, api_format=ApiFormat.OLLAMA) for _ in range(2)]
    rig = Rig(*unable_backends)
    rig.runtimes[0].is_up = False
    with pytest.raises(UnsupportedFeature):
        await rig.ask()


async def test_a_call_that_was_never_sent_loads_no_model() -> None:
    async def list_loaded() -> dict[str, dict[str, str]]:
        return {}

    loaded_models = LoadedModels(list_loaded, load_seconds=lambda _: 10.0, clock=lambda: 0.0)
    await loaded_models.refresh()
    rig = Rig(
        FakeBackend(error=UNABLE, api_format=ApiFormat.OLLAMA), runtime={"loaded": loaded_models}
    )
    with pytest.raises(UnsupportedFeature):
        await rig.ask()
    assert loaded_models.get_state("up") is ModelState.ABSENT
    # Another call's loading goes on.
    assert loaded_models.record_call_start("up")
    with pytest.raises(UnsupportedFeature):
        await rig.ask()
    assert loaded_models.get_state("up") is ModelState.LOADING


async def test_error_body_with_status_200_is_a_failure() -> None:
    body = b'{"error": {"message": "out of credits", "code": 402}}'
    rig = Rig(FakeBackend(raw=body), FakeBackend(raw=RAW))
    assert (await rig.ask()).body is RAW


SILENT: list[tuple[ProtocolCodec, dict[str, Any]]] = [
    (OpenAICodec(), {"choices": [{"message": {"content": "x" * 200}}] * 2, "usage": None}),
    (AnthropicCodec(), {"id": "1", "content": [{"text": "x" * 300}, {"thinking": "x" * 100}]}),
    (OllamaChatCodec(), {"model": "m", "message": {"content": "x" * 400}}),
    (OllamaGenerateCodec(), {"model": "m", "response": "x" * 400}),
]


@pytest.mark.parametrize(("codec", "body"), SILENT, ids=["openai", "anthropic", "chat", "generate"])
async def test_usage_is_estimated_when_an_answer_states_none(
    codec: ProtocolCodec, body: dict[str, Any]
) -> None:
    rig = Rig(FakeBackend(raw=json.dumps(body).encode(), api_format=codec.api_format), tariff=CHEAP)
    answer = await rig.ask(codec, stream=False, prompt="x" * 400)
    (entry,) = rig.ledger
    assert (entry.output_tokens, entry.complete) == (100, True)
    assert entry.input_tokens == rig.telemetry.calls[0].usage.input_tokens > 0
    headers = dict(answer.headers)
    assert Decimal(headers[b"x-moyin-cost-usd"].decode()) == entry.cost_usd > 0
    assert headers[b"x-moyin-estimated"] == b"true"
    # The client gets the recorded usage.
    usage = codec.read_usage(json.loads(answer.body))
    assert (usage.prompt_tokens, usage.output_tokens) == (entry.input_tokens, 100)


async def test_usage_is_estimated_for_translated_answers() -> None:
    parts = (Thinking(text="x" * 40), Text(text="x" * 40))
    tool_use = ToolUse(id="c", name="f", arguments='{"a":"12"}' + " " * 10)
    answer_without_usage = replace(make_text_response(), parts=(*parts, tool_use), usage=Usage())
    rig = Rig(FakeBackend(answer_without_usage, api_format=ApiFormat.OPENAI), tariff=CHEAP)
    answer = await rig.ask(AnthropicCodec())
    assert (rig.ledger[0].input_tokens, rig.ledger[0].output_tokens) == (6, 25)
    usage = json.loads(answer.body)["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (6, 25)
    assert dict(answer.headers)[b"x-moyin-estimated"] == b"true"


async def test_stated_usage_is_not_marked_as_estimated() -> None:
    rig = Rig(FakeBackend(raw=RAW))
    assert b"x-moyin-estimated" not in dict((await rig.ask()).headers)


@pytest.mark.parametrize(
    "codec",
    [
        OpenAICodec(),
        OpenAIEmbeddingsCodec(),
        AnthropicCodec(),
        OllamaChatCodec(),
        OllamaGenerateCodec(),
    ],
)
def test_an_empty_object_is_no_answer(codec: ProtocolCodec) -> None:
    for answer in ({}, {"choices": 1, "data": {}, "content": "x", "message": 5, "response": None}):
        with pytest.raises(BackendUnavailable):
            codec.require_answer_member(answer)


async def test_empty_object_falls_back() -> None:
    rig = Rig(FakeBackend(raw=b"{}"), FakeBackend(raw=RAW))
    assert dict((await rig.ask()).headers)[b"x-moyin-backend"] == b"b1"


async def test_answer_that_cannot_be_translated_is_still_charged() -> None:
    broken_tool_use = ToolUse(id="c", name="f", arguments="{")
    rig = Rig(FakeBackend(replace(make_text_response(), parts=(broken_tool_use,))), tariff=CHEAP)
    with pytest.raises(InvalidToolCall):
        await rig.ask(AnthropicCodec())
    (entry,), (call,) = rig.ledger, rig.telemetry.calls
    assert (entry.input_tokens, entry.output_tokens, entry.complete) == (7, 1, False)
    assert call.error == "invalid_tool_call"


class FakeBudget:
    limits_spending = True

    def __init__(self) -> None:
        self.taken_amounts: list[Decimal] = []

    async def reserve(self, usd: Decimal, tokens: int) -> None:
        self.taken_amounts.append(usd)

    def record(self, usd: Decimal, tokens: int) -> None:
        return None


@pytest.mark.parametrize("n", [0, -1, -1_000_000, "2", None])
async def test_unknown_member_does_not_change_the_reservation(
    n: Any,
) -> None:
    """Anthropic's protocol has no ``n``; if it counted, a call with ``n: 0`` would be free."""
    rig = Rig(FakeBackend(api_format=ApiFormat.ANTHROPIC), tariff=CHEAP)
    reservations = []
    for extra_members in ({}, {"n": n}):
        body = {"model": "auto", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
        budget, codec = FakeBudget(), AnthropicCodec()
        parsed_request = codec.parse(json.dumps({**body, **extra_members}).encode())
        context = RoutingContext(request_id="r1", owner="ada", headers=(), budget=budget)
        await rig.router.answer(codec, parsed_request, context)
        reservations += budget.taken_amounts
    assert reservations[0] == reservations[1] > 0


async def test_interrupted_call_is_charged_by_the_observed_token_ratio() -> None:
    backend = FakeBackend(raw=RAW, raw_stream=[CHUNK, CHUNK])
    rig = Rig(backend)
    estimated_tokens = OpenAICodec().parse(rig.make_body()).derive_needs().prompt_tokens
    await read_stream(await rig.ask(stream=True))
    assert rig.ledger[-1].input_tokens == estimated_tokens
    for _ in range(99):
        await rig.ask()
    await read_stream(await rig.ask(stream=True))
    entry = rig.ledger[-1]
    assert not entry.complete
    assert 0.8 * 1000 < entry.input_tokens <= 1000
