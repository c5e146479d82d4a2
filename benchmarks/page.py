"""Draws tables of docs/performance.md as plots, which are stored in docs/performance.

Run it with ``python -m benchmarks.page`` after a change of a table.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

from matplotlib import pyplot
from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "docs" / "performance"
# For each bar of the plot, the beginning of the table row with Moyin's ratio to that server.
_OTHERS = {
    "bare forwarder": "text through `/v1`",
    "forwarder in Serve": "… over the same forwarder",
    "Portkey": "… over Portkey",
    "LiteLLM, two workers": "… over LiteLLM",
}


def compute_throughput(page: str) -> dict[str, float]:
    """Return the throughput of each server for text, relative to Moyin's, which is 1.

    Args:
        page: the text of docs/performance.md.
    """
    ratio_by_server = {
        name: 1 / _read_row(page, row_name)[0][0] for name, row_name in _OTHERS.items()
    }
    return {**ratio_by_server, "Moyin, one replica": 1.0}


def read_render_costs(page: str) -> dict[str, tuple[float, float]]:
    """Return the milliseconds of processor time per render, by process.

    Each pair has the figure at the start of the project and the figure now.

    Args:
        page: the text of docs/performance.md.
    """
    _, _, process_table = page.partition("| process | ms at the start | ms now |\n")
    names = [line.split(" | ")[0].strip("| ") for line in process_table.splitlines()[1:]]
    process_names = names[: next(i for i, name in enumerate(names) if not name)]
    figures = {name: _read_row(page, name) for name in process_names}
    return {
        name: (mean(start_ms), mean(final_ms)) for name, (start_ms, final_ms) in figures.items()
    }


def _read_row(page: str, row_name: str) -> list[list[float]]:
    """Return the numbers in the page's table row that begins with ``row_name``, by cell."""
    [table_row] = [
        table_row for table_row in page.splitlines() if table_row.startswith(f"| {row_name}")
    ]
    cells = table_row.strip("|").split(" | ")[1:]
    return [[float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)] for cell in cells]


def main() -> None:
    """Draw the plots of the throughput and of the processor time per render."""
    page = PAGE.read_text()
    FOLDER.mkdir(exist_ok=True)
    _, axes = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    ratio_by_server = compute_throughput(page)
    bar_container = axes.barh(
        list(ratio_by_server),
        list(ratio_by_server.values()),
        color=["#9aa5b1"] * len(_OTHERS) + ["#4051b5"],
    )
    axes.bar_label(bar_container, fmt="%.2f", padding=4)
    axes.set_xlabel("requests per second at 16 connections, Moyin = 1")
    _save_plot(axes, FOLDER / "text.png")

    _, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    costs = read_render_costs(page)
    names = [re.split(r":| \(|, now|, with", name)[0] for name in costs]
    positions = range(len(names))
    for shift, index, label, colour in (
        (0.2, 0, "at the start", "#9aa5b1"),
        (-0.2, 1, "now", "#4051b5"),
    ):
        bar_container = axes.barh(
            [position + shift for position in positions],
            [pair[index] for pair in costs.values()],
            height=0.38, label=label, color=colour,
        )  # fmt: skip
        axes.bar_label(bar_container, fmt="%.0f", padding=4)
    axes.set_yticks(list(positions), names)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of processor time for a small render, without ComfyUI")
    axes.legend(frameon=False)
    _save_plot(axes, FOLDER / "render.png")


def _save_plot(axes: Axes, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
