"""The steps of a comparison: what is asked of whom, who pays, and what is learned."""

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
from moyin.testing.backends import text_answer
from moyin.text.judging.comparison import Comparison
from moyin.text.judging.outcomes import Outcome
from moyin.text.judging.rules import JUDGE_OWNER
from moyin.text.judging.verdict import Verdict
from moyin.text.routing.catalog import Alias
from moyin.text.routing.policy import Policy
from tests.unit.text.judging.rig import HAIKU, OPUS, RULES, SMALL, Court

BETTER_FIRST = json.dumps({"reason": "x", "first": 4, "second": 1})


def toss(court: Court, name: str, swapped: bool) -> None:
    """Have the coin fall as the test wants it."""
    one = decode(Comparison, court.shelf.kept[name])
    court.shelf.kept[name] = encode(replace(one, swapped=swapped))


async def test_the_whole_way_teaches_both_models_once() -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    toss(court, name, True)
    assert await court.judge.answer(name) is Outcome.ANSWERED
    verdict = await court.judge.decide(name)
    assert verdict == Verdict(given=0.25, other=1.0)
    assert await court.judge.record(name, verdict)
    assert await court.judge.record(name, verdict)
    rows = {row.model: row for row in court.signals.rows.values()}
    assert {model: row.score for model, row in rows.items()} == {SMALL: 0.25, HAIKU: 1.0}
    assert {row.owner for row in rows.values()} == {"ada"}
    assert {row.source for row in rows.values()} == {"judge"}
    assert {row.weight for row in rows.values()} == {0.5}
    assert rows[SMALL].request_id == "r1"
    assert all(row.p_good is not None and row.comment is None for row in rows.values())
    assert "merge" not in str([row.question for row in rows.values()])
    await court.judge.close(name)
    await court.judge.close(name)
    assert (court.shelf.kept, court.shelf.seconds) == ({}, {})


async def test_the_judge_sees_both_answers_and_no_name() -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    toss(court, name, False)
    await court.judge.answer(name)
    await court.judge.decide(name)
    (asked,) = court.backends[OPUS].requests
    assert isinstance(asked, ChatRequest)
    text = str(asked)
    assert "mine" in text and "a better one" in text
    assert not any(model in text for model in (SMALL, HAIKU))
    assert asked.output is not None and asked.output.schema is not None


async def test_the_operator_pays_and_not_the_tenant() -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    tenant = [one.owner for one in court.books]
    await court.judge.answer(name)
    await court.judge.decide(name)
    assert tenant == ["ada"]
    booked = court.books[1:]
    assert [(one.owner, one.model) for one in booked] == [(JUDGE_OWNER, HAIKU), (JUDGE_OWNER, OPUS)]
    assert court.money.booked == sum((one.cost_usd for one in booked), Decimal(0)) > 0
    one = decode(Comparison, court.shelf.kept[name])
    # Each call sets its worst case aside, no more than was foreseen, and gives the rest back.
    assert court.money.booked < sum(court.money.reserved) <= one.most_usd
    assert court.money.released == 2


async def test_the_judges_own_calls_are_not_sampled() -> None:
    court = Court(BETTER_FIRST, rules=replace(RULES, model="bench"), aliases={
        "bench": Alias(models=(OPUS,))
    })  # fmt: skip
    name = await court.started()
    await court.judge.answer(name)
    await court.judge.decide(name)
    assert court.sampler.samples.empty()
    assert court.backends[OPUS].requests


async def test_an_answer_that_is_there_is_not_asked_for_again() -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    assert await court.judge.answer(name) is Outcome.ANSWERED
    assert await court.judge.answer(name) is Outcome.ANSWERED
    assert len(court.backends[HAIKU].requests) == 1


@pytest.mark.parametrize("text", ["The first.", "", '{"first": 9}'])
async def test_what_does_not_parse_teaches_nothing(text: str) -> None:
    court = Court(text)
    name = await court.started()
    await court.judge.answer(name)
    assert await court.judge.decide(name) is Outcome.UNPARSABLE
    assert court.signals.rows == {}


async def test_an_answer_that_our_own_bound_cut_is_not_judged() -> None:
    court = Court(BETTER_FIRST, rules=replace(RULES, most_answer_tokens=20))
    cut = replace(text_answer("once upon a"), stop=StopReason.MAX_TOKENS)
    court.backends[HAIKU].answer = cut
    name = await court.started()
    assert await court.judge.answer(name) is Outcome.CUT
    (asked,) = court.backends[HAIKU].requests
    assert isinstance(asked, ChatRequest) and asked.max_tokens == 20
    # Under the client's own limit both were cut alike.
    limited = await court.started(request_id="r2", max_tokens=10)
    assert await court.judge.answer(limited) is Outcome.ANSWERED


