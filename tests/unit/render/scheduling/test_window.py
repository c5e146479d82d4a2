"""What `Window.choose` promises, on farms and queues of any kind."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from moyin.render.scheduling.fair_share import OwnerFairShare
from moyin.render.scheduling.policy import PendingRender, Rules
from moyin.render.scheduling.window import Choice, Window

GB = 1_000_000_000
RULES = Rules(ageing=10.0, bytes_per_second=GB, deadline_margin=5.0)
FAMILIES = ("", "a", "b", "c")


def waiting(
    name: str,
    model: str = "",
    *,
    owner: str = "ann",
    priority: int = 3,
    arrived: float = 0.0,
    entered: float = 0.0,
    deadline: float | None = None,
) -> PendingRender:
    return PendingRender(
        id=name,
        priority=priority,
        arrived=arrived,
        owner=owner,
        entered=entered,
        deadline=deadline,
        models={model: GB} if model else {},
    )


def window(
    seats: Sequence[str], renders: Sequence[PendingRender], weights: dict[str, float] | None = None
) -> Window:
    """``seats``: the loaded model of each renderer, named by its place."""
    made = Window(RULES, OwnerFairShare(weights))
    for number, model in enumerate(seats):
        made.seat(str(number), [model] if model else [], 0.0)
    for render in renders:
        made.enter(render)
    return made


def served(made: Window, now: float, seconds: float = 1.0) -> list[str]:
    """The order in which one renderer after the other serves all, each in ``seconds``."""
    order = []
    while len(made):
        choice = made.choose(now)
        if choice is not None:
            made.begin(choice, now)
            order.append(choice.waiting.id)
            made.end(seconds)
        now += seconds
        if choice is not None:
            made.free(choice.seat.name, now)
    return order


RENDERS = st.lists(
    st.builds(
        waiting,
        st.uuids().map(str),
        st.sampled_from(FAMILIES),
        owner=st.sampled_from(["ann", "bob", "cid"]),
        priority=st.integers(1, 5),
        arrived=st.floats(-100, 0),
        entered=st.floats(0, 60),
        deadline=st.none() | st.floats(0, 200),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda render: render.id,
)
SEATS = st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=6)


@given(SEATS, RENDERS, st.floats(60, 200))
def test_who_is_due_goes_first_whatever_is_loaded_where(
    seats: list[str], renders: list[PendingRender], now: float
) -> None:
    choice = window(seats, renders).choose(now)
    due = [render for render in renders if RULES.due(render) <= now]
    if due:
        assert choice is not None
        assert RULES.due(choice.waiting) == min(RULES.due(render) for render in due)


@given(SEATS, RENDERS)
@settings(max_examples=50)
def test_everybody_is_served_once(seats: list[str], renders: list[PendingRender]) -> None:
    assert sorted(served(window(seats, renders), 60.0)) == sorted(r.id for r in renders)


@given(SEATS, RENDERS, st.floats(60, 120))
def test_a_renderer_gets_what_it_has_loaded_or_changes_for_a_reason(
    seats: list[str], renders: list[PendingRender], now: float
) -> None:
    made = window(seats, renders)
    choice = made.choose(now)
    if choice is None:
        assert made.undecided
        return
    render, loaded = choice.waiting, choice.seat.family
    if RULES.due(render) <= now or render.family in ("", loaded) or not loaded:
        return
    load = RULES.load_seconds(render, choice.seat)
    if any(other.family == loaded for other in renders):
        others = [other for other in renders if other.family == render.family]
        longest = max(now - other.entered for other in others)
        assert longest > RULES.patience(load) or len(others) * 10 > RULES.imbalance(load)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3)), min_size=1, max_size=12))
def test_what_suits_goes_by_class_then_turn_then_arrival(told: list[tuple[str, int]]) -> None:
    renders = [
        waiting(str(number), owner=owner, priority=priority, arrived=number, entered=0)
        for number, (owner, priority) in enumerate(told)
    ]
    order = served(window([""], renders), 0.0, seconds=0.01)
    classes = [renders[int(name)].priority for name in order]
    assert classes == sorted(classes)
    for owner in "ab":
        mine = [int(n) for n in order if renders[int(n)].owner == owner]
        assert mine == sorted(mine, key=lambda n: (renders[n].priority, n))


def test_owners_take_turns_however_much_one_of_them_asks() -> None:
    flood = [waiting(f"flood-{n:02}", owner="flood", arrived=n) for n in range(20)]
    small = [waiting(f"small-{n}", owner="small", arrived=50 + n) for n in range(3)]
    order = served(window([""], [*flood, *small]), 0.0, seconds=0.1)
    assert [order.index(render.id) for render in small] == [1, 3, 5]


def test_an_owner_of_more_weight_is_served_more_often() -> None:
    renders = [waiting(f"{o}-{n}", owner=o, arrived=n) for n in range(9) for o in ("one", "two")]
    order = served(window([""], renders, {"two": 2.0}), 0.0, seconds=0.1)
    assert sum(name.startswith("two") for name in order[:9]) == 6


def test_turns_can_not_be_saved_up() -> None:
    turns = OwnerFairShare()
    for _ in range(5):
        turns.serve("busy", ["busy"])
    assert turns.of("newcomer") <= turns.of("busy")
    turns.serve("newcomer", ["busy", "newcomer"])
    turns.serve("newcomer", ["busy", "newcomer"])
    assert turns.of("busy") - turns.of("newcomer") < 5


def test_a_render_goes_where_its_model_is() -> None:
    choice = window(["a", "b", ""], [waiting("1", "b")]).choose(0.0)
    assert _went(choice) == ("1", "1")


def test_an_empty_renderer_is_filled_before_another_changes() -> None:
    choice = window(["a", ""], [waiting("1", "b")]).choose(0.0)
    assert _went(choice) == ("1", "1")


def test_models_that_nobody_has_cost_the_renderer_that_is_least_missed() -> None:
    choice = window(["a", "b"], [waiting("1", "a"), waiting("2", "c")]).choose(0.0)
    assert _went(choice) == ("2", "1")


def test_it_waits_for_a_busy_renderer_that_has_its_model_but_not_long() -> None:
    made = window(["a", "b"], [waiting("1", "a"), waiting("2", "a", arrived=1)])
    first = made.choose(0.0)
    assert first is not None
    made.begin(first, 0.0)
    assert made.choose(0.0) is None
    assert made.undecided
    assert _went(made.choose(RULES.load_seconds(first.waiting, first.seat) + 2)) == ("2", "1")


def test_a_renderer_stays_with_its_work_until_others_have_been_patient() -> None:
    renders = [waiting(f"a-{n}", "a", arrived=n) for n in range(50)]
    made = window(["a"], [*renders, waiting("b", "b", owner="bob")])
    order = served(made, 0.0)
    assert 5 <= order.index("b") <= 7, "5 s of patience, at one a second"


def test_a_deadline_that_is_near_goes_first() -> None:
    renders = [waiting("1", priority=1), waiting("2", priority=5, deadline=12.0)]
    assert _went(window([""], renders).choose(0.0)) == ("1", "0")
    assert _went(window([""], renders).choose(7.5)) == ("2", "0")


def test_a_busy_renderer_has_its_next_render_foreseen() -> None:
    made = window(["a"], [waiting("1", "a"), waiting("2", "a", arrived=1), waiting("3", "b")])
    choice = made.choose(0.0)
    assert choice is not None
    made.begin(choice, 0.0)
    foreseen = made.foresee("0", 0.0)
    assert foreseen is not None
    assert foreseen.id == "2"
    assert made.foresee("nobody", 0.0) is None


def _went(choice: Choice | None) -> tuple[str, str]:
    assert choice is not None
    return choice.waiting.id, choice.seat.name
