"""Tests that docs/clients.md lists exactly the expected failures in `tests.acceptance.limits`."""

from __future__ import annotations

from tests.acceptance.scores import PAGE, build_limits_table


def test_the_page_lists_every_limit() -> None:
    page = PAGE.read_text()
    missing_lines = [line for line in build_limits_table() if line not in page]
    assert missing_lines == [], (
        f"{PAGE} lacks expected failures: run `pytest tests/acceptance --clients-page`"
    )
