"""Runs every benchmark in one go and reports."""

from __future__ import annotations

from pathlib import Path

from benchmarks.farm import running
from benchmarks.render import render
from benchmarks.report import report
from benchmarks.text import peers, text

if __name__ == "__main__":
    with peers() as others, running(others.mock) as farm:
        report(text(farm, others), render(farm), Path(__file__).parent / "results")
