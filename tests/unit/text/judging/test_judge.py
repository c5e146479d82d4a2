"""Tests the steps of a comparison: which models are called, who pays, and what is learned."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from moyin.domain.chat import ChatRequest, StopReason
from moyin.domain.serialization import decode, encode
from moyin.errors import BackendRejected, BackendTimeout, BackendUnavailable, Overloaded
from moyin.system.slots import Slots
from moyin.testing.backends import make_text_response
from moyin.text.judging.comparison import Comparison
from moyin.text.judging.rules import JUDGE_OWNER
from moyin.text.judging.verdict import Outcome, Verdict
from moyin.text.routing.catalog import Alias, TenantPolicy
from tests.unit.text.judging.judge_rig import HAIKU, OPUS, RULES, SMALL, JudgeRig

BETTER_FIRST = json.dumps({"reason": "x", "first": 4, "second": 1})


def set_answer_order(rig: JudgeRig, comparison_id: str, swapped: bool) -> None:
    """Set whether the judge sees the answers of a comparison in swapped order.

    The order is otherwise random.
    """
    comparison = decode(Comparison, rig.store.stored[comparison_id])
    rig.store.stored[comparison_id] = encode(replace(comparison, swapped=swapped))


async def test_comparison_gives_one_signal_per_model() -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    set_answer_order(rig, comparison_id, True)
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.ANSWERED
    verdict = await rig.judge.fetch_verdict(comparison_id)
    assert verdict == Verdict(given=0.25, other=1.0)
    assert await rig.judge.record_verdict(comparison_id, verdict)
    assert await rig.judge.record_verdict(comparison_id, verdict)
    rows = {row.model: row for row in rig.signals.rows.values()}
    assert {model: row.score for model, row in rows.items()} == {SMALL: 0.25, HAIKU: 1.0}
    assert {row.owner for row in rows.values()} == {"ada"}
    assert {row.source for row in rows.values()} == {"judge"}
    assert {row.weight for row in rows.values()} == {0.5}
    assert rows[SMALL].request_id == "r1"
    assert all(row.p_good is not None and row.comment is None for row in rows.values())
    assert "merge" not in str([row.question for row in rows.values()])
    await rig.judge.delete_comparison(comparison_id)
    await rig.judge.delete_comparison(comparison_id)
    assert (rig.store.stored, rig.store.second_answers) == ({}, {})


async def test_the_judge_sees_both_answers_and_no_model_name() -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    set_answer_order(rig, comparison_id, False)
    await rig.judge.fetch_second_answer(comparison_id)
    await rig.judge.fetch_verdict(comparison_id)
    (judge_request,) = rig.backends[OPUS].requests
    assert isinstance(judge_request, ChatRequest)
    request_text = str(judge_request)
    assert "mine" in request_text and "a better one" in request_text
    assert not any(model in request_text for model in (SMALL, HAIKU))
    assert judge_request.output is not None and judge_request.output.schema is not None


async def test_the_operator_pays_and_not_the_tenant() -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    owners_before = [entry.owner for entry in rig.ledger]
    await rig.judge.fetch_second_answer(comparison_id)
    await rig.judge.fetch_verdict(comparison_id)
    assert owners_before == ["ada"]
    booked_entries = rig.ledger[1:]
    assert [(entry.owner, entry.model) for entry in booked_entries] == [
        (JUDGE_OWNER, HAIKU),
        (JUDGE_OWNER, OPUS),
    ]
    assert (
        rig.budget.booked_usd == sum((entry.cost_usd for entry in booked_entries), Decimal(0)) > 0
    )
    comparison = decode(Comparison, rig.store.stored[comparison_id])
    # Each call sets its worst case aside, no more than was foreseen, and gives the rest back.
    assert rig.budget.booked_usd < sum(rig.budget.reserved) <= comparison.most_usd
    assert rig.budget.released == 2


async def test_the_judges_own_calls_are_not_sampled() -> None:
    rig = JudgeRig(BETTER_FIRST, rules=replace(RULES, model="bench"), aliases={
        "bench": Alias(models=(OPUS,))
    })  # fmt: skip
    comparison_id = await rig.start_and_get_id()
    await rig.judge.fetch_second_answer(comparison_id)
    await rig.judge.fetch_verdict(comparison_id)
    assert rig.sampler.samples.empty()
    assert rig.backends[OPUS].requests


async def test_stored_second_answer_is_not_requested_again() -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.ANSWERED
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.ANSWERED
    assert len(rig.backends[HAIKU].requests) == 1


@pytest.mark.parametrize("verdict_text", ["The first.", "", '{"first": 9}'])
async def test_unparsable_verdict_teaches_nothing(verdict_text: str) -> None:
    rig = JudgeRig(verdict_text)
    comparison_id = await rig.start_and_get_id()
    await rig.judge.fetch_second_answer(comparison_id)
    assert await rig.judge.fetch_verdict(comparison_id) is Outcome.UNPARSABLE
    assert rig.signals.rows == {}


async def test_answer_cut_by_our_own_limit_is_not_judged() -> None:
    rig = JudgeRig(BETTER_FIRST, rules=replace(RULES, max_answer_tokens=20))
    cut_answer = replace(make_text_response("once upon a"), stop=StopReason.MAX_TOKENS)
    rig.backends[HAIKU].answer = cut_answer
    comparison_id = await rig.start_and_get_id()
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.TRUNCATED
    (chat_request,) = rig.backends[HAIKU].requests
    assert isinstance(chat_request, ChatRequest) and chat_request.max_tokens == 20
    # Under the client's own limit both were cut alike.
    limited_id = await rig.start_and_get_id(request_id="r2", max_tokens=10)
    assert await rig.judge.fetch_second_answer(limited_id) is Outcome.ANSWERED


async def test_missing_comparison_counts_as_expired() -> None:
    rig = JudgeRig(BETTER_FIRST)
    assert await rig.judge.fetch_second_answer("judge-none") is Outcome.EXPIRED
    assert await rig.judge.fetch_verdict("judge-none") is Outcome.EXPIRED
    assert not await rig.judge.record_verdict("judge-none", Verdict(given=1.0, other=0.0))


async def test_comparison_in_another_format_counts_as_expired() -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    rig.store.stored[comparison_id] = b'{"id": "x", "conversation": "codename Bluebird"}'
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.EXPIRED
    rig.store.second_answers[comparison_id] = "an answer"
    assert await rig.judge.fetch_verdict(comparison_id) is Outcome.EXPIRED
    assert not await rig.judge.record_verdict(comparison_id, Verdict(given=1.0, other=0.0))


HOME = frozenset({"on-premises"})


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        (TenantPolicy(residency=HOME), Outcome.RESIDENCY),
        (TenantPolicy(is_judged=False), Outcome.OPTED_OUT),
    ],
)
async def test_tightened_policy_applies_to_running_comparisons(
    policy: TenantPolicy, outcome: Outcome
) -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    policies = {**rig.policies, "ada": policy}
    rig.router.fleet = replace(rig.router.fleet, policies=policies)
    assert await rig.judge.fetch_second_answer(comparison_id) is outcome
    rig.store.second_answers[comparison_id] = "an answer from before"
    assert await rig.judge.fetch_verdict(comparison_id) is outcome
    assert rig.backends[HAIKU].requests == rig.backends[OPUS].requests == []


async def test_judge_that_is_off_calls_no_model() -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    rig.judge.rules = None
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.DISABLED
    assert rig.backends[HAIKU].requests == []


async def test_judge_without_budget_calls_no_model() -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    rig.budget.left = Decimal(0)
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.BUDGET
    assert rig.backends[HAIKU].requests == []


async def test_tenants_have_priority_over_the_judge() -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    slots = rig.runtimes["haiku"].slots = Slots(1, max_waiting=1, patience=1)
    assert slots.try_acquire("ada")
    with pytest.raises(Overloaded) as exc_info:
        await rig.judge.fetch_second_answer(comparison_id)
    assert exc_info.value.retryable and exc_info.value.retry_after
    slots.release("ada")
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.ANSWERED


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(BackendUnavailable("away"), None), (BackendRejected("no"), Outcome.FAILED)],
)
async def test_retryable_errors_are_retried(error: Any, outcome: Outcome | None) -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    rig.backends[HAIKU].error = error
    if outcome is None:
        with pytest.raises(BackendUnavailable):
            await rig.judge.fetch_second_answer(comparison_id)
    else:
        assert await rig.judge.fetch_second_answer(comparison_id) is outcome
    assert rig.budget.released == 1


@pytest.mark.parametrize(
    "raw_response", [b'{"choices": [], "usage": {"prompt_tokens": 9}}', b'{"choices": [{}]}']
)
async def test_malformed_answer_is_paid_for_once(raw_response: bytes) -> None:
    """The comparison fails at once, because each of its retries would have to be paid, too."""
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    for backend_name, model in (("haiku", HAIKU), ("opus", OPUS)):
        rig.backends[model].raw = raw_response
        rig.runtimes[backend_name].pass_through = rig.backends[model]
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.FAILED
    rig.store.second_answers[comparison_id] = "an answer"
    assert await rig.judge.fetch_verdict(comparison_id) is Outcome.FAILED


async def test_timed_out_call_is_not_repeated() -> None:
    """The comparison fails at once, because providers also charge for calls that timed out."""
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    rig.backends[HAIKU].error = BackendTimeout("too slow")
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.FAILED


async def test_judge_takes_no_slot_from_a_single_tenant() -> None:
    """The judge is not counted as a tenant, so the only tenant may use the last slot.

    The last slot is otherwise reserved for another active tenant.
    """
    rig = JudgeRig(BETTER_FIRST)
    slots = rig.runtimes["haiku"].slots = Slots(2, max_waiting=1, patience=1)
    assert slots.try_acquire("ada")
    comparison_id = await rig.start_and_get_id()
    assert await rig.judge.fetch_second_answer(comparison_id) is Outcome.ANSWERED
    assert slots.try_acquire("ada")


async def test_changed_judge_does_not_evaluate_its_own_answer() -> None:
    rig = JudgeRig(BETTER_FIRST)
    comparison_id = await rig.start_and_get_id()
    await rig.judge.fetch_second_answer(comparison_id)
    rig.judge.rules = replace(RULES, model=HAIKU)
    assert await rig.judge.fetch_verdict(comparison_id) is Outcome.NO_SECOND_MODEL
    assert len(rig.backends[HAIKU].requests) == 1
