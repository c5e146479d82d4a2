"""Tests that every test that docs/security.md cites as evidence exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "security.md"
_NAMED = re.compile(r"`(?P<file>tests/[\w/]+\.py)?::(?P<test>test_\w+)`")

_HEADS = ("| promise ", "| can | test |", "| cannot | test |")


def test_every_promise_names_a_test_that_exists() -> None:
    named_tests: dict[str, set[str]] = {}
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    for row in rows:
        file = ""
        for citation in _NAMED.finditer(row):
            # A test that is named without a file is in the file before it.
            file = citation["file"] or file
            named_tests.setdefault(file, set()).add(citation["test"])
        assert file or row.startswith(_HEADS), row
    missing_tests = {
        f"{file}::{test}"
        for file, tests in named_tests.items()
        for test in tests - _list_tests(ROOT / file)
    }
    assert missing_tests == set()
    assert sum(map(len, named_tests.values())) > 60


def _list_tests(path: Path) -> set[str]:
    body = ast.parse(path.read_text()).body if path.is_file() else []
    return {item.name for item in body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)}
