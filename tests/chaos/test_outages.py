"""Clients at work while Ray and Serve die: every answer is one that a client can act on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.chaos.outages import kill, watching
from tests.chaos.watch import Watch
from tests.door import Measured, StackDoor

# `python -m tests.chaos.outages` kills every part, which takes a quarter of an hour.
_KILLED = ["gcs_server", "raylet"]


@pytest.fixture(scope="module")
def watch(own_door: StackDoor) -> Iterator[Watch]:
    with watching(own_door) as watch:
        yield watch


@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", _KILLED)
def test_no_answer_misleads_while_it_restarts(
    part: str, own_door: StackDoor, watch: Watch, measured: Measured
) -> None:
    seen = len(watch.wrong)
    outage = kill(own_door, watch, part)
    measured(outage.row)
    assert watch.wrong[seen:] == []


@pytest.mark.timeout(400)
def test_serve_shutdown_leaves_no_misleading_answer(own_door: StackDoor, watch: Watch) -> None:
    """Last: it takes the apps away and deploys them again."""
    seen = len(watch.wrong)
    own_door.serve("shutdown", "-y")
    watch.wait_until_away(time.monotonic())
    own_door.run("deploy")
    watch.wait_until_well(time.monotonic())
    assert watch.wrong[seen:] == []
