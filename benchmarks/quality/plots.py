"""Draws the figures of docs/quality.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.folds import Score
from benchmarks.quality.month import SimulatedMonth


def compute_bins(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float, int]]:
    """Divide answers into ten classes by their expected quality, and return a tuple for each.

    A tuple has the mean expected quality, the mean true quality and the number of answers. Empty
    classes are left out.
    """
    bin_rows = []
    for tenth in range(10):
        pairs_in_bin = [pair for pair in pairs if tenth <= min(pair[0] * 10, 9.999) < tenth + 1]
        if pairs_in_bin:
            mean_estimate = sum(pair[0] for pair in pairs_in_bin) / len(pairs_in_bin)
            bin_rows.append(
                (
                    mean_estimate,
                    sum(pair[1] for pair in pairs_in_bin) / len(pairs_in_bin),
                    len(pairs_in_bin),
                )
            )
    return bin_rows


def _new_axes(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _save_figure(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    from matplotlib import pyplot

    pyplot.close(figure)


def draw_recovered(scores: Mapping[str, Score], path: Path) -> None:
    """Draw the recovered part of the quality gap by the share of calls to the expensive model."""
    figure, axes = _new_axes(
        "Quality gap recovered, held-out prompts",
        "calls sent to the expensive model, %",
        "quality gap recovered, %",
    )
    shares = [share * 10 for share in range(11)]
    for name, score in scores.items():
        mean_curve = [
            100 * sum(curve[step] for curve in score.curves) / len(score.curves)
            for step in range(11)
        ]
        apgr = sum(score.apgr) / len(score.apgr)
        axes.plot(shares, mean_curve, marker="o", markersize=3, label=f"{name}: APGR {apgr:.3f}")
    axes.plot([0, 100], [0, 100], color="grey", linestyle="--", label="by chance: 0.5")
    axes.legend()
    _save_figure(figure, path)


def draw_reliability(scores: Mapping[str, Score], path: Path) -> None:
    """Draw the true share of good answers against the expected share."""
    figure, axes = _new_axes("Reliability, held-out answers", "p_good", "good answers, share")
    axes.axvspan(0.8, 0.9, color="tab:green", alpha=0.08)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfect")
    for name, score in scores.items():
        bin_rows = [row for row in compute_bins(score.pairs) if row[2] >= 30]
        axes.plot(
            [row[0] for row in bin_rows], [row[1] for row in bin_rows], marker="o", label=name
        )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    _save_figure(figure, path)


def draw_month(months: Sequence[SimulatedMonth], path: Path) -> None:
    """Draw the extra cost of the router over the best fixed policy by day, with a line per seed."""
    figure, axes = _new_axes(
        "Regret against the best fixed policy selected afterwards",
        "day",
        "USD behind, cumulated (below 0: ahead)",
    )
    days = range(1, len(months[0].regret) + 1)
    for month in months:
        axes.plot(days, month.regret, color="tab:blue", alpha=0.25, linewidth=1)
    mean_regret = [
        sum(month.regret[day_index] for month in months) / len(months)
        for day_index in range(len(days))
    ]
    axes.plot(
        days, mean_regret, color="tab:blue", linewidth=2.5, label=f"mean of {len(months)} seeds"
    )
    axes.axhline(0, color="grey", linestyle="--")
    for day, label in ((15, "drift begins"), (20, "new model")):
        axes.axvline(day, color="tab:red", linestyle=":", linewidth=1)
        axes.annotate(
            label, (day + 0.2, 0.97), xycoords=("data", "axes fraction"), fontsize=8, va="top"
        )
    axes.legend(loc="lower left")
    _save_figure(figure, path)


def draw_item_curves(
    kinds: Mapping[str, float], models: Mapping[str, float], chance: Any, path: Path
) -> None:
    """Draw p_good against the ability of a model, a line per kind, and mark the known models.

    Args:
        kinds: the difficulty of each kind of request.
        models: the ability of each known model.
        chance: returns p_good for an ability and a kind.
    """
    figure, axes = _new_axes("p_good before any signal", "ability, logits", "p_good")
    levels = [step / 10 for step in range(-45, 71)]
    for number, (kind, difficulty) in enumerate(kinds.items()):
        curve = [chance(level, kind) for level in levels]
        # The palette has ten colours; further lines are dashed.
        style = "-" if number < 10 else "--"
        axes.plot(levels, curve, style, label=f"{kind} ({difficulty:+.1f})", linewidth=1.2)
    for name, level in models.items():
        axes.axvline(level, color="grey", linewidth=0.6, linestyle=":")
        axes.annotate(name, (level, 0.02), rotation=90, fontsize=7, ha="right")
    axes.set(ylim=(0, 1))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save_figure(figure, path)
