"""Formats the results of third-party test suites as tables for the terminal and docs/clients.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.limits import LIMITS
from tests.acceptance.text_gateway import CLAUDE, LLAMA

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_MODELS = {
    LLAMA: "SmolLM2-135M on llama.cpp",
    CLAUDE: "the same, on Claude's wire",
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """The outcome of a test: ``passed``, ``failed``, ``limit`` (failed as listed), or ``skipped``.

    Attributes:
        suite: the name of the suite.
        model: the model that was tested.
        reason: why the test was skipped or is expected to fail.
    """

    suite: str
    model: str
    outcome: str
    reason: str


def build_scores_table(scores: Iterable[Score]) -> list[str]:
    """Return a Markdown table with a row per suite and model, and the reasons for skipped tests."""
    counts_by_row: dict[tuple[str, str], Counter[str]] = {}
    suites_by_reason: dict[str, set[str]] = {}
    for score in scores:
        table_key = (score.suite, _MODELS.get(score.model, "the model that obeys"))
        counts_by_row.setdefault(table_key, Counter())[score.outcome] += 1
        if score.outcome == "skipped":
            suites_by_reason.setdefault(score.reason, set()).add(score.suite)
    table_lines = [
        "| suite | on | passed | limit of the model | not asked | failed |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for (suite, model), count in sorted(counts_by_row.items()):
        outcome_counts = (count[name] for name in ("passed", "limit", "skipped", "failed"))
        table_lines.append(f"| {suite} | {model} | {' | '.join(map(str, outcome_counts))} |")
    return [*table_lines, "", *_list_skipped_suites(suites_by_reason)]


def _list_skipped_suites(suites_by_reason: dict[str, set[str]]) -> Iterator[str]:
    if suites_by_reason:
        yield "Not asked, in the suites' own words:"
        yield ""
    for reason, suites in sorted(suites_by_reason.items()):
        yield f"- {reason.rstrip('.')} ({', '.join(sorted(suites))})"


def build_limits_table() -> list[str]:
    """Return a Markdown table of all expected failures in `LIMITS`, with the reasons."""
    table_lines = ["| suite | on | tests | why |", "|---|---|---|---|"]
    for limit in LIMITS:
        names = ", ".join(f"`{name.replace('[', ': ')}`" for name in limit.names)
        reason = limit.reason if limit.certain else f"may fail: {limit.reason}"
        suite = limit.module.replace("_", "-")
        table_lines.append(f"| {suite} | {_MODELS[limit.model]} | {names} | {reason} |")
    return table_lines


def write_section(page: Path, name: str, lines: list[str]) -> None:
    """Write the lines between the comments ``<!-- NAME -->`` and ``<!-- end of NAME -->`` of a page."""
    begin_mark, end_mark = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, found_begin, after_begin = page.read_text().partition(begin_mark)
    _, found_end, tail = after_begin.partition(end_mark)
    if not (found_begin and found_end):
        raise ValueError(f"{page} must contain the comments {begin_mark} and {end_mark}")
    page.write_text("\n".join([head + begin_mark, "", *lines, "", end_mark]) + tail)
