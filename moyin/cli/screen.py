"""Prints to the terminal, or into a pipe without colours and with tab-separated columns."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def print_table(
    columns: Sequence[str], lines: Iterable[Sequence[str]], *, right: Collection[str] = ()
) -> None:
    """Print a table to a terminal, or tab-separated lines without a heading into a pipe.

    ``right`` names the columns that are aligned to the right, such as numbers.
    """
    if not out.is_terminal:
        for line in lines:
            sys.stdout.write("\t".join(line) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # Users copy the id in the first column into other commands, so it must not be wrapped.
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, overflow="fold", no_wrap=number == 0, justify=justify)
    for line in lines:
        table.add_row(*line)
    out.print(table)


def print_pairs(pairs: Iterable[tuple[str, str]], *, indent: int = 2) -> None:
    """Print pairs of a name and a value in two aligned columns."""
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        out.print(f"{' ' * indent}[dim]{name:<{width}}[/]  {escape(value)}")


def print_json(value: Any) -> None:
    """Print a value as JSON, with colours on a terminal."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if out.is_terminal:
        out.print_json(text)
    else:
        sys.stdout.write(text + "\n")
