from __future__ import annotations

from decimal import Decimal

import pytest

from moyin.domain.render_run import RenderAccount, RenderPrice
from moyin.domain.renderer import RenderRequest
from moyin.render.comfyui.run_journal import RunJournal

ACCOUNT = RenderAccount(
    owner="ann", job_id="j", pool="p", price=RenderPrice(usd_per_picture=Decimal("0.5"))
)
REQUEST = RenderRequest(prompt_id="p", graph={}, account=ACCOUNT)


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_run_is_open_until_its_prompt_ends_and_unsettled_until_it_is_booked() -> None:
    clock = FakeClock()
    journal = RunJournal(clock)
    with journal.measure(REQUEST):
        clock.now += 2
        [run] = journal.list_unsettled()
        assert (run.seconds, run.is_ended) == (2, False)
        clock.now += 1
    # Storing the files is not part of the run.
    clock.now += 5
    assert not journal.list_unsettled()[0].is_ended
    [ended_run] = journal.end_prompt("p", picture_count=2)
    assert (ended_run.id, ended_run.seconds, ended_run.pictures, ended_run.error) == (
        run.id,
        3,
        2,
        None,
    )
    assert ended_run.cost_usd == 1
    assert journal.list_unsettled() == (ended_run,)
    assert journal.list_ended("p") == (ended_run,)
    journal.settle([ended_run.id, "unknown"])
    assert journal.list_unsettled() == ()
    assert journal.end_prompt("p") == ()
    assert journal.list_ended("p") == (ended_run,)


def test_repeated_execution_is_a_run_of_its_own_without_pictures() -> None:
    clock = FakeClock()
    journal = RunJournal(clock)
    for seconds in (4, 1):
        with journal.measure(REQUEST):
            clock.now += seconds
    runs = journal.end_prompt("p", picture_count=1)
    assert [(r.seconds, r.pictures, r.error) for r in runs] == [
        (4, 0, "step_failed"),
        (1, 1, None),
    ]


def test_prompt_that_ends_during_its_run_stops_the_clock() -> None:
    clock = FakeClock()
    journal = RunJournal(clock)
    with pytest.raises(KeyError), journal.measure(REQUEST):
        clock.now += 1
        [run] = journal.end_prompt("p", error="worker_lost")
        clock.now += 1
        raise KeyError
    assert (run.seconds, run.error) == (1, "worker_lost")
    assert journal.list_unsettled() == (run,)


def test_run_without_a_price_is_not_kept_for_booking() -> None:
    journal = RunJournal(FakeClock())
    with journal.measure(RenderRequest(prompt_id="q", graph={})):
        assert journal.list_unsettled() == ()
    [run] = journal.end_prompt("q")
    assert (run.cost_usd, journal.list_unsettled()) == (0, ())


def test_loading_is_the_time_of_nodes_that_load_models() -> None:
    clock = FakeClock()
    journal = RunJournal(clock)
    with journal.measure(REQUEST):
        for seconds, loads_models in ((1, False), (2, True), (4, True), (8, False), (16, True)):
            journal.record_node("p", loads_models=loads_models)
            clock.now += seconds
        [run] = journal.list_unsettled()
        assert (run.seconds, run.load_seconds) == (31, 22)
    clock.now += 32
    # An event that comes late changes nothing.
    journal.record_node("p", loads_models=False)
    journal.record_node("unknown", loads_models=True)
    [ended_run] = journal.end_prompt("p")
    assert (ended_run.seconds, ended_run.load_seconds) == (31, 22)
