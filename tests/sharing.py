"""Runs all tests that use the shared farm (fixture ``gateway``) in one process.

A farm takes a minute of both cores to start and a quarter of a core to stay up. Tests that share a
real Ollama also run in one process. Those run last, because Ollama may still be being compiled.

pytest-xdist's own groups would suffice, but its version 3.8 does not see them under pytest 9.2.
"""

from __future__ import annotations

import json
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

_FIXTURE = "gateway"
_LAST_FIXTURE = "ollama_server"
_FILES = pytest.StashKey[frozenset[str]]()
_LIST = "farm_list"


class FarmSharing:
    """A pytest plugin that assigns all files whose tests use the farm to one process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._list = Path(self._folder.name) / _LIST

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_LIST] = str(self._list)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadFileScheduling:
        return _FarmScheduling(config, log, self._list)

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Move the files whose tests use the farm to the front, because they take long.

        Also remembers these files for the scheduler.
        """
        fixtures_by_file = {
            _file_of(item.nodeid): fixture
            for item in items
            for fixture in (_FIXTURE, _LAST_FIXTURE)
            if fixture in getattr(item, "fixturenames", ())
        }
        config.stash[_FILES] = frozenset(
            file for file, fixture in fixtures_by_file.items() if fixture == _FIXTURE
        )
        group_order = {_FIXTURE: 0, _LAST_FIXTURE: 2}
        items.sort(
            key=lambda item: group_order.get(fixtures_by_file.get(_file_of(item.nodeid), ""), 1)
        )
        list_path = getattr(config, "workerinput", {}).get(_LIST)
        if list_path is not None:
            Path(list_path).write_text(json.dumps(fixtures_by_file))


class _FarmScheduling(LoadFileScheduling):
    """Assigns all tests of a file to one process, and so all files that share a farm or an Ollama."""

    def __init__(self, config: pytest.Config, log: Any, list_path: Path) -> None:
        super().__init__(config, log)
        self._list = list_path

    @cached_property
    def _groups(self) -> dict[str, str]:
        # Every process has written the same before anything is scheduled.
        groups: dict[str, str] = json.loads(self._list.read_text())
        return groups

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.get(_file_of(nodeid), _file_of(nodeid))


def shares_farm(item: pytest.Item) -> bool:
    """Return True if a test in the same file uses the farm."""
    return _file_of(item.nodeid) in item.config.stash[_FILES]


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]
