"""Tests `OperationRouter`, the router of all calls other than chats, with fake back ends.

The tests cover the choice of the back end, failures, streams, billed units and budgets.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest

from moyin.domain.backend import OpenRequest
from moyin.domain.money import FREE_TARIFF, GpuRate, create_flat_tariff
from moyin.domain.operation import Operation, UnitRates
from moyin.errors import (
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    BudgetExceeded,
    ModelNotAllowed,
    ModelNotFound,
    OperationNotConfigured,
    ServiceUnavailable,
    StreamInterrupted,
    UnsupportedFeature,
)
from moyin.store.usage import CANCELLED, CallStatus
from moyin.testing.fakes import RecordingTelemetry
from moyin.text.protocol.openai.operations import (
    OperationRequest,
    parse_moderation,
    parse_rerank,
    parse_speech,
)
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.catalog import Alias, ModelDeployment, TenantPolicy
from moyin.text.routing.operation_router import OperationRouter
from moyin.text.routing.routed_call import CallAccounting
from tests.unit.text.routing.factories import make_deployment, make_fleet
from tests.unit.text.routing.router_rig import RecordedLedger

MODERATED = {"id": "m", "model": "x", "results": [{"flagged": False}]}


@dataclass
class FakeResponse:
    """A response with ``pieces``; a piece that is an exception is raised."""

    pieces: Sequence[bytes | BaseException]
    content_type: str = "application/json"
    is_closed: bool = False

    @property
    def media_type(self) -> str:
        return self.content_type.partition(";")[0]

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.iterate_pieces()])

    async def iterate_pieces(self) -> AsyncGenerator[bytes, None]:
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeOperations:
    """A back end that answers with the next of ``answers``, and repeats the last one."""

    answers: list[FakeResponse | BaseException]
    requests: list[OpenRequest] = field(default_factory=list)

    async def open(self, request: OpenRequest) -> FakeResponse:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


@dataclass
class FakeBudget:
    """A budget that records what is reserved and spent."""

    reserved: Decimal = Decimal(-1)
    spent: Decimal = Decimal(0)
    tokens: int = 0
    error: Exception | None = None
    limits_spending: bool = True

    async def reserve(self, usd: Decimal, tokens: int) -> None:
        self.reserved, self.tokens = usd, tokens
        if self.error is not None:
            raise self.error

    def record(self, usd: Decimal, tokens: int) -> None:
        self.spent += usd


class Rig:
    """An `OperationRouter` whose back ends send the responses that a test has set."""

    def __init__(
        self, *deployments: ModelDeployment, retries: int = 0, **fleet_settings: Any
    ) -> None:
        self.fleet = make_fleet(deployments, **fleet_settings)
        self.ledger, self.telemetry = RecordedLedger(), RecordingTelemetry()
        for runtime in self.fleet.runtimes.values():
            runtime.retries = retries
        accounting = CallAccounting(
            ledger=self.ledger,
            telemetry=self.telemetry,
            record_usage=lambda *_: None,
            estimate_prompt_tokens=lambda *_: 0,
        )
        self.router = OperationRouter(lambda: self.fleet, accounting)

    def set_responses(self, name: str, *responses: FakeResponse | BaseException) -> FakeOperations:
        operations = FakeOperations(list(responses))
        self.fleet.runtimes[name].operations = operations
        return operations

    async def call(
        self, request: OperationRequest, *, budget: FakeBudget | None = None, **headers: str
    ) -> Answer:
        context = RoutingContext(
            request_id="r1",
            owner="ada",
            headers=[(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()],
            budget=budget,
        )
        return await self.router.answer(request, context)


def make_moderation_deployment(name: str, price: int = 0, **fields: Any) -> ModelDeployment:
    tariff = create_flat_tariff(Decimal(price), Decimal(price)) if price else FREE_TARIFF
    fields = {"model": "moderator", "operations": (Operation.MODERATION,), **fields}
    return make_deployment(name, tariff, **fields)


def make_speech_deployment(name: str = "a", **fields: Any) -> ModelDeployment:
    unit_rates = UnitRates(characters=Decimal(15))
    fields = {"model": "tts", "operations": (Operation.SPEECH,), "unit_rates": unit_rates, **fields}
    return make_deployment(name, **fields)


def make_json_response(body: Any = MODERATED) -> FakeResponse:
    return FakeResponse([json.dumps(body).encode()])


def make_moderation_request(**members: Any) -> OperationRequest:
    return parse_moderation(
        json.dumps({"input": "Hello", "model": "moderator", **members}).encode()
    )


def make_speech_request(**members: Any) -> OperationRequest:
    body = {"input": "Hello", "model": "tts", "voice": "alloy", **members}
    return parse_speech(json.dumps(body).encode())


async def read_stream(answer: Answer) -> bytes:
    assert answer.stream is not None
    return b"".join([piece async for piece in answer.stream])


async def test_an_answer_is_recorded_with_its_units() -> None:
    rig = Rig(make_moderation_deployment("a"))
    upstream = rig.set_responses("a", make_json_response())
    answer = await rig.call(make_moderation_request(input=["one", "two"]))
    assert json.loads(answer.body) == MODERATED
    headers = dict(answer.headers)
    assert headers[b"x-moyin-route"] == b"free" and headers[b"x-moyin-backend"] == b"a"
    [request] = upstream.requests
    body = request.get_content()
    assert isinstance(body, bytes) and len(body) == request.length
    assert json.loads(body) == {"model": "x", "input": ["one", "two"]}
    [entry] = rig.ledger
    assert (entry.operation, entry.unit, entry.quantity) == ("moderation", "inputs", 2)
    assert (entry.requested_model, entry.status) == ("moderator", CallStatus.COMPLETE)
    assert rig.telemetry.calls[0].operation == "moderation"


async def test_error_without_a_suitable_model_explains_the_configuration() -> None:
    rig = Rig(make_speech_deployment())
    with pytest.raises(OperationNotConfigured, match=r"abilities: \[moderation\]") as exc_info:
        await rig.call(make_moderation_request(model="nothing"))
    assert exc_info.value.field == "model"


@pytest.mark.parametrize(
    ("model", "error_class"), [("tts", UnsupportedFeature), ("nothing", ModelNotFound)]
)
async def test_models_without_the_ability_are_refused(
    model: str, error_class: type[Exception]
) -> None:
    rig = Rig(make_moderation_deployment("a"), make_speech_deployment("b"))
    with pytest.raises(error_class):
        await rig.call(make_moderation_request(model=model))


async def test_aliases_and_auto_choose_the_cheapest() -> None:
    aliases = {"check": Alias(models=("moderator",))}
    rig = Rig(
        make_speech_deployment("tts"),
        make_moderation_deployment("dear", 2),
        make_moderation_deployment("cheap", 1),
        aliases=aliases,
    )
    for name in ("dear", "cheap"):
        rig.set_responses(name, make_json_response({**MODERATED, "usage": {"total_tokens": 10}}))
    for model in ("check", "auto"):
        answer = await rig.call(make_moderation_request(model=model))
        assert (b"x-moyin-backend", b"dear") not in answer.headers
    assert [entry.backend for entry in rig.ledger] == ["cheap", "cheap"]
    assert rig.ledger[0].input_tokens == 10 and rig.ledger[0].cost_usd == Decimal("0.00001")


async def test_tenant_policies_apply_to_operations() -> None:
    on_premises_model = replace(make_moderation_deployment("a"), residency="on-premises")
    rig = Rig(on_premises_model, policies={"ada": TenantPolicy(residency=frozenset({"cloud"}))})
    with pytest.raises(ModelNotAllowed):
        await rig.call(make_moderation_request())
    rig = Rig(
        make_moderation_deployment("a"), policies={"ada": TenantPolicy(names=frozenset({"other"}))}
    )
    with pytest.raises(ModelNotAllowed):
        await rig.call(make_moderation_request())


async def test_error_names_a_missing_key() -> None:
    with pytest.raises(ServiceUnavailable, match="set A_KEY for 'a'"):
        await Rig(make_moderation_deployment("a", configured=False)).call(make_moderation_request())


async def test_failures_are_retried_and_then_another_back_end_is_called() -> None:
    rig = Rig(
        make_moderation_deployment("first"), make_moderation_deployment("second", 1), retries=1
    )
    first_backend = rig.set_responses("first", BackendUnavailable("down"))
    rig.set_responses("second", make_json_response())
    answer = await rig.call(make_moderation_request())
    assert len(first_backend.requests) == 2
    assert dict(answer.headers)[b"x-moyin-route"] == b"fallback after backend_unavailable"
    assert [(call.backend, call.error) for call in rig.telemetry.calls] == [
        ("first", "backend_unavailable"),
        ("first", "backend_unavailable"),
        ("second", None),
    ]
    # A call that failed before the back end did anything costs nothing.
    assert [entry.backend for entry in rig.ledger] == ["second"]


async def test_a_back_end_that_fails_often_is_not_called() -> None:
    rig = Rig(make_moderation_deployment("a"))
    upstream = rig.set_responses("a", BackendUnavailable("down"))
    for _ in range(5):
        with pytest.raises((BackendUnavailable, ServiceUnavailable)):
            await rig.call(make_moderation_request())
    assert len(upstream.requests) == 3
    assert not rig.fleet.runtimes["a"].breaker.ready


async def test_a_refused_request_is_not_sent_to_others() -> None:
    rig = Rig(make_moderation_deployment("first"), make_moderation_deployment("second", 1))
    rig.set_responses("first", BackendRejected("too long"))
    second_backend = rig.set_responses("second", make_json_response())
    with pytest.raises(BackendRejected):
        await rig.call(make_moderation_request())
    assert not second_backend.requests


@pytest.mark.parametrize(
    "response",
    [
        make_json_response({"error": {"message": "no"}}),
        make_json_response({"id": "m"}),
        make_json_response([MODERATED]),
        FakeResponse([b"{"]),
        FakeResponse([b"<html>"], "text/html"),
        FakeResponse([json.dumps(MODERATED).encode()], "audio/mpeg"),
    ],
)
async def test_unusable_answers_are_failures(response: FakeResponse) -> None:
    rig = Rig(make_moderation_deployment("a"))
    rig.set_responses("a", response)
    with pytest.raises(BackendUnavailable):
        await rig.call(make_moderation_request())
    assert response.is_closed


async def test_the_highest_cost_is_reserved_and_the_real_one_settled() -> None:
    rig = Rig(
        make_speech_deployment("a"),
        make_speech_deployment("b", unit_rates=UnitRates(characters=Decimal(30))),
    )
    rig.set_responses("a", FakeResponse([b"audio"], "audio/mpeg"))
    budget = FakeBudget()
    answer = await rig.call(make_speech_request(input="x" * 1000), budget=budget)
    assert budget.reserved == Decimal("0.03")
    assert budget.spent == 0
    assert await read_stream(answer) == b"audio"
    assert budget.spent == Decimal("0.015")
    assert dict(answer.headers)[b"x-moyin-cost-usd"] == b"0.015"
    assert (rig.ledger[0].unit, rig.ledger[0].quantity) == ("characters", 1000)


async def test_nothing_is_called_beyond_the_budget() -> None:
    rig = Rig(make_speech_deployment())
    upstream = rig.set_responses("a", FakeResponse([b"audio"], "audio/mpeg"))
    with pytest.raises(BudgetExceeded):
        await rig.call(make_speech_request(), budget=FakeBudget(error=BudgetExceeded("spent")))
    assert not upstream.requests


async def test_audio_that_breaks_off_ends_the_connection_and_is_recorded() -> None:
    rig = Rig(make_speech_deployment())
    rig.set_responses("a", FakeResponse([b"audio", StreamInterrupted("cut")], "audio/mpeg"))
    answer = await rig.call(make_speech_request())
    with pytest.raises(StreamInterrupted):
        await read_stream(answer)
    [entry] = rig.ledger
    assert (entry.error, entry.status) == ("stream_interrupted", CallStatus.FAILED)
    assert rig.fleet.runtimes["a"].load == 0


async def test_events_that_break_off_end_with_an_error_event() -> None:
    rig = Rig(make_speech_deployment())
    event = b'data: {"type": "speech.audio.delta"}\n\ndata: {"ty'
    rig.set_responses("a", FakeResponse([event, StreamInterrupted("cut")], "text/event-stream"))
    body = await read_stream(await rig.call(make_speech_request(stream_format="sse")))
    first_event, _, error_event, cost_comment, _ = body.split(b"\n\n")
    assert json.loads(error_event.removeprefix(b"data: "))["error"]["code"] == "stream_interrupted"
    assert first_event == b'data: {"type": "speech.audio.delta"}' and cost_comment.startswith(
        b": x-moyin-cost"
    )


async def test_tokens_in_the_last_event_are_billed() -> None:
    tariff = create_flat_tariff(Decimal(1), Decimal(10))
    rig = Rig(make_speech_deployment(tariff=tariff, unit_rates=UnitRates()))
    event = b'data: {"type": "speech.audio.done", "usage": {"input_tokens": 7, "output_tokens": 2}}'
    rig.set_responses("a", FakeResponse([event[:30], event[30:] + b"\n\n"], "text/event-stream"))
    await read_stream(await rig.call(make_speech_request(stream_format="sse")))
    assert rig.ledger[0].cost_usd == Decimal("0.000027")


@pytest.mark.parametrize("breaks_off", [False, True])
async def test_a_stream_that_ends_before_its_tokens_are_reported_costs_at_most_the_reservation(
    breaks_off: bool,
) -> None:
    tariff = create_flat_tariff(Decimal(1), Decimal(10))
    rig = Rig(make_speech_deployment(tariff=tariff, unit_rates=UnitRates()))
    event = b'data: {"type": "speech.audio.delta"}\n\n'
    rig.set_responses("a", FakeResponse([event, StreamInterrupted("cut")], "text/event-stream"))
    budget = FakeBudget()
    answer = await rig.call(make_speech_request(stream_format="sse"), budget=budget)
    assert answer.stream is not None
    if breaks_off:
        await read_stream(answer)
    else:
        await anext(aiter(answer.stream))
        await answer.stream.aclose()
    assert 0 < budget.spent == budget.reserved
    assert [entry.cost_usd for entry in rig.ledger] == [budget.reserved]


async def test_timed_out_call_is_recorded_with_its_reserved_cost() -> None:
    rig = Rig(make_moderation_deployment("a", 1))
    rig.set_responses("a", BackendTimeout("late"))
    budget = FakeBudget()
    with pytest.raises(BackendTimeout):
        await rig.call(make_moderation_request(), budget=budget)
    assert [entry.cost_usd for entry in rig.ledger] == [budget.reserved]
    assert budget.spent == 0, "the estimate of a failed call is no charge"


async def test_audio_costs_no_tokens_if_the_client_leaves() -> None:
    tariff = create_flat_tariff(Decimal(1), Decimal(10))
    rig = Rig(make_speech_deployment(tariff=tariff, unit_rates=UnitRates()))
    rig.set_responses("a", FakeResponse([b"audio", b"more"], "audio/mpeg"))
    await (await rig.call(make_speech_request())).close()
    assert [entry.cost_usd for entry in rig.ledger] == [0]


async def test_a_client_that_leaves_during_audio_frees_the_slot() -> None:
    rig = Rig(make_speech_deployment())
    rig.set_responses("a", FakeResponse([b"audio", b"more"], "audio/mpeg"))
    answer = await rig.call(make_speech_request())
    assert answer.stream is not None
    assert rig.fleet.runtimes["a"].load == 1
    await anext(aiter(answer.stream))
    await answer.stream.aclose()
    assert rig.fleet.runtimes["a"].load == 0
    assert rig.ledger[0].error == CANCELLED


async def test_a_stream_that_is_closed_unread_frees_the_slot() -> None:
    rig = Rig(make_speech_deployment())
    rig.set_responses("a", FakeResponse([b"audio", b"more"], "audio/mpeg"))
    answer = await rig.call(make_speech_request())
    await answer.close()
    assert rig.fleet.runtimes["a"].load == 0
    assert [entry.error for entry in rig.ledger] == [CANCELLED]


async def test_a_cancelled_call_is_recorded() -> None:
    rig, budget = Rig(make_moderation_deployment("a", 1)), FakeBudget()
    has_begun = asyncio.Event()

    class SilentOperations(FakeOperations):
        async def open(self, request: OpenRequest) -> FakeResponse:
            has_begun.set()
            await asyncio.Event().wait()
            raise AssertionError

    rig.fleet.runtimes["a"].operations = SilentOperations([])
    call_task = asyncio.create_task(rig.call(make_moderation_request(), budget=budget))
    await has_begun.wait()
    call_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call_task
    assert 0 < budget.spent == budget.reserved
    assert [entry.error for entry in rig.ledger] == [CANCELLED]
    assert rig.fleet.runtimes["a"].load == 0


async def test_gpu_time_is_charged_by_the_duration() -> None:
    gpu_rate = GpuRate(usd_per_hour=Decimal(3600))
    rig = Rig(make_moderation_deployment("a", gpu=gpu_rate))
    rig.set_responses("a", make_json_response())
    budget = FakeBudget()
    await rig.call(make_moderation_request(), budget=budget, x_moyin_timeout="2")
    assert budget.reserved == 2
    assert 0 < budget.spent < 2


async def test_searches_of_cohere_are_billed_as_reported() -> None:
    unit_rates = UnitRates(searches=Decimal(2))
    rig = Rig(make_deployment("a", operations=(Operation.RERANK,), unit_rates=unit_rates))
    meta = {"billed_units": {"search_units": 2.0}}
    rerank_results = [{"index": 1, "relevance_score": 0.5}]
    rig.set_responses("a", make_json_response({"results": rerank_results, "meta": meta}))
    documents = ["a", {"text": "b"}]
    request = parse_rerank(
        json.dumps(
            {
                "model": "a-model",
                "query": "q",
                "documents": documents,
                "top_n": 1,
                "return_documents": True,
            }
        ).encode()
    )
    answer = json.loads((await rig.call(request)).body)
    assert answer["results"] == [{**rerank_results[0], "document": {"text": "b"}}]
    assert rig.ledger[0].quantity == 2 and rig.ledger[0].cost_usd == Decimal("0.004")


@pytest.mark.parametrize(
    "rerank_results", [[{"index": 2, "relevance_score": 1}], [{"index": 0}], {"index": 0}, [0]]
)
async def test_rerank_results_without_a_valid_document_are_unusable(rerank_results: Any) -> None:
    rig = Rig(make_deployment("a", operations=(Operation.RERANK,)))
    rig.set_responses("a", make_json_response({"results": rerank_results}))
    body = {"model": "a-model", "query": "q", "documents": ["a", "b"]}
    with pytest.raises(BackendUnavailable):
        await rig.call(parse_rerank(json.dumps(body).encode()))
