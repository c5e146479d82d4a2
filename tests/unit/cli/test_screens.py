"""Tests the CLI's output on a terminal of a hundred columns."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from moyin.cli import quality, route, screen
from moyin.cli.screen import print_pairs

_QUALITY = {"p_good": 0.9, "p_good_low": 0.86, "signals": 0, "basis": "table"}
_EXPECTED = {"cost_usd": "0.0002287", "seconds": 6.1}
_REASON = "costs 0.0019654 USD more and takes 2.77 s longer"
DECISION = {
    "quality": None,
    "route": "cheapest",
    "explore": {"share": 0.0, "tried": None},
    "candidates": [
        {
            "model": f"claude-{name}-5-5",
            "backend": "claude",
            "quality": _QUALITY,
            "expected": _EXPECTED,
            "score_usd": 0.003,
            "reason": reason,
        }
        for name, reason in (("haiku", "cheapest"), ("sonnet", _REASON))
    ],
    "refused": [{"model": "smollm2-135m", "backend": "local", "reason": "tools [none]"}],
}
KNOWN = {
    "owner": "ann",
    "frozen": False,
    "table_date": "2026-11-27",
    "models": [
        {
            "model": "qwen3-8b",
            "ability": 1.0,
            "kinds": {"code": {"ability": 2.4, "spread": 0.5, "source": "qwen3-8b, EvalPlus"}},
            "spread": 0.5,
            "source": "qwen3-8b, MMLU 76.9 % by its card",
            "signals": {"code": 2.0},
            "shared": {},
        }
    ],
    "calibration": [{"from": 0.8, "to": 0.9, "expected": 0.85, "good": 0.5, "signals": 2}],
    "prices": [
        {"usd_per_bad_answer": 0.003, "cost_usd": 0.1, "bad_answers": 1, "models": {"qwen3-8b": 2}}
    ],
}


@pytest.fixture
def terminal_output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    output = io.StringIO()
    terminal = Console(
        file=output, force_terminal=True, width=100, highlight=False, soft_wrap=True, no_color=True
    )
    for module in (screen, route, quality):
        monkeypatch.setattr(module, "out", terminal)
    return output


def test_reason_stays_on_one_line(terminal_output: io.StringIO) -> None:
    route._print_decision(DECISION)
    lines = [" ".join(_plain(line).split()) for line in terminal_output.getvalue().splitlines()]
    assert f"claude-sonnet-5-5 {_REASON}" in lines
    assert "smollm2-135m out: tools [none]" in lines
    assert max(map(len, lines)) <= 100


def test_quality_tables_have_captions(
    terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gateway(_: Any) -> Any:
        return KNOWN

    monkeypatch.setattr(quality, "with_gateway", gateway)
    quality.show()
    text = _plain(terminal_output.getvalue())
    assert "# is the share found good, | the expected share" in text
    assert "under other prices of a bad answer" in text
    assert "code +2.4" in text
    assert text.count("qwen3-8b") == 2  # The source does not repeat the name.


def test_brackets_in_a_value_are_not_markup(terminal_output: io.StringIO) -> None:
    print_pairs([("a", "[bold]b[/]")])
    assert "[bold]b[/]" in terminal_output.getvalue()


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
