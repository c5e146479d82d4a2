"""What `make bench` shows: a table, a JSON file, a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.load import Measurement
from benchmarks.render import Rendering

matplotlib.use("Agg")
from matplotlib import pyplot

__all__ = ["report"]


def report(text: Mapping[str, Measurement], rendering: Rendering, folder: Path) -> None:
    """Print the ratios and write ``bench.json`` and ``bench.png`` into ``folder``."""
    ratios = _ratios(text, rendering)
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "text": {name: asdict(found) for name, found in text.items()},
        "render": asdict(rendering),
        "ratios": ratios,
    }
    (folder / "bench.json").write_text(json.dumps(result, indent=2) + "\n")
    _plot(text, rendering, folder / "bench.png")
    _print(text, rendering, ratios)
    print(f"\n{folder / 'bench.json'}\n{folder / 'bench.png'}")


def _ratios(text: Mapping[str, Measurement], rendering: Rendering) -> dict[str, float]:
    rate = {name: found.requests_per_second for name, found in text.items()}
    return {
        "text_over_forwarder": rate["moyin"] / rate["forwarder"],
        "text_over_forwarder_in_serve": rate["moyin"] / rate["forwarder in Serve"],
        "forwarder_in_serve_over_forwarder": rate["forwarder in Serve"] / rate["forwarder"],
        "text_over_mock": rate["moyin"] / rate["mock"],
        "render_over_direct": rendering.farm_seconds / rendering.direct_seconds,
        "submit_ms": rendering.submit_ms,
    }


def _print(
    text: Mapping[str, Measurement], rendering: Rendering, ratios: Mapping[str, float]
) -> None:
    print("\ntext, 16 connections     requests/s    p50 ms    p99 ms    errors")
    for name, found in text.items():
        print(
            f"  {name:20} {found.requests_per_second:12,.0f}"
            f"{found.p50_ms:10.2f}{found.p99_ms:10.2f}{found.errors:10}"
        )
    print(f"\n{rendering.graphs} graphs of half a second on one actor")
    print(f"  straight to ComfyUI  {rendering.direct_seconds:12.1f} s")
    print(f"  through /jobs        {rendering.farm_seconds:12.1f} s")
    print("\nratio                                    now    target")
    for name, sign, target in (
        ("text_over_forwarder", "≥", 0.6),
        ("render_over_direct", "≤", 1.15),
        ("submit_ms", "≤", 30),
    ):
        print(f"  {name:34} {ratios[name]:7.2f}    {sign} {target}")
    for name in (
        "text_over_forwarder_in_serve",
        "forwarder_in_serve_over_forwarder",
        "text_over_mock",
    ):
        print(f"  {name:34} {ratios[name]:7.2f}")


def _plot(text: Mapping[str, Measurement], rendering: Rendering, path: Path) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    compared: dict[str, Any] = {
        name: text[name].requests_per_second
        for name in ("forwarder", "forwarder in Serve", "moyin")
    }
    bars = left.barh(["bare forwarder", "the same in Serve", "Moyin /v1"], list(compared.values()))
    left.bar_label(bars, fmt="{:,.0f}", padding=4)
    left.set_title("Text: requests a second, 16 connections")
    left.margins(x=0.15)
    bars = right.barh(
        ["straight to ComfyUI", "Moyin /jobs"],
        [rendering.direct_seconds, rendering.farm_seconds],
        color="tab:orange",
    )
    right.bar_label(bars, fmt="{:.1f} s", padding=4)
    right.set_title(f"Render: {rendering.graphs} graphs of half a second, one actor")
    right.margins(x=0.15)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
