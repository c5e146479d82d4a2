"""Reports the results of `make bench` as a table, a JSON file and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.isolation import IsolationCost
from benchmarks.load import Measurement
from benchmarks.render import Rendering

matplotlib.use("Agg")
from matplotlib import pyplot


def write_report(
    text_results: Mapping[str, Measurement],
    rendering: Rendering | None,
    isolation_cost: IsolationCost | None,
    folder: Path,
) -> None:
    """Print the results as ratios, and write ``bench.json`` and ``bench.png`` into ``folder``.

    Args:
        text_results: the results of `benchmarks.text` by server; empty if they were not measured.
        rendering: the results of `benchmarks.render`, or None.
        isolation_cost: the results of `benchmarks.isolation`, or None.
    """
    ratios = _compute_text_ratios(text_results) if text_results else {}
    if rendering is not None:
        ratios |= _compute_render_ratios(rendering)
    if isolation_cost is not None:
        ratios |= {
            "strict_render_over_off": isolation_cost.render_ratio,
            "strict_start_more_s": isolation_cost.start_more,
        }
    folder.mkdir(parents=True, exist_ok=True)
    report_data = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "text": {name: asdict(measurement) for name, measurement in text_results.items()},
        "render": asdict(rendering) if rendering is not None else None,
        "isolation": asdict(isolation_cost) if isolation_cost is not None else None,
        "ratios": ratios,
    }
    (folder / "bench.json").write_text(json.dumps(report_data, indent=2) + "\n")
    _plot_results(text_results, rendering, folder / "bench.png")
    _print_ratios(text_results, rendering, ratios)
    print(f"\n{folder / 'bench.json'}\n{folder / 'bench.png'}")


def _compute_text_ratios(text_results: Mapping[str, Measurement]) -> dict[str, float]:
    rate_by_name = {
        name: measurement.requests_per_second for name, measurement in text_results.items()
    }
    return {
        "text_over_forwarder": rate_by_name["moyin"] / rate_by_name["forwarder"],
        "text_over_forwarder_in_serve": rate_by_name["moyin"] / rate_by_name["forwarder in Serve"],
        "forwarder_in_serve_over_forwarder": rate_by_name["forwarder in Serve"]
        / rate_by_name["forwarder"],
        "text_over_mock": rate_by_name["moyin"] / rate_by_name["mock"],
    }


def _compute_render_ratios(rendering: Rendering) -> dict[str, float]:
    return {
        "render_over_direct": rendering.farm_seconds / rendering.direct_seconds,
        "submit_ms": rendering.submit_ms,
    }


def _print_ratios(
    text_results: Mapping[str, Measurement],
    rendering: Rendering | None,
    ratios: Mapping[str, float],
) -> None:
    if text_results:
        print("\ntext, 16 connections     requests/s    p50 ms    p99 ms    errors")
    for name, load in text_results.items():
        print(
            f"  {name:20} {load.requests_per_second:12,.0f}"
            f"{load.p50_ms:10.2f}{load.p99_ms:10.2f}{load.errors:10}"
        )
    if rendering is not None:
        print(f"\n{rendering.graphs} graphs of half a second on one actor")
        print(f"  directly to ComfyUI  {rendering.direct_seconds:12.1f} s")
        print(f"  through /jobs        {rendering.farm_seconds:12.1f} s")
    print("\nratio                                    now    target")
    targets = {
        "text_over_forwarder": "≥ 0.6",
        "render_over_direct": "≤ 1.08",
        "submit_ms": "≤ 30",
        "strict_render_over_off": "≤ 1.02",
        "strict_start_more_s": "≤ 0.5",
    }
    for name, ratio in ratios.items():
        print(f"  {name:34} {ratio:7.2f}    {targets.get(name, '')}".rstrip())


def _plot_results(
    text_results: Mapping[str, Measurement], rendering: Rendering | None, path: Path
) -> None:
    panels = [bool(text_results), rendering is not None].count(True)
    figure, axes = pyplot.subplots(
        1, panels, figsize=(5 * panels, 3.6), layout="constrained", squeeze=False
    )
    if text_results:
        _plot_text(axes[0][0], text_results)
    if rendering is not None:
        _plot_render(axes[0][-1], rendering)
    for panel in axes[0]:
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _plot_text(panel: Any, text_results: Mapping[str, Measurement]) -> None:
    compared_rates = [
        text_results[name].requests_per_second
        for name in ("forwarder", "forwarder in Serve", "moyin")
    ]
    bars = panel.barh(["bare forwarder", "the same in Serve", "Moyin /v1"], compared_rates)
    panel.bar_label(bars, fmt="{:,.0f}", padding=4)
    panel.set_title("Text: requests a second, 16 connections")


def _plot_render(panel: Any, rendering: Rendering) -> None:
    bars = panel.barh(
        ["directly to ComfyUI", "Moyin /jobs"],
        [rendering.direct_seconds, rendering.farm_seconds],
        color="tab:orange",
    )
    panel.bar_label(bars, fmt="{:.1f} s", padding=4)
    panel.set_title(f"{rendering.graphs} renders of half a second, one actor")
