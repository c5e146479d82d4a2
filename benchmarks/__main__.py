"""Runs benchmarks and writes reports: ``python -m benchmarks [text|duel|render|peers|proxy|all]``."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from benchmarks.contest import run_contest, run_duel
from benchmarks.farm import running_farm
from benchmarks.isolation import measure_isolation
from benchmarks.proxy import measure_proxy
from benchmarks.proxy_report import report_proxy
from benchmarks.render import measure_renders
from benchmarks.report import write_report
from benchmarks.standings import report_standings
from benchmarks.text import measure_text, running_peer_servers

_RESULTS = Path(__file__).parent / "results"
# Rounds of the isolation benchmark, and graphs in each.
_ROUNDS, _GRAPHS = 4, 25
_PARTS = {
    "text": "model calls compared with a bare forwarder",
    "duel": "model calls and streams compared with TensorZero, the fastest gateway, in a small stack",
    "render": "renders compared with direct calls of ComfyUI, and the cost of isolation",
    "peers": "model calls compared with other gateways",
    "proxy": "the reverse proxy compared with nginx",
    "all": "all of these but duel, which peers contains, in one stack",
}


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    part_descriptions = "; ".join(f"{name}: {description}" for name, description in _PARTS.items())
    parser.add_argument("part", nargs="?", choices=[*_PARTS], default="all", help=part_descriptions)
    benchmark = parser.parse_args().part
    actors = 0 if benchmark == "duel" else 1
    with (
        running_peer_servers() as peer_servers,
        running_farm(peer_servers.mock, peer_servers.service, actors) as farm,
    ):
        if benchmark == "duel":
            report_standings(run_duel(farm, peer_servers), _RESULTS, benchmark)
        if benchmark in ("text", "render", "all"):
            text_results = measure_text(farm, peer_servers) if benchmark != "render" else {}
            render_result = measure_renders(farm) if benchmark != "text" else None
            isolation_result = (
                asyncio.run(measure_isolation(_ROUNDS, _GRAPHS)) if benchmark != "text" else None
            )
            write_report(text_results, render_result, isolation_result, _RESULTS)
        if benchmark in ("proxy", "all"):
            report_proxy(measure_proxy(farm, peer_servers), _RESULTS)
        if benchmark in ("peers", "all"):
            report_standings(run_contest(farm, peer_servers), _RESULTS)


if __name__ == "__main__":
    main()
