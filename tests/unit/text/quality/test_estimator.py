import json
import math
from collections.abc import Callable

import pytest

from moyin.text.quality.abilities import UNKNOWN_ABILITY, Ability, look_up_ability
from moyin.text.quality.estimator import (
    _VARIETY_SHARE,
    LOWER_DEVIATIONS,
    UPPER_DEVIATIONS,
    Estimate,
    Estimator,
    LearningLimits,
    Signal,
)
from moyin.text.quality.tenant_state import TenantState
from tests.unit.text.quality.questions import make_question, make_signal

DAY = 86_400.0
MODEL = "llama3.1:8b"
LAW = "Is this clause of the contract valid?"
CODE = "Write merge sort in Go"


def estimate_quality(
    estimator: Estimator, text: str = LAW, tenant: str = "studio", model: str = MODEL
) -> Estimate:
    return estimator.estimate(tenant, model, look_up_ability(model), make_question(text))


def teach(
    estimator: Estimator, score: float, count: int, text: str = LAW, **changes: object
) -> None:
    question = make_question(text)
    for number in range(count):
        estimator.learn(
            "studio", make_signal(question, score, **{"key": f"k{number % 20}", **changes})
        )


@pytest.mark.parametrize(
    "text", [LAW, CODE, "Prove that there are infinitely many primes", "Hallo, wie geht es dir?"]
)
def test_small_model_is_not_trusted_with_hard_work(text: str) -> None:
    small_estimate, large_estimate = (
        estimate_quality(Estimator(), text, model="smollm2-135m"),
        estimate_quality(Estimator(), text, model="claude-opus-5-5"),
    )
    assert small_estimate.low <= small_estimate.p < 0.3
    assert large_estimate.low > 0.8


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_small_model_is_trusted_with_greetings() -> None:
    assert estimate_quality(Estimator(), "Say hello", model="smollm2-135m").low > 0.9


def test_bounds_enclose_the_expectation_and_are_wider_for_unknown_models() -> None:
    known_estimate = estimate_quality(Estimator())
    unknown_estimate = Estimator().estimate("studio", "x", None, make_question(LAW))
    assert known_estimate.low < known_estimate.p < known_estimate.high
    assert unknown_estimate.high - unknown_estimate.low > known_estimate.high - known_estimate.low
    assert (known_estimate.basis, unknown_estimate.basis) == ("table", "unknown")
    assert unknown_estimate == Estimator().estimate(
        "studio", "x", UNKNOWN_ABILITY, make_question(LAW)
    )


def test_upper_bound_is_twice_as_far_as_the_lower_one() -> None:
    estimate = estimate_quality(Estimator(), model="llama3.1:8b")
    low_logit, high_logit = (
        math.log(bound / (1 - bound)) for bound in (estimate.low, estimate.high)
    )
    ability = look_up_ability("llama3.1:8b")
    assert ability is not None
    logit_deviation = math.sqrt(
        ability.spread**2 + (1 - _VARIETY_SHARE) * make_question(LAW).spread ** 2
    )
    flattening = 1 / math.sqrt(1 + math.pi / 8 * _VARIETY_SHARE * make_question(LAW).spread ** 2)
    assert high_logit - low_logit == pytest.approx(
        (LOWER_DEVIATIONS + UPPER_DEVIATIONS) * logit_deviation * flattening
    )
    assert UPPER_DEVIATIONS == 2 * LOWER_DEVIATIONS


def test_signals_move_the_estimate_and_narrow_it() -> None:
    estimator = Estimator()
    estimate_before = estimate_quality(estimator)
    teach(estimator, 0.0, 100)
    estimate_after = estimate_quality(estimator)
    assert estimate_after.p < estimate_before.p / 2
    assert estimate_after.high - estimate_after.low < estimate_before.high - estimate_before.low
    assert (estimate_after.signals, estimate_after.basis) == (100, "learned")


def test_learning_about_one_kind_hardly_changes_another() -> None:
    estimator = Estimator()
    law_p, greeting_p = estimate_quality(estimator).p, estimate_quality(estimator, "Say hello").p
    teach(estimator, 0.0, 100)
    assert law_p - estimate_quality(estimator).p > 4 * (
        greeting_p - estimate_quality(estimator, "Say hello").p
    )


