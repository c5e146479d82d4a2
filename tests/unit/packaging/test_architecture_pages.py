"""Tests that all source files named on the architecture pages exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_PATH = re.compile(r"`([\w/]+/\w+\.py)`")


@pytest.mark.parametrize(
    "name",
    [
        "ARCHITECTURE.md",
        "docs/architecture/life-of-a-chat.md",
        "docs/architecture/life-of-a-render.md",
    ],
)
def test_named_source_files_exist(name: str) -> None:
    paths = set(_PATH.findall((ROOT / name).read_text()))
    assert len(paths) > 5
    assert sorted(path for path in paths if not (ROOT / path).is_file()) == []