async def test_what_is_gone_ends_quietly() -> None:
    court = Court(BETTER_FIRST)
    assert await court.judge.answer("judge-none") is Outcome.GONE
    assert await court.judge.decide("judge-none") is Outcome.GONE
    assert not await court.judge.record("judge-none", Verdict(given=1.0, other=0.0))


async def test_what_another_version_wrote_in_another_shape_is_gone() -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    court.shelf.kept[name] = b'{"id": "x", "conversation": "codename Bluebird"}'
    assert await court.judge.answer(name) is Outcome.GONE
    court.shelf.seconds[name] = "an answer"
    assert await court.judge.decide(name) is Outcome.GONE
    assert not await court.judge.record(name, Verdict(given=1.0, other=0.0))


HOME = frozenset({"on-premises"})


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        (Policy(residency=HOME), Outcome.RESIDENCY),
        (Policy(judged=False), Outcome.OPTED_OUT),
    ],
)
async def test_a_policy_that_was_tightened_meanwhile_holds(
    policy: Policy, outcome: Outcome
) -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    policies = {**court.policies, "ada": policy}
    court.router.fleet = replace(court.router.fleet, policies=policies)
    assert await court.judge.answer(name) is outcome
    court.shelf.seconds[name] = "an answer from before"
    assert await court.judge.decide(name) is outcome
    assert court.backends[HAIKU].requests == court.backends[OPUS].requests == []


async def test_turned_off_nobody_is_asked() -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    court.judge.rules = None
    assert await court.judge.answer(name) is Outcome.OFF
    assert court.backends[HAIKU].requests == []


async def test_without_money_nobody_is_asked() -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    court.money.left = Decimal(0)
    assert await court.judge.answer(name) is Outcome.BUDGET
    assert court.backends[HAIKU].requests == []


async def test_tenants_calls_go_first() -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    slots = court.lanes["haiku"].slots = Slots(1, queue=1, patience=1)
    assert slots.take("ada")
    with pytest.raises(Overloaded) as caught:
        await court.judge.answer(name)
    assert caught.value.retryable and caught.value.retry_after
    slots.free("ada")
    assert await court.judge.answer(name) is Outcome.ANSWERED


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(BackendUnavailable("away"), None), (BackendRejected("no"), Outcome.FAILED)],
)
async def test_what_may_help_again_is_tried_again(error: Any, outcome: Outcome | None) -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    court.backends[HAIKU].error = error
    if outcome is None:
        with pytest.raises(BackendUnavailable):
            await court.judge.answer(name)
    else:
        assert await court.judge.answer(name) is outcome
    assert court.money.released == 1


@pytest.mark.parametrize(
    "raw", [b'{"choices": [], "usage": {"prompt_tokens": 9}}', b'{"choices": [{}]}']
)
async def test_an_answer_without_shape_is_paid_for_once(raw: bytes) -> None:
    """Asked again it would cost again, every five minutes for six hours."""
    court = Court(BETTER_FIRST)
    name = await court.started()
    for place, model in (("haiku", HAIKU), ("opus", OPUS)):
        court.backends[model].raw = raw
        court.lanes[place].passes = court.backends[model]
    assert await court.judge.answer(name) is Outcome.FAILED
    court.shelf.seconds[name] = "an answer"
    assert await court.judge.decide(name) is Outcome.FAILED


async def test_a_call_that_took_all_its_time_is_not_repeated() -> None:
    """Providers ask for money for what nobody waited for."""
    court = Court(BETTER_FIRST)
    name = await court.started()
    court.backends[HAIKU].error = BackendTimeout("too slow")
    assert await court.judge.answer(name) is Outcome.FAILED


async def test_the_judge_takes_no_place_from_a_tenant_that_is_alone() -> None:
    """The last place is kept for another tenant that was about; the judge is none."""
    court = Court(BETTER_FIRST)
    slots = court.lanes["haiku"].slots = Slots(2, queue=1, patience=1)
    assert slots.take("ada")
    name = await court.started()
    assert await court.judge.answer(name) is Outcome.ANSWERED
    assert slots.take("ada")


async def test_a_judge_that_was_changed_meanwhile_does_not_judge_its_own_answer() -> None:
    court = Court(BETTER_FIRST)
    name = await court.started()
    await court.judge.answer(name)
    court.judge.rules = replace(RULES, model=HAIKU)
    assert await court.judge.decide(name) is Outcome.ALONE
    assert len(court.backends[HAIKU].requests) == 1
