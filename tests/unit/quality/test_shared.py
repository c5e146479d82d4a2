from moyin.quality.abilities import ability_of
from moyin.quality.estimator import Estimator
from moyin.quality.shared import TENANTS, shared_levels
from tests.unit.quality.asking import ask, signal

MODEL = "llama3.1:8b"
LAW = "Is this clause of the contract valid?"


def taught(tenants: int, score: float) -> Estimator:
    estimator = Estimator()
    for tenant in range(tenants):
        for number in range(40):
            estimator.learn(f"tenant-{tenant}", signal(ask(LAW), score, key=f"k{number}"))
    return estimator


def newcomer(estimator: Estimator, tenants: int) -> float:
    """What a tenant without signals expects once the others' levels are shared."""
    estimator.share(shared_levels(estimator.state(f"tenant-{n}") for n in range(tenants)))
    return estimator.estimate("new", MODEL, ability_of(MODEL), ask(LAW)).p


def test_agreeing_tenants_teach_a_new_one() -> None:
    plain = Estimator().estimate("new", MODEL, ability_of(MODEL), ask(LAW)).p
    assert newcomer(taught(TENANTS, 0.0), TENANTS) < plain - 0.1


def test_few_tenants_teach_nobody() -> None:
    plain = Estimator().estimate("new", MODEL, ability_of(MODEL), ask(LAW)).p
    assert newcomer(taught(TENANTS - 1, 0.0), TENANTS - 1) == plain


def test_flooded_tenant_moves_no_other() -> None:
    honest, flooded = taught(TENANTS, 1.0), taught(TENANTS, 1.0)
    for number in range(5_000):
        flooded.learn("tenant-0", signal(ask(LAW), 0.0, key=f"m{number % 50}"))
    assert abs(newcomer(honest, TENANTS) - newcomer(flooded, TENANTS)) < 0.01


def test_own_signals_replace_what_others_say() -> None:
    estimator = taught(TENANTS, 0.0)
    newcomer(estimator, TENANTS)
    for number in range(200):
        estimator.learn("new", signal(ask(LAW), 1.0, key=f"k{number}"))
    assert estimator.estimate("new", MODEL, ability_of(MODEL), ask(LAW)).p > 0.85
