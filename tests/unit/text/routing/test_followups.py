from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest

from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.quality.estimator import Estimator, Signal
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.background_queue import BackgroundQueue
from moyin.text.routing.conversation import Conversation
from moyin.text.routing.decision import rank_candidates
from moyin.text.routing.followups import FollowUpDetector
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.usage_history import UsageHistory
from tests.unit.text.routing.factories import make_route
from tests.unit.text.routing.test_request_quality import HAIKU, SMALL, make_router

ASK = "Write a function that merges two sorted lists in Go"
U, A = "user", "assistant"


class RecordingLearning:
    def __init__(self) -> None:
        self.background = BackgroundQueue()
        self.signals: list[tuple[str, Signal]] = []

    def record_signal(self, owner: str, request_id: str, signal: Signal, *, p_good: float) -> None:
        assert 0 < p_good < 1
        self.signals.append((request_id, signal))


class FakeGateway:
    """A gateway whose small model answers every request that names no other model."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.learning = RecordingLearning()
        self.follow_ups = FollowUpDetector(cast(Any, self.learning), clock=lambda: self.now)
        self.fleet = make_router(SMALL, HAIKU).fleet
        self._count = 0

    def ask(
        self, *texts: str, model: str = "auto", key: str = "k", owner: str = "ada", role: str = U
    ) -> list[tuple[str, str]]:
        """Send a conversation; return request id and source of each new signal.

        The texts alternate between the user and the assistant.

        Args:
            key: the id of the caller's API key.
            role: ``tool`` to end the conversation with a tool's result.
        """
        self._count += 1
        roles = [U if index % 2 == 0 else A for index in range(len(texts))]
        messages: list[Any] = [
            {"role": speaker, "content": text} for speaker, text in zip(roles, texts, strict=True)
        ]
        if role == "tool":
            tool_call = {
                "id": "t",
                "type": "function",
                "function": {"name": "f", "arguments": "{}"},
            }
            messages.append({"role": A, "tool_calls": [tool_call]})
            messages.append({"role": "tool", "tool_call_id": "t", "content": "3"})
        parsed_request = OpenAICodec().parse(
            json.dumps({"model": model, "messages": messages}).encode()
        )
        context = RoutingContext(request_id=f"r{self._count}", owner=owner, headers=(), key_id=key)
        compiled_route = make_route(self.fleet, model)
        signals_before = len(self.learning.signals)
        self.is_repeat = self.follow_ups.detect(
            Conversation(context, parsed_request), compiled_route, self.now
        )
        if model == "auto":
            quality = RequestQuality(
                Estimator(),
                owner,
                parsed_request,
                parsed_request.derive_needs(),
                usd_per_bad_answer=0.01,
                floor=0.0,
            )
            candidates = rank_candidates(
                compiled_route,
                parsed_request.derive_needs(),
                UsageHistory(),
                always_weigh=True,
                quality=quality,
            )
            (small_candidate,) = (
                candidate for candidate in candidates if candidate.deployment is SMALL
            )
            self.follow_ups.remember_answer(
                Conversation(context, parsed_request), quality, small_candidate, self.now
            )
        self.now += 20
        return [
            (request_id, signal.source)
            for request_id, signal in self.learning.signals[signals_before:]
        ]


def test_repeated_request_counts_once() -> None:
    gateway = FakeGateway()
    assert gateway.ask(ASK) == []
    assert gateway.ask(ASK) == [("r1", "regenerated")]
    _, signal = gateway.learning.signals[0]
    assert (signal.model, signal.key, signal.question.kind) == ("smollm2-135m", "k", "code")
    assert signal.score < 0.5
    # The second answer is one of its own.
    assert gateway.ask(ASK) == [("r2", "regenerated")]


def test_repeat_within_two_seconds_is_no_follow_up() -> None:
    gateway = FakeGateway()
    gateway.ask(ASK)
    gateway.now -= 19
    assert gateway.ask(ASK) == []


def test_an_old_answer_is_forgotten() -> None:
    gateway = FakeGateway()
    gateway.ask(ASK)
    gateway.now += 300
    assert gateway.ask(ASK) == []


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("That's wrong, it drops the last element", "corrected"),
        ("It doesn't compile", "corrected"),
        ("Das stimmt nicht.", "corrected"),
        ("違います。", "corrected"),
        ("Now explain its running time", "continued"),
        ("What is wrong with my other function?", "continued"),
    ],
)
def test_next_message_is_evidence_about_the_answer(text: str, source: str) -> None:
    gateway = FakeGateway()
    gateway.ask(ASK)
    assert gateway.ask(ASK, "func merge() {}", text) == [("r1", source)]


def test_edited_message_is_evidence_against_the_first_answer() -> None:
    gateway = FakeGateway()
    gateway.ask(ASK)
    assert gateway.ask(ASK, "func", "Add tests") == [("r1", "continued")]
    assert gateway.ask(ASK, "func", "Add table tests for empty lists") == [("r2", "edited")]


def test_selecting_a_better_model_by_name_is_a_switch() -> None:
    gateway = FakeGateway()
    gateway.ask(ASK)
    assert gateway.ask(ASK, model="claude-haiku-5-5") == [("r1", "switched")]
    gateway.ask(ASK)
    assert gateway.ask(ASK, model="smollm2-135m") == [("r3", "regenerated")]


def test_other_tenants_and_keys_do_not_follow_up() -> None:
    gateway = FakeGateway()
    gateway.ask(ASK)
    assert gateway.ask(ASK, key="other") == []
    assert gateway.ask(ASK, owner="bob") == []


def test_short_greeting_is_no_repeated_request() -> None:
    gateway = FakeGateway()
    gateway.ask("hello")
    assert gateway.ask("hello") == []


def test_tool_result_is_no_user_message() -> None:
    gateway = FakeGateway()
    gateway.ask(ASK)
    assert gateway.ask(ASK, role="tool") == []
    assert gateway.ask(ASK, role="tool") == []


def test_remembered_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moyin.text.routing.followups._MAX_ANSWERS", 2)
    gateway = FakeGateway()
    for number in range(3):
        gateway.ask(f"{ASK}, variant {number}")
    assert gateway.ask(f"{ASK}, variant 2") == [("r3", "regenerated")]
    assert gateway.ask(f"{ASK}, variant 0") == []


def test_detect_reports_at_once_that_an_answer_did_not_help() -> None:
    gateway = FakeGateway()
    gateway.ask(ASK)
    assert not gateway.is_repeat
    gateway.ask(ASK)
    assert gateway.is_repeat
    gateway.ask(ASK, "func", "Add tests")
    assert not gateway.is_repeat, "who goes on was helped"


def test_requests_are_matched_only_while_answers_are_remembered() -> None:
    gateway = FakeGateway()
    compiled_route = replace(make_route(gateway.fleet), usd_per_bad_answer=0.01)
    assert not gateway.follow_ups.may_match(compiled_route), (
        "no answer is known, and no other replica"
    )
    gateway.learning.background._tasks.append(cast(Any, None))
    assert gateway.follow_ups.may_match(compiled_route), "an answer may be among what waits"
    gateway.learning.background._tasks.clear()
    shared_answers: Any = object()
    detector = FollowUpDetector(cast(Any, gateway.learning), shared_answers=shared_answers)
    assert detector.may_match(compiled_route)
    assert not detector.may_match(replace(compiled_route, usd_per_bad_answer=0.0))
    gateway.ask(ASK)
    assert gateway.follow_ups.may_match(compiled_route)
