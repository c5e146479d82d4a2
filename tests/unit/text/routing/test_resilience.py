from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from moyin.domain.backend import RawRequest
from moyin.domain.chat import Text, ToolUse
from moyin.errors import (
    BackendKeyRejected,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    InvalidRequest,
    InvalidToolCall,
    ModelNotFound,
    MoyinError,
    Overloaded,
    ServiceUnavailable,
    StreamInterrupted,
    UnsupportedFeature,
)
from moyin.store.usage import CallStatus
from moyin.system.slots import Slots
from moyin.testing.backends import FakeBackend, make_text_response
from moyin.text.backends.response_errors import error_from_status
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.catalog import HedgingPolicy
from moyin.text.routing.explanation import explain_loss
from moyin.text.routing.hedging import HedgeBudget, race_calls
from tests.unit.text.routing.factories import Clock
from tests.unit.text.routing.router_rig import CHEAP, CHUNK, DONE, RAW, TOTAL, Rig, read_stream


class FlakyBackend(FakeBackend):
    """A back end that fails ``failure_count`` times and then answers."""

    def __init__(self, failure_count: int) -> None:
        super().__init__(raw=RAW)
        self.failure_count = failure_count

    async def forward(self, request: RawRequest) -> bytes:
        await super().forward(request)
        if len(self.requests) <= self.failure_count:
            raise BackendUnavailable("x")
        return RAW


class HeldBackend(FakeBackend):
    """A back end that answers, or begins a stream, when the test releases it."""

    def __init__(self) -> None:
        super().__init__(raw=RAW, raw_stream=[CHUNK, TOTAL, DONE])
        self.may_proceed = asyncio.Event()
        self.was_reached = asyncio.Event()

    async def forward(self, request: RawRequest) -> bytes:
        self.requests.append(request)
        await self.may_proceed.wait()
        return RAW

    async def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        self.requests.append(request)
        self.was_reached.set()
        try:
            await self.may_proceed.wait()
        except asyncio.CancelledError:
            self.closed_early += 1
            raise
        for piece in self.raw_stream:
            yield piece


def get_backend_name(answer: object) -> bytes:
    return dict(answer.headers)[b"x-moyin-backend"]  # type: ignore[attr-defined,no-any-return]


async def test_quick_failure_is_retried_before_falling_back() -> None:
    first_backend = FlakyBackend(1)
    rig = Rig(first_backend, FakeBackend(raw=RAW), runtime={"retries": 1})
    assert get_backend_name(await rig.ask()) == b"b0"
    assert len(first_backend.requests) == 2
    assert [call.error for call in rig.telemetry.calls] == ["backend_unavailable", None]


async def test_retries_are_bounded_before_falling_back() -> None:
    first_backend = FlakyBackend(9)
    rig = Rig(first_backend, FakeBackend(raw=RAW), runtime={"retries": 1})
    answer = await rig.ask()
    assert dict(answer.headers)[b"x-moyin-route"] == b"fallback after backend_unavailable"
    assert len(first_backend.requests) == 2


@pytest.mark.parametrize(
    "error", [BackendTimeout("x"), BackendKeyRejected("x"), Overloaded("x", retry_after=1)]
)
async def test_errors_that_a_retry_cannot_fix_are_not_retried(error: Exception) -> None:
    first_backend = FakeBackend(error=error)  # type: ignore[arg-type]
    rig = Rig(first_backend, FakeBackend(raw=RAW), runtime={"retries": 3})
    assert get_backend_name(await rig.ask()) == b"b1"
    assert len(first_backend.requests) == 1


async def test_the_whole_call_has_one_deadline() -> None:
    seconds_left: list[float] = []

    class FailingBackend(FakeBackend):
        async def forward(self, request: RawRequest) -> bytes:
            seconds_left.append(request.deadline - asyncio.get_running_loop().time())
            await asyncio.sleep(0.05)
            raise BackendUnavailable("x")

    rig = Rig(FailingBackend(), FailingBackend(), timeout=2.0)
    with pytest.raises(BackendUnavailable):
        await rig.ask()
    assert seconds_left[0] <= 2.0
    assert seconds_left[1] <= seconds_left[0] - 0.05
    with pytest.raises(BackendUnavailable):
        await rig.ask(headers=[(b"x-moyin-timeout", b"0.5")])
    assert seconds_left[2] <= 0.5


async def test_invalid_header_is_rejected_before_any_call() -> None:
    backend = FakeBackend(raw=RAW)
    with pytest.raises(InvalidRequest):
        await Rig(backend).ask(headers=[(b"x-moyin-residency", b"mars")])
    assert not backend.requests


