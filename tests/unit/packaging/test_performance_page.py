"""Tests that the plots of the performance page match its tables."""

from __future__ import annotations

import pytest

from benchmarks.page import PAGE, compute_throughput, read_render_costs

_TABLES = """
| text through `/v1`, one replica, over the bare forwarder | 0.25 | ≥ 0.6, **missed** |
| … over the same forwarder as a Serve app, which reaches 0.64 | 0.5 | - |
| … over LiteLLM with two workers; 10.8 before | 12.5 | ≥ 8 |
| … over Portkey; 1.88 before | 2 | ≥ 1.5 |

| process | ms at the start | ms now |
|---|---|---|
| ComfyUIActor | 8, 10 | 5, 6 |
| Valkey, HAProxy | 2 | 1 |

| other | a | b |
"""


def test_bars_are_the_tables_ratios() -> None:
    assert compute_throughput(_TABLES) == {
        "bare forwarder": 4,
        "forwarder in Serve": 2,
        "Portkey": 0.5,
        "LiteLLM, two workers": pytest.approx(0.08),
        "Moyin, one replica": 1,
    }


def test_costs_are_the_means_of_the_rounds() -> None:
    assert read_render_costs(_TABLES) == {"ComfyUIActor": (9, 5.5), "Valkey, HAProxy": (2, 1)}


def test_the_page_has_rows_for_both_plots() -> None:
    page = PAGE.read_text()
    assert all(bar > 0 for bar in compute_throughput(page).values())
    assert len(read_render_costs(page)) > 5
