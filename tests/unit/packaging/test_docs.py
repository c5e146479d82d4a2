"""Tests that the reference pages match the code, and that the README's statements hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from moyin.settings import Settings
from scripts.api_pages import list_error_types
from scripts.error_advice import ADVICE
from scripts.reference import build_settings_page, list_stale_pages

ROOT = Path(__file__).parents[3]
_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_the_reference_is_fresh() -> None:
    assert list_stale_pages() == [], "run `make docs`"


def test_every_setting_is_documented() -> None:
    page = build_settings_page()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`MOYIN_{name.upper()}`" in page


def test_every_error_has_advice_and_every_advice_an_error() -> None:
    assert ADVICE.keys() == list_error_types().keys()
    for code, (meaning, advice) in ADVICE.items():
        for sentence in (meaning, advice):
            assert sentence.endswith("."), code
            assert "|" not in sentence, code


def test_every_complaint_names_tests_that_exist() -> None:
    _, _, complaints_section = (ROOT / "docs/farm.md").read_text().partition("\n## Complaints ")
    rows = [
        line
        for line in complaints_section.partition("\n## ")[0].splitlines()
        if line.startswith("| ")
    ]
    assert len(rows) > 20
    for row in rows[1:]:
        tests = _TEST.findall(row)
        assert tests, row
        for file, name in tests:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}: {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.json")), ids=lambda p: p.name)
def test_an_example_graph_is_in_the_api_format(path: Path) -> None:
    graph = json.loads(path.read_text())
    for node in graph.values():
        assert isinstance(node["class_type"], str)
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in graph
