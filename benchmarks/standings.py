"""Reports the comparison with other gateways as tables, a JSON file and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.contest import MOYIN, MOYIN_TWO, Result

matplotlib.use("Agg")
from matplotlib import pyplot

_MIB = 2**20
_COMPARED = 16
# Allowed growth of memory: allocators keep some freed memory, which is not a leak.
_MAX_GROWTH = 1.05
_COLORS = {
    "direct": "tab:gray",
    MOYIN: "tab:blue",
    MOYIN_TWO: "tab:cyan",
    "LiteLLM, 2 workers": "tab:orange",
    "Portkey": "tab:green",
    "TensorZero": "tab:red",
}


def report_standings(results: Sequence[Result], folder: Path, name: str = "peers") -> None:
    """Print the results, and write ``<name>.json`` and ``<name>.png`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = _check_targets(results)
    report = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "results": [{**asdict(result), "held": result.held_stream_count} for result in results],
        "targets": targets,
    }
    (folder / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    _print_results(results, targets)
    _plot_results(results, folder / f"{name}.png")
    print(f"\n{folder / name}.json\n{folder / name}.png")


def _check_targets(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the project's targets for one replica of Moyin, such as requests per second.

    Each target has the measured figure, the limit and whether the figure meets it.
    """
    result_by_name = {result.name: result for result in results}
    moyin_result = result_by_name[MOYIN]
    ratios = {"TensorZero": 0.5, "LiteLLM, 2 workers": 8.0, "Portkey": 1.5}
    rows = [
        _check_target("streams of 50 tokens/s held", moyin_result.held_stream_count, "≥", 1_000),
        _check_target(
            "first token +p50, one connection, ms", moyin_result.added_first.p50_ms, "≤", 0.3
        ),
    ]
    for name, target_ratio in ratios.items():
        if (peer_result := result_by_name.get(name)) is None:
            continue
        ratio = moyin_result.ratio_to(peer_result, _COMPARED)
        rows.append(_check_target(f"requests/s over {name}", ratio, "≥", target_ratio))
        if name == "TensorZero":
            continue
        p99_ratio = moyin_result.load[_COMPARED].p99_ms / peer_result.load[_COMPARED].p99_ms
        rows.append(_check_target(f"p99 over {name}", p99_ratio, "<", 1.0))
    if moyin_result.growth is not None:
        rows.append(
            _check_target("memory after over before", moyin_result.growth.ratio, "≤", _MAX_GROWTH)
        )
    return rows


def _check_target(name: str, measured: float, sign: str, target: float) -> dict[str, Any]:
    is_met = {"≥": measured >= target, "<": measured < target, "≤": measured <= target}[sign]
    return {"name": name, "found": measured, "sign": sign, "wanted": target, "met": is_met}


def _print_results(results: Sequence[Result], targets: Sequence[dict[str, Any]]) -> None:
    for title, cell in (
        ("requests/s", lambda r, c: f"{r.load[c].requests_per_second:,.0f}"),
        ("over direct", lambda r, c: f"{r.over_direct[c]:.4f}"),
        ("added p50 ms", lambda r, c: f"{r.added[c][0]:.2f}"),
        ("added p99 ms", lambda r, c: f"{r.added[c][1]:.2f}"),
        ("processor µs", lambda r, c: f"{r.processor[c]:,.0f}"),
        ("errors", lambda r, c: f"{r.load[c].errors}"),
    ):
        _print_table(title, results, cell)
    print(f"\n{'streams':22}{'first token +p50':>18}{'+p99 ms':>10}{'held at 50/s':>14}{'load':>8}")
    for result in results:
        added_first = result.added_first
        print(
            f"  {result.name:20}{added_first.p50_ms:18.2f}{added_first.p99_ms:10.2f}"
            f"{result.held_stream_count:14}{result.busy:8.1f}"
        )
    print(
        f"\n{'delay of tokens, ms':22}"
        + "".join(f"{level.streams:>14}" for level in results[0].streams)
    )
    for result in results:
        cells = (f"{level.p50_ms:.0f}, {level.p99_ms:.0f}" for level in result.streams)
        print(f"  {result.name:20}" + "".join(f"{cell:>14}" for cell in cells))
    print(f"\n{'memory':22}{'requests':>12}{'MiB before':>12}{'MiB after':>12}{'after/before':>14}")
    for result in results:
        if (growth := result.growth) is not None:
            first_size, last_size = (size / _MIB for size in (growth.bytes[0], growth.bytes[-1]))
            print(
                f"  {result.name:20}{growth.requests[-1]:12,}{first_size:12,.0f}"
                f"{last_size:12,.0f}{growth.ratio:14.3f}"
            )
    print(f"\n{'target, 16 connections':44}{'now':>8}{'wanted':>10}")
    for target in targets:
        missed_note = "" if target["met"] else "  missed"
        wanted_text = f"{target['sign']} {target['wanted']}"
        print(f"  {target['name']:42}{target['found']:8.2f}{wanted_text:>10}{missed_note}")


def _print_table(
    title: str, results: Sequence[Result], format_cell: Callable[[Result, int], str]
) -> None:
    connections = list(results[0].load)
    print(f"\n{title:22}" + "".join(f"{f'{c} conn.':>12}" for c in connections))
    for result in results:
        print(f"  {result.name:20}" + "".join(f"{format_cell(result, c):>12}" for c in connections))


def _plot_results(results: Sequence[Result], path: Path) -> None:
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    _draw_lines(
        axes[0][0], results, "Requests a second", lambda r, c: r.load[c].requests_per_second
    )
    _draw_lines(axes[0][1], results, "Latency: p99, ms", lambda r, c: r.load[c].p99_ms)
    _draw_bars(axes[1][0], results)
    _draw_memory(axes[1][1], results)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_lines(
    panel: Any, results: Sequence[Result], title: str, get_value: Callable[[Result, int], float]
) -> None:
    connections = list(results[0].load)
    for result in results:
        panel.plot(
            connections,
            [get_value(result, count) for count in connections],
            marker="o",
            label=result.name,
            color=_COLORS[result.name],
        )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(connections, [str(count) for count in connections])
    panel.set_xlabel("connections")
    panel.set_title(title)
    panel.grid(alpha=0.3)


def _draw_bars(panel: Any, results: Sequence[Result]) -> None:
    names = [result.name for result in results]
    bars = panel.barh(
        names,
        [result.held_stream_count for result in results],
        color=[_COLORS[name] for name in names],
    )
    most_streams = max(level.streams for result in results for level in result.streams)
    panel.bar_label(
        bars,
        [
            f"{r.held_stream_count}{' or more' if r.streams[-1].is_undelayed else ''}"
            for r in results
        ],
        padding=4,
    )
    panel.set_xlim(0, most_streams * 1.25)
    panel.invert_yaxis()
    panel.set_title("Streams of 50 tokens/s held, p99 of delay ≤ 100 ms")


def _draw_memory(panel: Any, results: Sequence[Result]) -> None:
    for result in results:
        if result.growth is not None:
            panel.plot(
                result.growth.requests,
                [size / _MIB for size in result.growth.bytes],
                marker=".",
                label=result.name,
                color=_COLORS[result.name],
            )
    panel.set_ylim(0)
    panel.set_xlabel("requests answered")
    panel.set_title("Memory of the processes that answer, MiB")
    panel.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    panel.grid(alpha=0.3)
