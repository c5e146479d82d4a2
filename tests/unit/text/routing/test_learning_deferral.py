"""Tests that learning adds almost no work before a request is answered."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.background_queue import BackgroundQueue
from moyin.text.routing.catalog import RescuePolicy
from moyin.text.routing.fair_sampling import FairSampler
from moyin.text.routing.followups import FollowUpDetector
from moyin.text.routing.rescue import find_answer_fault
from moyin.text.routing.router import Router
from tests.unit.text.routing.router_rig import RecordedLedger
from tests.unit.text.routing.test_request_quality import HAIKU, SMALL, SORT, make_router
from tests.unit.text.routing.test_rescue import FORMAT
from tests.unit.text.routing.test_rescue_streams import RecordingLearning, StreamGateway


class DecisionRecordingLearning(RecordingLearning):
    """A `RecordingLearning` that also records the ids of requests with a routing decision."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.background = BackgroundQueue(
            FairSampler(rate, clock=lambda: 50.0, draw_random=lambda: 0.999)
        )
        self.decisions: list[str] = []

    def record_decision(self, owner: str, request_id: str, *_: Any) -> None:
        self.decisions.append(request_id)


class FakeGateway:
    def __init__(self, rate: float = 100, **rules: Any) -> None:
        self.learning = DecisionRecordingLearning(rate)
        learning, shared_answers = cast(Any, self.learning), cast(Any, EmptySharedAnswers())
        self.follow_ups = FollowUpDetector(learning, shared_answers=shared_answers)
        fleet = make_router(SMALL, HAIKU, **rules).fleet
        for backend_runtime in fleet.runtimes.values():
            backend_runtime.pass_through = None
        self.router = Router(
            fleet,
            RecordedLedger(),
            estimator=Estimator(),
            learning=learning,
            follow_ups=self.follow_ups,
        )

    async def ask(self, model: str = "auto", request_id: str = "r", **members: Any) -> Any:
        codec = OpenAICodec()
        prompt = f"{SORT}, with tests for empty lists and a line on each"
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **members}
        context = RoutingContext(request_id=request_id, owner="ada", headers=(), key_id="k")
        return await self.router.answer(codec, codec.parse(json.dumps(body).encode()), context)


class EmptySharedAnswers:
    """A stand-in for the shared store of answers; it has no answers of other replicas."""

    def queue_query(self, *_: Any) -> bool:
        return False

    def queue_answer(self, *_: Any) -> bool:
        return False


def forbid_reading(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Fail the test if the router reads a conversation, checks an answer, or calls one of ``names``."""

    def fail_on_call(*_: Any, **__: Any) -> None:
        raise AssertionError("not allowed on the request path")

    for name in (
        "moyin.text.routing.conversation._read_user_messages",
        "moyin.text.routing.rescue.find_fault",
        *names,
    ):
        monkeypatch.setattr(name, fail_on_call)


async def test_named_model_causes_no_learning_work_on_the_request_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = FakeGateway()
    with monkeypatch.context() as patch:
        forbid_reading(patch, "moyin.text.routing.request_quality.build_question")
        await gateway.ask("claude-haiku-5-5")
    assert len(gateway.learning.background) == 1
    gateway.learning.background.run_tasks()
    assert (gateway.learning.background.failed, gateway.learning.decisions) == (0, [])


async def test_learning_is_deferred_to_the_background_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = FakeGateway()
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        await gateway.ask()
    assert gateway.learning.decisions == []
    with monkeypatch.context() as later_patch:
        later_patch.setattr(
            "moyin.text.routing.request_quality.build_question", None
        )  # it is known from the choice
        gateway.learning.background.run_tasks()
    assert gateway.learning.background.failed == 0
    assert gateway.learning.decisions == ["r"]
    assert len(gateway.follow_ups._answers) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_most_requests_of_a_flood_are_not_recorded(stream: bool) -> None:
    gateway = FakeGateway(rate=1)
    for number in range(10):
        answer = await gateway.ask(request_id=f"r{number}", stream=stream)
        if stream:
            transcript = answer.stream.transcript
            assert (transcript is not None) is (number < 1)
            await answer.stream.aclose()
    gateway.learning.background.run_tasks()
    sampler = gateway.learning.background.sampler
    assert (sampler.accepted, sampler.skipped) == (1, 9)
    assert len(gateway.learning.decisions) == 1


async def test_every_answer_is_remembered_where_trials_are_enabled() -> None:
    gateway = FakeGateway(rate=0, explore=0.25)
    await gateway.ask()
    gateway.learning.background.run_tasks()
    assert gateway.learning.decisions == []
    assert len(gateway.follow_ups._answers) == 1


async def test_rescue_is_recorded_even_in_a_flood() -> None:
    gateway = StreamGateway()
    learning: Any = DecisionRecordingLearning(rate=0)
    gateway.router = Router(
        gateway.router.fleet,
        RecordedLedger(),
        estimator=gateway.router._estimator,
        learning=learning,
    )
    model, route, _ = await gateway.ask(response_format=FORMAT)
    assert (model, route.partition(";")[0]) == ("claude-haiku-5-5", "rescue after json")
    learning.background.run_tasks()
    assert (learning.decisions, learning.signals) == (["r1"], [])


async def test_answer_without_a_better_model_is_checked_in_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = StreamGateway(rescue=RescuePolicy.OFF)
    checked_requests: list[str] = []

    def record_check(*arguments: Any) -> Any:
        checked_requests.append("r")
        return find_answer_fault(*arguments)

    monkeypatch.setattr("moyin.text.routing.answer_review.find_answer_fault", record_check)
    await gateway.ask(response_format=FORMAT)
    assert (checked_requests, gateway.learning.signals) == ([], [])
    gateway.learning.background.run_tasks()
    assert gateway.learning.signals == [("smollm2-135m", "checked", "json", 0.0)]


async def test_nothing_is_learned_where_bad_answers_cost_nothing() -> None:
    gateway_without_price = FakeGateway(usd_per_bad_answer=0.0)
    gateway_without_price.follow_ups._shared_answers = None
    await gateway_without_price.ask()
    assert (
        gateway_without_price.learning.background.sampler.accepted,
        len(gateway_without_price.learning.background),
    ) == (0, 0)


async def test_a_failure_in_learning_does_not_fail_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rules in ({}, {"explore": 0.25}):
        gateway = FakeGateway(**rules)
        with monkeypatch.context() as patch:
            patch.setattr("moyin.text.routing.conversation._read_user_messages", None)
            assert await gateway.ask()
            gateway.learning.background.run_tasks()
        assert gateway.learning.background.failed == 1
