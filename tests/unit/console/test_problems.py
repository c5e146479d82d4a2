"""Tests that the console has a place and words in each language for every problem of the cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployments.gateway.cluster import problems

CONSOLE = Path(__file__).parents[3] / "console" / "src"
CODES = re.findall(r'code="(\w+)"', Path(problems.__file__).read_text(encoding="utf-8"))


@pytest.mark.parametrize("code", CODES)
def test_every_problem_has_words_and_belongs_to_a_check(code: str) -> None:
    words = (CONSOLE / "components" / "problems-strings.ts").read_text(encoding="utf-8")
    # Its kind in English and Japanese, and the message and the advice in Japanese.
    assert len(re.findall(rf"^ +{code}:", words, re.MULTILINE)) == 4
    checks = (CONSOLE / "pages" / "operate" / "checks.tsx").read_text(encoding="utf-8")
    assert f'"{code}"' in checks
