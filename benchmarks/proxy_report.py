"""Reports the results of the proxy benchmark as a table, a JSON file and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.proxy import OPEN, OpenConnections, ServerResult

matplotlib.use("Agg")
from matplotlib import pyplot

_COLORS = {"nginx": "tab:green", "Moyin": "tab:blue", "Moyin's process alone": "tab:cyan"}


def report_proxy(results: Sequence[ServerResult], folder: Path) -> None:
    """Print the results and write ``proxy.json`` and ``proxy.png`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    ratios = _compute_ratios(results)
    report = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "open": OPEN,
        "standings": [asdict(server_result) for server_result in results],
        "ratios": ratios,
    }
    (folder / "proxy.json").write_text(json.dumps(report, indent=2) + "\n")
    _print_results(results, ratios)
    _plot_results(results, folder / "proxy.png")
    print(f"\n{folder / 'proxy.json'}\n{folder / 'proxy.png'}")


def _compute_ratios(results: Sequence[ServerResult]) -> dict[str, float]:
    rate_by_name = {
        server_result.name: server_result.load.requests_per_second for server_result in results
    }
    return {
        f"{name} over {peer_name}": rate_by_name[name] / rate_by_name[peer_name]
        for name in ("Moyin", "Moyin's process alone")
        for peer_name in ("nginx", "bare forwarder", "bare service")
        if peer_name in rate_by_name
    }


def _print_results(results: Sequence[ServerResult], ratios: dict[str, float]) -> None:
    print("\nreverse proxy, 16 connections requests/s    p50 ms    p99 ms    errors")
    for server_result in results:
        load = server_result.load
        print(
            f"  {server_result.name:24}{load.requests_per_second:14,.0f}"
            f"{load.p50_ms:10.2f}{load.p99_ms:10.2f}{load.errors:10}"
        )
    for title, attribute in (
        ("WebSockets (round trip, all at once)", "sockets"),
        ("event streams (from the service to the client)", "streams"),
    ):
        print(f"\n{OPEN} open {title}\n{'held':>34}    p50 ms    p99 ms")
        for server_result in results:
            connections: OpenConnections | None = getattr(server_result, attribute)
            if connections is not None:
                print(
                    f"  {server_result.name:24}{connections.held:8,}"
                    f"{connections.p50_ms:10.2f}{connections.p99_ms:10.2f}"
                )
    print("\nratio of requests/s")
    for name, ratio in ratios.items():
        print(f"  {name:46} {ratio:7.2f}")


def _plot_results(results: Sequence[ServerResult], path: Path) -> None:
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.4), layout="constrained")
    bars = [(s.name, s.load.requests_per_second) for s in results]
    _draw_bars(axes[0], "Requests a second, 16 connections", bars, "{:,.0f}")
    for panel, title, attribute in (
        (axes[1], f"{OPEN:,} WebSockets: p99, ms", "sockets"),
        (axes[2], f"{OPEN:,} event streams: p99, ms", "streams"),
    ):
        named_results = [
            (s.name, getattr(s, attribute)) for s in results if getattr(s, attribute) is not None
        ]
        _draw_bars(
            panel, title, [(name, result.p99_ms) for name, result in named_results], "{:,.0f}"
        )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_bars(panel: Any, title: str, bars: Sequence[tuple[str, float]], label: str) -> None:
    names = [name for name, _ in bars]
    colors = [_COLORS.get(name, "tab:gray") for name in names]
    bar_container = panel.barh(names, [length for _, length in bars], color=colors)
    panel.bar_label(bar_container, fmt=label, padding=4)
    panel.set_title(title)
    panel.margins(x=0.2)
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
