from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from moyin.scheduling.policy import Waiting, order

WAITING = st.builds(
    Waiting,
    id=st.uuids().map(str),
    priority=st.integers(1, 5),
    arrived=st.floats(0, 1e6),
    owner=st.sampled_from(["ann", "bob"]),
)
WINDOWS = st.lists(WAITING, max_size=30, unique_by=lambda waiting: waiting.id)


@given(WINDOWS)
def test_nobody_is_lost_or_invented(window: list[Waiting]) -> None:
    assert sorted(order(window), key=lambda w: w.id) == sorted(window, key=lambda w: w.id)


@given(WINDOWS)
def test_nobody_waits_behind_a_lower_priority_or_a_later_arrival(window: list[Waiting]) -> None:
    ordered = order(window)
    for earlier, later in itertools.pairwise(ordered):
        assert earlier.priority <= later.priority
        if earlier.priority == later.priority:
            assert earlier.arrived <= later.arrived


@given(WINDOWS, st.randoms())
def test_the_order_does_not_depend_on_how_they_lie(
    window: list[Waiting], shuffling: random.Random
) -> None:
    shuffled = list(window)
    shuffling.shuffle(shuffled)
    assert order(shuffled) == order(window)


@given(WINDOWS, WAITING)
def test_one_more_does_not_turn_the_others_around(window: list[Waiting], more: Waiting) -> None:
    others = [waiting for waiting in window if waiting.id != more.id]
    assert [w for w in order([*others, more]) if w is not more] == order(others)
