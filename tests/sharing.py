"""Keeps the tests that share one whole farm, of the fixture ``gateway``, in one process.

A farm takes a minute of both cores to start and a quarter of one to stay up.
"""

from __future__ import annotations

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

__all__ = ["FarmScheduling", "group_farm_tests", "shares_farm"]

_FIXTURE = "gateway"
_GROUP = "farm"


class FarmScheduling(LoadFileScheduling):
    """Keeps the tests of a file together, and those of all files that share the farm."""

    def _split_scope(self, nodeid: str) -> str:
        # So xdist marks the tests of a group, for want of another way to its scheduler.
        file: str = super()._split_scope(nodeid)
        return _GROUP if nodeid.endswith(f"@{_GROUP}") else file


def group_farm_tests(items: list[pytest.Item]) -> None:
    """Make one group of all files in which a test uses the farm, and put it first: it is long."""
    files = {item.path for item in items if _FIXTURE in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in files)
    for item in items:
        if item.path in files:
            item.add_marker(pytest.mark.xdist_group(_GROUP))


def shares_farm(item: pytest.Item) -> bool:
    """Whether the test is in a file that shares the farm."""
    return item.get_closest_marker("xdist_group") is not None
