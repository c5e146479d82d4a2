"""Tests `Window.choose_assignment` on generated farms and queues."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from moyin.render.scheduling.rules import OrderingRules, OwnerFairShare, PendingRender
from moyin.render.scheduling.window import Assignment, Window

GB = 1_000_000_000
RULES = OrderingRules(ageing_seconds=10.0, bytes_per_second=GB, deadline_margin_seconds=5.0)
FAMILIES = ("", "a", "b", "c")


def make_render(
    name: str,
    model: str = "",
    *,
    owner: str = "ann",
    priority: int = 3,
    arrived: float = 0.0,
    entered: float = 0.0,
    deadline: float | None = None,
    tenant: str = "",
    signatures: Sequence[int] = (),
) -> PendingRender:
    return PendingRender(
        id=name,
        priority=priority,
        arrived=arrived,
        owner=owner,
        entered=entered,
        deadline=deadline,
        models={model: GB} if model else {},
        tenant=tenant,
        signatures=frozenset(signatures),
    )


def make_window(
    loaded_models: Sequence[str],
    renders: Sequence[PendingRender],
    weights: dict[str, float] | None = None,
) -> Window:
    """Return a window with these renders; ``loaded_models`` is the model of each renderer.

    Args:
        weights: the owners' weights in the fair share.
    """
    render_window = Window(RULES, OwnerFairShare(weights))
    for number, model in enumerate(loaded_models):
        render_window.add_renderer(str(number), [model] if model else [], 0.0)
    for render in renders:
        render_window.add(render)
    return render_window


def list_served_ids(render_window: Window, now: float, seconds: float = 1.0) -> list[str]:
    """Return the order in which the window assigns all renders, if each takes ``seconds``."""
    order = []
    while len(render_window):
        assignment = render_window.choose_assignment(now)
        if assignment is not None:
            render_window.begin_render(assignment, now)
            order.append(assignment.pending.id)
            render_window.record_render_seconds(seconds)
        now += seconds
        if assignment is not None:
            render_window.mark_free(assignment.slot.name, now)
    return order


RENDERS = st.lists(
    st.builds(
        make_render,
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
LOADED_MODELS = st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=6)


@given(LOADED_MODELS, RENDERS, st.floats(60, 200))
def test_due_render_goes_first_whatever_is_loaded(
    loaded_models: list[str], renders: list[PendingRender], now: float
) -> None:
    assignment = make_window(loaded_models, renders).choose_assignment(now)
    due_renders = [render for render in renders if RULES.compute_due_time(render) <= now]
    if due_renders:
        assert assignment is not None
        assert RULES.compute_due_time(assignment.pending) == min(
            RULES.compute_due_time(render) for render in due_renders
        )


@given(LOADED_MODELS, RENDERS)
@settings(max_examples=50)
def test_every_render_is_served_once(
    loaded_models: list[str], renders: list[PendingRender]
) -> None:
    assert sorted(list_served_ids(make_window(loaded_models, renders), 60.0)) == sorted(
        r.id for r in renders
    )


@given(LOADED_MODELS, RENDERS, st.floats(60, 120))
def test_renderer_changes_models_only_for_a_reason(
    loaded_models: list[str], renders: list[PendingRender], now: float
) -> None:
    render_window = make_window(loaded_models, renders)
    assignment = render_window.choose_assignment(now)
    if assignment is None:
        assert render_window.must_choose_again
        return
    render, family = assignment.pending, assignment.slot.family
    if RULES.compute_due_time(render) <= now or render.family in ("", family) or not family:
        return
    load_seconds = RULES.estimate_load_seconds(render, assignment.slot)
    if any(waiting_render.family == family for waiting_render in renders):
        same_family_renders = [
            waiting_render for waiting_render in renders if waiting_render.family == render.family
        ]
        longest_wait = max(now - waiting_render.entered for waiting_render in same_family_renders)
        assert longest_wait > RULES.compute_max_wait(load_seconds) or len(
            same_family_renders
        ) * 10 > RULES.compute_max_imbalance(load_seconds)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3)), min_size=1, max_size=12))
def test_renders_are_ordered_by_priority_then_owner_then_arrival(
    owners_and_priorities: list[tuple[str, int]],
) -> None:
    renders = [
        make_render(str(number), owner=owner, priority=priority, arrived=number, entered=0)
        for number, (owner, priority) in enumerate(owners_and_priorities)
    ]
    order = list_served_ids(make_window([""], renders), 0.0, seconds=0.01)
    priorities = [renders[int(name)].priority for name in order]
    assert priorities == sorted(priorities)
    for owner in "ab":
        own_renders = [int(n) for n in order if renders[int(n)].owner == owner]
        assert own_renders == sorted(own_renders, key=lambda n: (renders[n].priority, n))


def test_owner_with_many_renders_does_not_delay_others() -> None:
    flood_renders = [make_render(f"flood-{n:02}", owner="flood", arrived=n) for n in range(20)]
    small_renders = [make_render(f"small-{n}", owner="small", arrived=50 + n) for n in range(3)]
    order = list_served_ids(make_window([""], [*flood_renders, *small_renders]), 0.0, seconds=0.1)
    assert [order.index(render.id) for render in small_renders] == [1, 3, 5]


def test_owner_with_more_weight_is_served_more_often() -> None:
    renders = [
        make_render(f"{o}-{n}", owner=o, arrived=n) for n in range(9) for o in ("one", "two")
    ]
    order = list_served_ids(make_window([""], renders, {"two": 2.0}), 0.0, seconds=0.1)
    assert sum(name.startswith("two") for name in order[:9]) == 6


def test_absent_owner_accumulates_no_credit() -> None:
    fair_share = OwnerFairShare()
    for _ in range(5):
        fair_share.charge("busy", ["busy"])
    assert fair_share.get_virtual_time("newcomer") <= fair_share.get_virtual_time("busy")
    fair_share.charge("newcomer", ["busy", "newcomer"])
    fair_share.charge("newcomer", ["busy", "newcomer"])
    assert fair_share.get_virtual_time("busy") - fair_share.get_virtual_time("newcomer") < 5


def test_render_goes_to_the_renderer_with_its_model() -> None:
    assignment = make_window(["a", "b", ""], [make_render("1", "b")]).choose_assignment(0.0)
    assert _get_render_and_renderer(assignment) == ("1", "1")


def test_empty_renderer_is_filled_before_another_changes() -> None:
    assignment = make_window(["a", ""], [make_render("1", "b")]).choose_assignment(0.0)
    assert _get_render_and_renderer(assignment) == ("1", "1")


def test_unloaded_models_go_to_the_least_needed_renderer() -> None:
    assignment = make_window(
        ["a", "b"], [make_render("1", "a"), make_render("2", "c")]
    ).choose_assignment(0.0)
    assert _get_render_and_renderer(assignment) == ("2", "1")


def test_render_waits_shortly_for_the_busy_renderer_with_its_model() -> None:
    render_window = make_window(
        ["a", "b"], [make_render("1", "a"), make_render("2", "a", arrived=1)]
    )
    first_assignment = render_window.choose_assignment(0.0)
    assert first_assignment is not None
    render_window.begin_render(first_assignment, 0.0)
    assert render_window.choose_assignment(0.0) is None
    assert render_window.must_choose_again
    assert _get_render_and_renderer(
        render_window.choose_assignment(
            RULES.estimate_load_seconds(first_assignment.pending, first_assignment.slot) + 2
        )
    ) == ("2", "1")


def test_renderer_keeps_its_models_until_the_patience_of_others_ends() -> None:
    renders = [make_render(f"a-{n}", "a", arrived=n) for n in range(50)]
    render_window = make_window(["a"], [*renders, make_render("b", "b", owner="bob")])
    order = list_served_ids(render_window, 0.0)
    assert 5 <= order.index("b") <= 7, "5 s of patience, at one a second"


def test_render_with_a_near_deadline_goes_first() -> None:
    renders = [make_render("1", priority=1), make_render("2", priority=5, deadline=12.0)]
    assert _get_render_and_renderer(make_window([""], renders).choose_assignment(0.0)) == ("1", "0")
    assert _get_render_and_renderer(make_window([""], renders).choose_assignment(7.5)) == ("2", "0")


def test_next_render_of_a_busy_renderer_is_peeked() -> None:
    render_window = make_window(
        ["a"], [make_render("1", "a"), make_render("2", "a", arrived=1), make_render("3", "b")]
    )
    assignment = render_window.choose_assignment(0.0)
    assert assignment is not None
    render_window.begin_render(assignment, 0.0)
    next_render = render_window.peek_next("0", 0.0)
    assert next_render is not None
    assert next_render.id == "2"
    assert render_window.peek_next("missing", 0.0) is None


def _get_render_and_renderer(assignment: Assignment | None) -> tuple[str, str]:
    assert assignment is not None
    return assignment.pending.id, assignment.slot.name


@settings(deadline=None, max_examples=60)
@given(
    loaded_models=st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=3),
    renders=st.lists(
        st.tuples(
            st.sampled_from(FAMILIES),
            st.sampled_from(["ann", "bob"]),
            st.integers(1, 5),
            st.one_of(st.none(), st.floats(0, 60)),
        ),
        max_size=12,
    ),
)
def test_forecast_has_every_render_once_and_changes_nothing(
    loaded_models: list[str], renders: list[tuple[str, str, int, float | None]]
) -> None:
    waiting_renders = [
        make_render(str(n), model, owner=owner, priority=priority, arrived=n, deadline=deadline)
        for n, (model, owner, priority, deadline) in enumerate(renders)
    ]
    render_window = make_window(loaded_models, waiting_renders)
    first_forecast = _list_forecast_ids(render_window)
    assert sorted(first_forecast) == sorted(render.id for render in waiting_renders)
    assert _list_forecast_ids(render_window) == first_forecast
    assignment = render_window.choose_assignment(0.0)
    if assignment is not None:
        assert assignment.pending.id == first_forecast[0]
        render_window.begin_render(assignment, 0.0)
        assert sorted(_list_forecast_ids(render_window)) == sorted(first_forecast[1:])


def test_forecast_is_the_order_in_which_renders_begin() -> None:
    waiting_renders = [
        make_render(f"{owner}{n}", owner=owner, priority=priority, arrived=n)
        for n in range(3)
        for owner, priority in (("ann", 3), ("bob", 3), ("eve", 1))
    ]
    render_window = make_window(["a"], waiting_renders)
    order = _list_forecast_ids(render_window)
    assert order[:3] == ["eve0", "eve1", "eve2"]
    assert _list_forecast_ids(render_window, 2) == order[:2]
    assert order == list_served_ids(render_window, 0.0, render_window.mean_seconds)


def test_forecast_of_an_empty_pool_assumes_one_renderer() -> None:
    waiting_renders = [
        make_render("late", arrived=2.0),
        make_render("first", priority=1),
        make_render("early"),
    ]
    render_window = make_window([], waiting_renders)
    assert _list_forecast_ids(render_window) == ["first", "early", "late"]


def _list_forecast_ids(render_window: Window, limit: int = 99) -> list[str]:
    return [expectation.pending.id for expectation in render_window.forecast(0.0, limit)]


def test_a_tenant_gets_its_own_process_then_a_fresh_one_then_that_unused_the_longest() -> None:
    window = Window(RULES)
    for name, tenant, now in (
        ("other", "bob", 1),
        ("older", "cid", 0),
        ("own", "ann", 2),
        ("fresh", "", 3),
    ):
        window.add_renderer(name, (), now, tenant)
    chosen = []
    for number in range(4):
        window.add(make_render(str(number), tenant="ann", entered=4.0))
        choice = window.choose_assignment(4.0) or window.choose_assignment(50.0)
        assert choice is not None
        window.begin_render(choice, 4.0)
        chosen.append(choice.slot.name)
    assert chosen == ["own", "fresh", "older", "other"]
    assert window.tenant_change_count == 2


def test_two_tenants_with_many_renders_change_a_process_rarely_and_neither_starves() -> None:
    window = Window(OrderingRules())
    window.restart_seconds = 5.0
    window.add_renderer("a", (), 0.0)
    for number in range(60):
        for tenant in ("ann", "bob"):
            name = f"{tenant}{number}"
            window.add(make_render(name, owner=tenant, tenant=tenant, arrived=float(number)))
    now, begun = 0.0, []
    while len(window):
        choice = window.choose_assignment(now)
        assert choice is not None
        window.begin_render(choice, now)
        begun.append((now, choice.pending.owner))
        now += 1.0 + choice.slot.restart_seconds
        window.end_render("a", 1.0)
        window.mark_free("a", now)
    assert window.tenant_change_count <= 10
    first_of_each = [next(at for at, owner in begun if owner == name) for name in ("ann", "bob")]
    assert max(first_of_each) <= 4 * 5.0 + 2.0


def _run(render_window: Window, render: PendingRender, now: float, *, fails: bool = False) -> str:
    """Run a render for one second on the renderer that the window chooses; return its name."""
    render_window.add(render)
    assignment = render_window.choose_assignment(now)
    assert assignment is not None and assignment.pending is render
    render_window.begin_render(assignment, now)
    render_window.end_render(assignment.slot.name, 1.0, has_failed=fails)
    render_window.mark_free(assignment.slot.name, now + 1.0)
    return assignment.slot.name


def test_a_changed_graph_goes_to_the_renderer_that_has_the_results_of_its_nodes() -> None:
    render_window = make_window(["", "", ""], [])
    names = [
        _run(render_window, make_render(f"{owner}{number}", owner=owner, signatures=nodes), now)
        for now, (number, owner, nodes) in enumerate(
            (number, owner, [offset + 1, offset + 2, offset + 3 + number])
            for number in range(5)
            for owner, offset in (("ann", 0), ("bob", 100))
        )
    ]
    assert names == ["0", "1"] * 5


def test_renders_without_results_go_to_the_renderer_that_was_idle_the_longest() -> None:
    render_window = make_window(["", ""], [])
    names = [_run(render_window, make_render(str(n), signatures=[n]), n) for n in range(4)]
    assert names == ["0", "1", "0", "1"]


def test_a_busy_renderer_with_results_is_not_waited_for() -> None:
    render_window = make_window(["", ""], [make_render("1", signatures=[1, 2])])
    first = render_window.choose_assignment(0.0)
    assert first is not None
    render_window.begin_render(first, 0.0)
    render_window.add(make_render("2", signatures=[1, 3]))
    second = render_window.choose_assignment(0.1)
    assert second is not None and second.slot.name != first.slot.name


def test_results_do_not_outweigh_models_that_take_longer_to_load() -> None:
    render_window = make_window(["a", "b"], [])
    render_window.mean_seconds = 0.5
    assert _run(render_window, make_render("1", "a", signatures=[1, 2]), 1.0) == "0"
    assert _run(render_window, make_render("2", "b", signatures=[1, 3]), 3.0) == "1"


def test_the_results_of_a_failed_render_or_a_new_process_are_not_counted_on() -> None:
    render_window = make_window(["", ""], [])
    assert _run(render_window, make_render("1", signatures=[1]), 0.0, fails=True) == "0"
    assert _run(render_window, make_render("2", signatures=[1]), 2.0) == "1", "a retry"
    render_window.remove_renderer("1")
    render_window.add_renderer("1", (), 4.0)
    assert _run(render_window, make_render("3", signatures=[1]), 5.0) == "0"
