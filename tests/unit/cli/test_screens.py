"""Tests the CLI's output on a terminal of a hundred columns."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from moyin.cli import job_view, quality, route, screen
from moyin.cli.job_view import describe_status, print_job
from moyin.cli.main import _format_error
from moyin.cli.screen import Screen, format_count, print_pairs, print_records, print_table
from moyin.client.errors import RequestRefused

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


_PICTURE = {"id": "art_1", "name": "a.png", "media_type": "image/png", "size": 2000}
_OUTPUT: dict[str, Any] = {"text": None, "body": None, "artifacts": [], "cached": False}
JOB: dict[str, Any] = {
    "id": "5d9a476c-a862-45d3-8973-93373728c21a", "kind": "pipeline", "status": "running",
    "steps": 5, "progress": {"value": 1, "max": 2, "step": 1}, "error": None, "position": 2,
    "eta": {"starts_in": {"p50": 4.2, "p90": 9.0}, "ends_in": None}, "cancelled_by": None,
    "created_at": "2026-11-29T05:27:05.5Z", "started_at": "2026-11-29T05:27:06.5Z",
    "finished_at": None, "attempts": 2, "priority": 1, "cost_usd": 0.25, "cached": False,
    "metadata": {"shot": "12"}, "children": None, "artifacts": [_PICTURE],
    "submitted": {"steps": [{"kind": "render"}, {"kind": "chat"}]},
    "outputs": [
        {**_OUTPUT, "step": 0, "backend": "comfyui-default-0", "cost_usd": 0.25, "artifacts": [_PICTURE]},
        {**_OUTPUT, "step": 1, "backend": "local", "cost_usd": 0, "text": "Hello\nthere"},
    ],
}  # fmt: skip


@pytest.fixture
def terminal_output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    output = io.StringIO()
    terminal = Console(
        file=output, force_terminal=True, width=100, highlight=False, soft_wrap=True, no_color=True
    )
    for module in (screen, route, quality):
        monkeypatch.setattr(module, "out", terminal)
    return output


def test_the_reason_for_a_candidate_stays_on_one_line(terminal_output: io.StringIO) -> None:
    route._print_decision(DECISION)
    lines = [
        " ".join(_remove_colours(line).split()) for line in terminal_output.getvalue().splitlines()
    ]
    assert f"claude-sonnet-5-5 {_REASON}" in lines
    assert "smollm2-135m out: tools [none]" in lines
    assert max(map(len, lines)) <= 100


def test_quality_tables_have_captions(
    terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def return_quality(_: Any) -> Any:
        return KNOWN

    monkeypatch.setattr(quality, "run_with_gateway", return_quality)
    quality.show()
    screen_text = _remove_colours(terminal_output.getvalue())
    assert "# is the share found good, | the expected share" in screen_text
    assert "under other prices of a bad answer" in screen_text
    assert "code +2.4" in screen_text
    assert "qwen3-8b, MMLU" not in screen_text, "the source repeats the name"


def test_brackets_in_a_value_are_not_markup(terminal_output: io.StringIO) -> None:
    print_pairs([("a", "[bold]b[/]")])
    assert "[bold]b[/]" in terminal_output.getvalue()


def test_empty_table_says_what_to_do(terminal_output: io.StringIO) -> None:
    print_table(("id", "name"), [], empty_text="no jobs: make one")
    assert _remove_colours(terminal_output.getvalue()) == "no jobs: make one\n"


def test_narrow_terminal_leaves_out_empty_and_spare_columns(terminal_output: io.StringIO) -> None:
    columns = ("id", "alias", "time", "job", "name")
    row = ("i" * 40, "", "t" * 30, "j" * 40, "n" * 20)
    print_table(columns, [row], optional_columns=("job", "time"))
    heading, line = _remove_colours(terminal_output.getvalue()).splitlines()
    assert heading.split() == ["id", "time", "name"]
    assert line.split() == [row[0], row[2], row[4]]


def test_terminal_too_narrow_for_a_table_shows_pairs_with_values(
    terminal_output: io.StringIO,
) -> None:
    print_table(("id", "alias", "name"), [("i" * 60, "", "n" * 60)], optional_columns=("alias",))
    lines = _remove_colours(terminal_output.getvalue()).splitlines()
    assert [line.split() for line in lines] == [["id", "i" * 60], ["name", "n" * 60]]


def test_members_of_objects_are_readable_on_a_terminal(
    terminal_output: io.StringIO,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    details = {"disabled": False, "pools": ["a", "b"], "name": "[red]\x1b"}
    print_records(("details",), [(details,)])
    line = _remove_colours(terminal_output.getvalue()).splitlines()[1]
    assert line == "disabled=false, pools=a, b, name=[red]\N{REPLACEMENT CHARACTER}"
    monkeypatch.setattr(screen, "out", Console(file=io.StringIO()))
    print_records(("details",), [({"disabled": False},)])
    assert capsys.readouterr().out == '{"disabled": false}\n'


@pytest.mark.parametrize(
    ("number", "expected_text"), [(0, "0 batches"), (1, "1 batch"), (1200, "1,200 batches")]
)
def test_numbers_have_a_noun_in_singular_or_plural(number: int, expected_text: str) -> None:
    assert format_count(number, "batch", "batches") == expected_text


def test_job_of_several_attempts_is_readable(
    terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_view, "out", screen.out)
    print_job(JOB)
    screen_text = " ".join(_remove_colours(terminal_output.getvalue()).split())
    assert "status running 30% " in screen_text
    assert "place in queue 2 " in screen_text
    assert "starts in 4 s probably, 9 s at most (9 of 10)" in screen_text
    assert "attempts 2 priority 1 cost $0.25 metadata shot=12" in screen_text
    assert "0 render comfyui-default-0 $0.25 a.png" in screen_text
    assert "1 chat local $0.00 Hello there" in screen_text
    assert "art_1 a.png image/png 2.0 kB" in screen_text


def test_children_of_a_batch_are_listed_with_their_errors(
    terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_view, "out", screen.out)
    child = {"index": 0, "status": "failed", "inputs": {"seed": 7}, "artifacts": [],
             "error": {"code": "node_failed", "message": "no"}}  # fmt: skip
    print_job({**JOB, "children": [child]})
    assert "0 failed: node_failed seed=7" in " ".join(
        _remove_colours(terminal_output.getvalue()).split()
    )


@pytest.mark.parametrize("last_child", [0, 9])
def test_progress_of_a_batch_counts_its_children(last_child: int) -> None:
    progress = {"value": 5, "max": 10, "step": last_child}
    batch = {"kind": "render", "status": "running", "steps": 10, "progress": progress}
    assert describe_status(batch) == "running 50%"


def test_long_text_without_spaces_is_cut(
    terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_view, "out", screen.out)
    output = {**JOB["outputs"][1], "text": "答案\n" + "雨" * 400}
    print_job({**JOB, "outputs": [output]})
    screen_text = "".join(_remove_colours(terminal_output.getvalue()).split())
    assert f"答案{'雨' * 297}…" in screen_text


def _remove_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


_HOSTILE = "a\x1b]52;c;ZQ==\x07\x9b2J\r\u202eb[/x]\\[/x]"
_CONTROLLING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Return a screen that takes standard output for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = Screen()
    monkeypatch.setattr(screen, "out", terminal)
    return terminal


def test_texts_cannot_control_the_terminal(
    terminal: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.print(_HOSTILE, markup=False)
    terminal.print(Text(_HOSTILE, style="dim"))
    print_table(("name",), [[escape(_HOSTILE)]])
    shown_text = _remove_colours(capsys.readouterr().out)
    assert not _CONTROLLING.search(shown_text)
    assert shown_text.count("b[/x]\\[/x]") == 3


def test_json_cannot_control_the_terminal(
    terminal: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    for print_value in (screen.print_json, screen.print_json_line):
        print_value({"name": _HOSTILE})
        shown_text = _remove_colours(capsys.readouterr().out)
        assert not _CONTROLLING.search(shown_text)
        assert json.loads(shown_text) == {"name": _HOSTILE}


def test_errors_of_others_are_shown_as_they_are(
    terminal: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps({"code": "c", "detail": _HOSTILE}).encode()
    terminal.print(f"[red]error:[/] {_format_error(RequestRefused(400, {}, body))}")
    shown_text = _remove_colours(capsys.readouterr().out)
    assert not _CONTROLLING.search(shown_text)
    assert "b[/x]\\[/x]" in shown_text
