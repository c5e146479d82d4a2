"""docs/clients.md tells the truth about what does not work."""

from __future__ import annotations

from tests.acceptance.scores import PAGE, limits_table


def test_the_page_lists_every_limit() -> None:
    page = PAGE.read_text()
    missing = [line for line in limits_table() if line not in page]
    assert missing == [], "run `pytest tests/acceptance --clients-page`"