async def test_late_stream_falls_back() -> None:
    slow_backend = HeldBackend()
    rig = Rig(
        slow_backend,
        FakeBackend(raw_stream=[CHUNK, TOTAL, DONE]),
        runtime={"first_byte_timeout": 0.05},
    )
    answer = await rig.ask(stream=True)
    assert get_backend_name(answer) == b"b1"
    assert slow_backend.closed_early == 1
    await read_stream(answer)


async def test_call_waits_for_a_free_slot() -> None:
    held_backend = HeldBackend()
    rig = Rig(held_backend, runtime={"slots": Slots(1, max_waiting=1, patience=5)})
    first_call = asyncio.create_task(rig.ask())
    second_call = asyncio.create_task(rig.ask())
    await asyncio.sleep(0.01)
    runtime = rig.runtimes[0]
    assert (len(held_backend.requests), runtime.load, runtime.health.waiting) == (1, 1, 1)
    with pytest.raises(Overloaded) as exc_info:
        await rig.ask()
    assert exc_info.value.retry_after is not None and exc_info.value.retry_after >= 1
    held_backend.may_proceed.set()
    assert (await first_call).body is (await second_call).body is RAW
    assert (runtime.load, runtime.health.waiting) == (0, 0)


async def test_wait_for_a_slot_is_bounded() -> None:
    held_backend = HeldBackend()
    rig = Rig(held_backend, runtime={"slots": Slots(1, max_waiting=1, patience=0.03)})
    first_call = asyncio.create_task(rig.ask())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await rig.ask()
    # That our own queue is full says nothing about the back end.
    assert rig.runtimes[0].breaker.ready
    held_backend.may_proceed.set()
    await first_call
    assert rig.runtimes[0].load == 0


