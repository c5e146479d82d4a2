from typing import Any

from moyin.text.quality.abilities import look_up_ability
from moyin.text.quality.estimator import Estimator
from moyin.text.quality.tenant_state import MIN_TENANTS, compute_shared_levels, extract_levels
from tests.unit.text.quality.questions import make_question, make_signal

MODEL = "llama3.1:8b"
LAW = "Is this clause of the contract valid?"


def make_taught_estimator(tenant_count: int, score: float) -> Estimator:
    estimator = Estimator()
    for tenant in range(tenant_count):
        for number in range(40):
            estimator.learn(
                f"tenant-{tenant}", make_signal(make_question(LAW), score, key=f"k{number}")
            )
    return estimator


def share_levels(estimator: Estimator, tenant_count: int) -> None:
    states = (estimator.get_state(f"tenant-{n}") for n in range(tenant_count))
    estimator.set_shared_levels(compute_shared_levels(map(extract_levels, states)))


def estimate_newcomer(estimator: Estimator, tenant_count: int) -> float:
    """Share what ``tenant_count`` tenants have learned, and return p_good for a new tenant."""
    share_levels(estimator, tenant_count)
    return estimator.estimate("new", MODEL, look_up_ability(MODEL), make_question(LAW)).p


def test_new_tenant_learns_from_agreeing_tenants() -> None:
    unshared_p = Estimator().estimate("new", MODEL, look_up_ability(MODEL), make_question(LAW)).p
    assert (
        estimate_newcomer(make_taught_estimator(MIN_TENANTS, 0.0), MIN_TENANTS) < unshared_p - 0.1
    )


def test_too_few_tenants_share_nothing() -> None:
    unshared_p = Estimator().estimate("new", MODEL, look_up_ability(MODEL), make_question(LAW)).p
    assert (
        estimate_newcomer(make_taught_estimator(MIN_TENANTS - 1, 0.0), MIN_TENANTS - 1)
        == unshared_p
    )


def test_flooded_tenant_does_not_change_estimates_of_others() -> None:
    honest_estimator, flooded_estimator = (
        make_taught_estimator(MIN_TENANTS, 1.0),
        make_taught_estimator(MIN_TENANTS, 1.0),
    )
    for number in range(5_000):
        flooded_estimator.learn(
            "tenant-0", make_signal(make_question(LAW), 0.0, key=f"m{number % 50}")
        )
    assert (
        abs(
            estimate_newcomer(honest_estimator, MIN_TENANTS)
            - estimate_newcomer(flooded_estimator, MIN_TENANTS)
        )
        < 0.01
    )


def test_own_signals_replace_shared_levels() -> None:
    estimator = make_taught_estimator(MIN_TENANTS, 0.0)
    estimate_newcomer(estimator, MIN_TENANTS)
    for number in range(200):
        estimator.learn("new", make_signal(make_question(LAW), 1.0, key=f"k{number}"))
    assert estimator.estimate("new", MODEL, look_up_ability(MODEL), make_question(LAW)).p > 0.85


def test_estimate_states_that_it_is_shared() -> None:
    estimator = make_taught_estimator(MIN_TENANTS, 0.0)
    share_levels(estimator, MIN_TENANTS)
    ability, question = look_up_ability(MODEL), make_question(LAW)
    assert estimator.estimate("new", MODEL, ability, question).basis == "shared"
    assert estimator.estimate("new", MODEL, ability, make_question("Hello")).basis == "table"
    assert estimator.estimate("tenant-0", MODEL, ability, question).basis == "learned"
    assert estimator.get_shared_levels("new", MODEL)["law"] < 0
    assert estimator.get_shared_levels("new", "another") == {}


def test_frozen_tenant_neither_contributes_nor_uses_shared_levels() -> None:
    estimator = make_taught_estimator(MIN_TENANTS, 0.0)
    unshared_estimate = Estimator().estimate(
        "new", MODEL, look_up_ability(MODEL), make_question(LAW)
    )
    estimator.freeze("tenant-0")
    assert estimate_newcomer(estimator, MIN_TENANTS) == unshared_estimate.p
    estimator.freeze("tenant-0", False)
    estimator.freeze("new")
    assert estimate_newcomer(estimator, MIN_TENANTS) == unshared_estimate.p
    assert estimator.get_shared_levels("new", MODEL) == {}
    estimator.freeze("new", False)
    assert estimate_newcomer(estimator, MIN_TENANTS) < unshared_estimate.p


def test_learning_does_not_depend_on_shared_levels() -> None:
    lone_estimator, informed_estimator = Estimator(), make_taught_estimator(MIN_TENANTS, 0.0)
    share_levels(informed_estimator, MIN_TENANTS)
    for estimator in (lone_estimator, informed_estimator):
        for number in range(30):
            estimator.learn("new", make_signal(make_question(LAW), 1.0, key=f"k{number}"))
    assert (
        lone_estimator.get_state("new").to_json() == informed_estimator.get_state("new").to_json()
    )


def test_the_shared_level_has_a_bound() -> None:
    (level,) = compute_shared_levels([{MODEL: {"law": -9.0}}] * 7)[MODEL].values()
    assert level == -1.5


def test_malformed_contributions_are_ignored() -> None:
    valid_levels = [{MODEL: {"law": -0.5}}] * MIN_TENANTS
    malformed_levels: list[Any] = [
        {MODEL: {"law": "x", "nothing": 1.0}},
        {MODEL: 3},
        {MODEL: {"law": float("nan")}},
    ]
    assert compute_shared_levels([*valid_levels, *malformed_levels]) == {MODEL: {"law": -0.5}}