def test_words_distinguish_topics_of_one_kind() -> None:
    estimator = Estimator()
    good_topic, bad_topic = "Write a haiku about lanterns", "Write a quest outline with dragons"
    for _ in range(60):
        teach(estimator, 1.0, 1, good_topic, key="")
        teach(estimator, 0.0, 1, bad_topic, key="")
    assert estimate_quality(estimator, good_topic).p > 0.75
    assert estimate_quality(estimator, bad_topic).p < 0.35


def test_one_signal_moves_its_question_by_a_bounded_step() -> None:
    estimator = Estimator(limits=LearningLimits(max_signal_shift=0.01))
    estimate_before = estimate_quality(estimator)
    estimator.learn("studio", make_signal(make_question(LAW), 0.0))
    assert abs(estimate_before.p - estimate_quality(estimator).p) < 0.005


def test_flood_of_one_key_weighs_no_more_than_its_allowance() -> None:
    flooded_estimator, filled_estimator = Estimator(), Estimator()
    for estimator, count in ((flooded_estimator, 5_000), (filled_estimator, 50)):
        weights = [
            estimator.learn("studio", make_signal(make_question(LAW), 0.0)) for _ in range(count)
        ]
        assert sum(weights) == pytest.approx(50.0)
    assert estimate_quality(flooded_estimator) == estimate_quality(filled_estimator)


def test_flood_of_one_key_does_not_silence_the_others() -> None:
    estimator = Estimator()
    teach(estimator, 1.0, 400)
    p_before = estimate_quality(estimator).p
    for _ in range(10_000):
        estimator.learn("studio", make_signal(make_question(LAW), 0.0, key="mallory"))
    assert logit(estimate_quality(estimator).p) == pytest.approx(
        logit(p_before) - LearningLimits().max_key_shift, abs=0.2
    )
    teach(estimator, 1.0, 400, at=1.0)
    assert estimate_quality(estimator).p > p_before - 0.05


def test_flood_of_one_key_moves_estimates_by_the_same_step_however_long_it_is() -> None:
    short_flood_estimator, long_flood_estimator = Estimator(), Estimator()
    for estimator, count in ((short_flood_estimator, 20), (long_flood_estimator, 2_000)):
        teach(estimator, 1.0, 100)
        for _ in range(count):
            estimator.learn("studio", make_signal(make_question(LAW), 0.0, key="mallory"))
    assert estimate_quality(long_flood_estimator).p == pytest.approx(
        estimate_quality(short_flood_estimator).p, abs=0.01
    )


def test_exhausted_keys_do_not_stop_learning_from_others() -> None:
    estimator = Estimator()
    for number in range(60):  # at one moment, about words without other signals
        estimator.learn(
            "studio",
            make_signal(make_question(f"Clause {number}x of a{number}"), 0.0, key="mallory"),
        )
    p_before = estimate_quality(estimator).p
    teach(estimator, 1.0, 20, at=DAY)
    assert estimate_quality(estimator).p > p_before


def test_allowance_comes_back_with_time() -> None:
    estimator = Estimator()
    for _ in range(200):
        estimator.learn("studio", make_signal(make_question(LAW), 0.0))
    assert estimator.learn("studio", make_signal(make_question(LAW), 0.0, at=1.0)) < 0.01
    assert estimator.learn("studio", make_signal(make_question(LAW), 0.0, at=DAY)) == 1.0


def test_signals_do_not_change_estimates_of_another_tenant() -> None:
    estimator = Estimator()
    estimate_before = estimate_quality(estimator, tenant="other")
    teach(estimator, 0.0, 1_000)
    assert estimate_quality(estimator, tenant="other") == estimate_before


def test_learned_state_fades() -> None:
    estimator = Estimator()
    p_before = estimate_quality(estimator).p
    teach(estimator, 0.0, 100)
    taught_p = estimate_quality(estimator).p
    estimator.learn("studio", make_signal(make_question(CODE), 1.0, at=365 * DAY))
    assert p_before - estimate_quality(estimator).p < (p_before - taught_p) / 3


def test_estimates_follow_a_change() -> None:
    estimator = Estimator()
    teach(estimator, 1.0, 300)
    for day in range(1, 30):
        teach(estimator, 0.0, 20, at=day * DAY)
    assert estimate_quality(estimator).p < 0.4


def test_frozen_tenant_learns_nothing_until_thawed() -> None:
    estimator = Estimator()
    estimator.freeze("studio")
    estimate_before = estimate_quality(estimator)
    teach(estimator, 0.0, 10)
    assert estimate_quality(estimator) == estimate_before
    estimator.freeze("studio", False)
    teach(estimator, 0.0, 10)
    assert estimate_quality(estimator).p < estimate_before.p