async def test_cancelled_waiter_leaves_the_queue_unchanged() -> None:
    slots = Slots(1, max_waiting=5, patience=5)
    assert slots.try_acquire("ada")
    waiting_tasks = [asyncio.create_task(slots.wait("ada", 5, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting_tasks[0].cancel()
    slots.release("ada")  # to the second, in the moment in which the first leaves
    waiting_tasks[1].cancel()  # whose slot goes on to the third
    await asyncio.gather(*waiting_tasks, return_exceptions=True)
    assert [call_task.cancelled() for call_task in waiting_tasks] == [True, True, False]
    assert (slots.taken, slots.waiting) == (1, 0)
    slots.release("ada")
    assert slots.taken == 0


async def test_disconnect_before_the_answer_charges_the_prompt() -> None:
    rig = Rig(HeldBackend(), tariff=CHEAP)
    call_task = asyncio.create_task(rig.ask())
    await asyncio.sleep(0.01)
    call_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call_task
    (entry,) = rig.ledger
    assert (entry.complete, entry.output_tokens) == (False, 0)
    assert entry.cost_usd == Decimal(entry.input_tokens) / 1_000_000 > 0
    assert rig.telemetry.calls[0].error == "cancelled"


def record_first_token_times(rig: Rig, seconds: float) -> None:
    latency_estimator = rig.runtimes[0].get_latency_estimator("m0")
    for _ in range(100):
        latency_estimator.record(
            prompt_tokens=1,
            output_tokens=2,
            first_token_seconds=seconds,
            seconds=seconds,
            concurrency=1,
        )


async def test_second_back_end_is_called_when_the_first_is_slow() -> None:
    slow_backend = HeldBackend()
    rig = Rig(
        slow_backend,
        FakeBackend(raw_stream=[CHUNK, TOTAL, DONE]),
        tariff=CHEAP,
        hedging=HedgingPolicy(share=0.5),
    )
    record_first_token_times(rig, 0.02)
    rig.router._hedge.add_credit(1)
    answer = await rig.ask(stream=True)
    headers = dict(answer.headers)
    assert (headers[b"x-moyin-backend"], headers[b"x-moyin-route"]) == (b"b1", b"hedged")
    assert b"12345678" in await read_stream(answer)
    assert slow_backend.closed_early == 1
    assert [runtime.load for runtime in rig.runtimes] == [0, 0]
    # Both are in the ledger: the loser has read the prompt.
    assert [(entry.backend, entry.complete) for entry in rig.ledger] == [
        ("b0", False),
        ("b1", True),
    ]


async def test_only_a_share_of_requests_is_hedged() -> None:
    slow_backend = HeldBackend()
    rig = Rig(
        slow_backend, FakeBackend(raw_stream=[CHUNK, TOTAL, DONE]), hedging=HedgingPolicy(share=0.5)
    )
    record_first_token_times(rig, 0.005)
    routes = []
    async with asyncio.timeout(10):
        for number in range(6):
            call_task = asyncio.create_task(rig.ask(stream=True))
            if number % 2 == 0:
                await asyncio.sleep(0.03)
                slow_backend.may_proceed.set()
            answer = await call_task
            routes.append(dict(answer.headers)[b"x-moyin-route"])
            await read_stream(answer)
            slow_backend.may_proceed.clear()
    assert routes == [b"free", b"hedged"] * 3


async def test_disconnect_cancels_both_hedged_calls() -> None:
    slow_backend, other_backend = HeldBackend(), HeldBackend()
    rig = Rig(slow_backend, other_backend, hedging=HedgingPolicy(share=1.0))
    record_first_token_times(rig, 0.005)
    call_task = asyncio.create_task(rig.ask(stream=True))
    await asyncio.gather(slow_backend.was_reached.wait(), other_backend.was_reached.wait())
    assert len(slow_backend.requests) == len(other_backend.requests) == 1
    call_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call_task
    assert slow_backend.closed_early == other_backend.closed_early == 1
    assert [runtime.load for runtime in rig.runtimes] == [0, 0]


def test_hedging_credit_is_bounded() -> None:
    hedge = HedgeBudget()
    for _ in range(10_000):
        hedge.add_credit(0.5)
    assert [hedge.try_spend_credit() for _ in range(12)] == [True] * 10 + [False] * 2


async def test_first_failure_is_raised_when_both_fail() -> None:
    async def fail_first() -> None:
        await asyncio.sleep(0.02)
        raise Overloaded("x", retry_after=7)

    async def fail_later() -> None:
        await asyncio.sleep(0.04)
        raise UnsupportedFeature("x")

    with pytest.raises(Overloaded):
        await race_calls(
            fail_first(), fail_later, delay_seconds=0.001, may_start_second=lambda: True
        )


async def test_denied_second_call_does_not_stop_the_first() -> None:
    first_answer = Answer(headers=(), body=b"first")

    async def answer_slowly() -> Answer:
        await asyncio.sleep(0.02)
        return first_answer

    async def start_no_call() -> None:
        return None

    assert (
        await race_calls(
            answer_slowly(), start_no_call, delay_seconds=0.001, may_start_second=lambda: True
        )
        is first_answer
    )


async def test_opening_breaker_does_not_stop_a_running_answer() -> None:
    slow_backend, other_backend = HeldBackend(), FakeBackend(raw_stream=[CHUNK, TOTAL, DONE])
    rig = Rig(slow_backend, other_backend, tariff=CHEAP, hedging=HedgingPolicy(share=1.0))
    record_first_token_times(rig, 0.005)

    # Both were up when they were chosen.
    async def open_breaker(
        tenant: str,
        max_wait_seconds: float,
        expected_seconds: float,
        *,
        is_background: bool = False,
    ) -> None:
        slow_backend.may_proceed.set()

    rig.runtimes[1].acquire = open_breaker  # type: ignore[method-assign]
    answer = await rig.ask(stream=True)
    await read_stream(answer)
    assert dict(answer.headers)[b"x-moyin-route"] == b"cheapest"
    assert [(entry.backend, entry.complete) for entry in rig.ledger] == [("b0", True)]


async def test_missing_file_does_not_open_the_breaker() -> None:
    missing_model_backend = FakeBackend(error=error_from_status(404, "file_1 not found", None))
    rig = Rig(missing_model_backend, runtime={"retries": 1})
    for _ in range(4):
        with pytest.raises(ModelNotFound) as exc_info:
            await rig.ask()
        assert "file_1" not in exc_info.value.message
    assert len(missing_model_backend.requests) == 4, "asking again does not help"
    assert rig.runtimes[0].is_ready
    assert {call.error for call in rig.telemetry.calls} == {"model_not_found"}


async def test_missing_model_falls_back() -> None:
    rig = Rig(FakeBackend(error=error_from_status(404, "", None)), FakeBackend(raw=RAW))
    answer = await rig.ask()
    assert dict(answer.headers)[b"x-moyin-route"] == b"fallback after model_not_found"


async def test_repeatedly_missing_model_is_tried_last() -> None:
    clock = Clock()
    missing_model_backend, able_backend = (
        FakeBackend(error=error_from_status(404, "", None)),
        FakeBackend(raw=RAW),
    )
    rig = Rig(missing_model_backend, able_backend, runtime={"clock": clock})
    routes = [dict((await rig.ask()).headers)[b"x-moyin-route"] for _ in range(5)]
    assert routes == [*[b"fallback after model_not_found"] * 3, b"cheapest", b"cheapest"]
    assert len(missing_model_backend.requests) == 3
    assert rig.runtimes[0].is_ready, "its other models are there"
    codec, context = OpenAICodec(), RoutingContext(request_id="r1", owner="ada", headers=())
    parsed_request = codec.parse(
        b'{"model": "auto", "messages": [{"role": "user", "content": "x"}]}'
    )
    best_candidate, other_candidate = rig.router.explain(codec, parsed_request, context).candidates
    assert (best_candidate.deployment.backend, other_candidate.deployment.backend) == ("b1", "b0")
    assert (
        explain_loss(other_candidate, best_candidate, 0.0)
        == "its back end reports that it lacks the model"
    )
    # It may be pulled at any time.
    clock.now += 2.1
    missing_model_backend.error, missing_model_backend.raw = None, RAW
    assert dict((await rig.ask()).headers)[b"x-moyin-backend"] == b"b0"
    rig.runtimes[1].is_up = False
    assert dict((await rig.ask()).headers)[b"x-moyin-route"] == b"free"


async def test_only_available_back_end_is_tried_despite_a_missing_model() -> None:
    missing_model_backend = FakeBackend(error=error_from_status(404, "", None))
    rig = Rig(missing_model_backend, FakeBackend(raw=RAW))
    for _ in range(3):
        await rig.ask()
    rig.runtimes[1].is_up = False
    with pytest.raises(ServiceUnavailable):
        await rig.ask()
    assert len(missing_model_backend.requests) == 4


async def test_invented_file_ids_do_not_demote_a_model() -> None:
    missing_model_backend = FakeBackend(error=error_from_status(404, "", None))
    rig = Rig(missing_model_backend, FakeBackend(raw=RAW))
    file_part = {"type": "file", "file": {"file_id": "made-up"}}
    for _ in range(5):
        await rig.ask(messages=[{"role": "user", "content": [file_part]}])
    assert len(missing_model_backend.requests) == 5


@pytest.mark.parametrize(("stated_seconds", "expected_seconds"), [(None, 1), (7, 7)])
async def test_error_of_an_overloaded_back_end_always_has_retry_after(
    stated_seconds: float | None, expected_seconds: float
) -> None:
    with pytest.raises(Overloaded) as exc_info:
        await Rig(FakeBackend(error=Overloaded("x", retry_after=stated_seconds))).ask()
    assert exc_info.value.retry_after == expected_seconds


async def test_missing_model_does_not_hide_a_temporary_failure() -> None:
    missing_model_backend, failing_backend = (
        FakeBackend(error=error_from_status(404, "", None)),
        FakeBackend(error=Overloaded("x")),
    )
    for backends in (
        (missing_model_backend, failing_backend),
        (failing_backend, missing_model_backend),
    ):
        with pytest.raises(Overloaded):
            await Rig(*backends).ask()


async def test_missing_model_does_not_hide_an_unavailable_back_end() -> None:
    """Expect 503 and not 404, because clients retry only after a 503."""
    rig = Rig(FakeBackend(error=error_from_status(404, "", None)), FakeBackend(raw=RAW))
    rig.runtimes[1].is_up = False
    with pytest.raises(ServiceUnavailable) as exc_info:
        await rig.ask()
    assert exc_info.value.retry_after
    rig.runtimes[1].is_up = True
    assert (await rig.ask()).body is RAW


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        BackendTimeout("x"),
        StreamInterrupted("x"),
        BackendUnavailable("the response is malformed", may_be_billed=True),
    ],
)
async def test_failed_calls_that_a_provider_may_bill_are_in_the_ledger(
    error: MoyinError, stream: bool
) -> None:
    rig = Rig(FakeBackend(error=error), tariff=CHEAP)
    with pytest.raises(type(error)):
        await rig.ask(stream=stream)
    (entry,) = rig.ledger
    assert (entry.complete, entry.error, entry.status) == (False, error.code, CallStatus.FAILED)
    assert entry.requested_model == "auto"
    assert entry.cost_usd == Decimal(entry.input_tokens) / 1_000_000 > 0
    assert [call.error for call in rig.telemetry.calls] == [error.code]


async def test_estimated_costs_of_failed_calls_are_not_charged_to_the_budget() -> None:
    failing_backend = FakeBackend(error=BackendUnavailable("x", may_be_billed=True))
    rig = Rig(failing_backend, FakeBackend(raw=RAW), tariff=CHEAP)
    recorded_costs: list[Decimal] = []
    budget = SimpleNamespace(
        limits_spending=True,
        reserve=AsyncMock(),
        record=lambda usd, tokens: recorded_costs.append(usd),
    )
    codec = OpenAICodec()
    parsed_request = codec.parse(rig.make_body())
    context = RoutingContext(request_id="r1", owner="ada", headers=(), budget=cast(Any, budget))
    await rig.router.answer(codec, parsed_request, context)
    costs = {entry.error: entry.cost_usd for entry in rig.ledger}
    assert len(failing_backend.requests) >= 1 and costs["backend_unavailable"] > 0
    assert recorded_costs == [costs[None]]


@pytest.mark.parametrize("error", [BackendUnavailable("x"), BackendRejected("x"), Overloaded("x")])
async def test_calls_that_failed_everywhere_have_one_row_without_cost(error: MoyinError) -> None:
    rig = Rig(FakeBackend(error=error), FakeBackend(error=error), tariff=CHEAP)
    with pytest.raises(type(error)):
        await rig.ask()
    (entry,) = rig.ledger
    assert (entry.status, entry.error) == (CallStatus.FAILED, error.code)
    assert (entry.cost_usd, entry.input_tokens, entry.output_tokens) == (0, 0, 0)
    assert entry.backend == ("b0" if isinstance(error, BackendRejected) else "b1")


async def test_failures_without_cost_before_an_answer_are_not_in_the_ledger() -> None:
    rig = Rig(FakeBackend(error=Overloaded("x")), FakeBackend(raw=RAW), tariff=CHEAP)
    await rig.ask()
    assert [(entry.backend, entry.complete) for entry in rig.ledger] == [("b1", True)]


async def test_requests_that_reach_no_back_end_are_not_in_the_ledger() -> None:
    rig = Rig(FakeBackend(), tariff=CHEAP)
    with pytest.raises(MoyinError):
        await rig.ask(max_tokens=10**6)
    assert rig.ledger == []


async def test_answers_that_are_no_json_are_charged() -> None:
    rig = Rig(FakeBackend(raw=b"<html>"), tariff=CHEAP)
    with pytest.raises(BackendUnavailable, match="not valid JSON"):
        await rig.ask()
    (entry,) = rig.ledger
    assert (entry.error, entry.output_tokens) == ("backend_unavailable", 0)
    assert entry.input_tokens > 0


async def test_interrupted_unsent_tool_call_is_charged() -> None:
    """The tokens cost money, although an Ollama client gets no part of an incomplete tool call."""
    tool_use = ToolUse(id="c", name="f", arguments='{"a": "some words"}')
    breaking_backend = FakeBackend(
        replace(make_text_response(), parts=(tool_use,)),
        error=StreamInterrupted("broke off"),
        chunks_before_error=3,
    )
    rig = Rig(breaking_backend)
    with pytest.raises(StreamInterrupted):
        await rig.ask(OllamaChatCodec(), stream=True, max_tokens=0)
    (entry,) = rig.ledger
    assert (entry.complete, entry.output_tokens > 0) == (False, True)


@pytest.mark.parametrize("text_before", ["", "Wait"])
@pytest.mark.parametrize("streams", [False, True])
async def test_broken_tool_call_is_charged_and_does_not_count_as_outage(
    streams: bool, text_before: str
) -> None:
    tool_use = ToolUse(id="c", name="f", arguments="{oops")
    broken_backend = FakeBackend(
        replace(make_text_response(), parts=(Text(text=text_before), tool_use))
    )
    rig = Rig(broken_backend)
    # Ollama's clients have another word for it.
    limit_members: dict[str, Any] = {"max_tokens": 0} if streams else {}
    for _ in range(5):
        if streams and text_before:
            answer = await rig.ask(OllamaChatCodec(), stream=True, **limit_members)
            assert b'"code":"invalid_tool_call"' in await read_stream(answer)
        else:
            codec = OllamaChatCodec() if streams else AnthropicCodec()
            with pytest.raises(InvalidToolCall):
                await rig.ask(codec, stream=streams, **limit_members)
    assert rig.runtimes[0].is_ready
    assert len(broken_backend.requests) == 5
    assert [entry.complete for entry in rig.ledger] == [False] * 5
    assert {entry.output_tokens > 0 for entry in rig.ledger} == {True}