def test_reset_removes_what_was_learned() -> None:
    estimator = Estimator()
    estimate_before = estimate_quality(estimator)
    teach(estimator, 0.0, 10)
    estimator.reset("studio")
    assert estimate_quality(estimator) == estimate_before


def test_state_survives_json_and_is_bounded() -> None:
    estimator, restored_estimator = Estimator(), Estimator()
    for number in range(3_000):
        question_text = f"w{number} x{number} y{number} z{number}"
        changes = {"model": f"model-{number % 40}-7b", "key": f"key-{number}"}
        teach(estimator, number % 2, 1, question_text, **changes)
    teach(estimator, 0.0, 30)
    state_json = json.dumps(estimator.get_state("studio").to_json())
    assert len(state_json) < 3_000_000
    restored_estimator.replace_state("studio", TenantState.from_json(json.loads(state_json)))
    assert estimate_quality(restored_estimator).p == pytest.approx(
        estimate_quality(estimator).p, abs=1e-6
    )
    assert len(restored_estimator.get_state("studio").models) <= 24


@pytest.mark.parametrize(
    "broken_state",
    [
        None,
        [],
        {"version": 2},
        {"version": 1},
        {"version": 1, "keys": {}, "models": {"m": {"at": 0, "counts": {}, "weights": "!"}}},
        {"version": 1, "keys": {}, "models": {"m": {"at": 0, "counts": {}, "weights": "AAAA"}}},
        {"version": 1, "keys": {"k": {"at": 1}}, "models": {}},
    ],
)
def test_broken_state_is_refused(broken_state: object) -> None:
    with pytest.raises(ValueError):
        TenantState.from_json(broken_state)


def test_replicas_that_learned_apart_agree_whichever_is_merged_first() -> None:
    first_replica, second_replica = Estimator(), Estimator()
    teach(first_replica, 0.0, 30)
    teach(second_replica, 1.0, 10, CODE)
    first_state, second_state = (
        first_replica.get_state("studio"),
        second_replica.get_state("studio"),
    )
    first_replica.replace_state("studio", first_state.merge_with(second_state))
    second_replica.replace_state("studio", second_state.merge_with(first_state))
    assert estimate_quality(first_replica).p == pytest.approx(estimate_quality(second_replica).p)
    assert estimate_quality(first_replica, CODE).p == pytest.approx(
        estimate_quality(second_replica, CODE).p
    )
    assert estimate_quality(first_replica).signals == 30


def test_merging_counts_a_common_base_once() -> None:
    base_estimator, first_replica, second_replica = Estimator(), Estimator(), Estimator()
    teach(base_estimator, 0.0, 20)
    base_state = base_estimator.get_state("studio").to_json()
    for estimator in (first_replica, second_replica):
        estimator.replace_state("studio", TenantState.from_json(base_state))
    teach(first_replica, 0.0, 5)
    second_replica.merge_state(
        "studio", first_replica.get_state("studio"), TenantState.from_json(base_state)
    )
    assert estimate_quality(second_replica).signals == 25
    assert estimate_quality(second_replica).p == pytest.approx(
        estimate_quality(first_replica).p, abs=1e-6
    )


def test_number_of_held_tenants_is_bounded() -> None:
    estimator = Estimator(limits=LearningLimits(max_tenants=3))
    for number in range(10):
        estimator.learn(f"tenant-{number}", make_signal(make_question(LAW), 0.0))
    assert estimate_quality(estimator, tenant="tenant-0").basis == "table"
    assert estimate_quality(estimator, tenant="tenant-9").basis == "learned"


def test_signals_are_compared_with_the_configured_ability() -> None:
    configured_ability = Ability(
        mean=8.0, spread=0.3, source="tuned on this", basis="configuration"
    )
    estimator = Estimator({MODEL: configured_ability})
    p_before = estimator.estimate("studio", MODEL, configured_ability, make_question(LAW)).p
    teach(estimator, 1.0, 50)
    assert estimator.estimate(
        "studio", MODEL, configured_ability, make_question(LAW)
    ).p == pytest.approx(p_before, abs=0.01)


@pytest.mark.parametrize("field", ["score", "weight"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_signal_out_of_range_is_refused(field: str, value: float) -> None:
    factory: Callable[..., Signal] = make_signal
    with pytest.raises(ValueError, match=field):
        factory(make_question(LAW), **{"score": 1.0, field: value})
