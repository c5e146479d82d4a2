"""Prints tables and values: with colours to a terminal, tab-separated into a pipe."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the gateway's JSON.")]
AlwaysJson = Annotated[bool, typer.Option("--json", help="The output is always JSON.")]


def print_table(
    columns: Sequence[str], lines: Iterable[Sequence[str]], *, right: Collection[str] = ()
) -> None:
    """Print a table with a heading to a terminal, or tab-separated lines into a pipe.

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


def print_records(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str] = ()
) -> None:
    """Print a table of values from the gateway, whose texts are not trusted.

    Control characters are replaced, because they could control the terminal or add lines. None is
    printed as an empty cell, and a list as its items with commas.
    """
    quote = escape if out.is_terminal else str
    print_table(columns, ([quote(clean_text(v)) for v in row] for row in rows), right=right)


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print records as CSV (RFC 4180), with a heading unless there are no columns."""
    writer = csv.writer(sys.stdout)
    if columns:
        writer.writerow(columns)
    writer.writerows([_escape_formula(value) for value in row] for row in rows)


def clean_text(value: object) -> str:
    """Return a value as text on one line, with control characters replaced."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(clean_text, value))
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _escape_formula(value: object) -> object:
    """Return the value of a cell, changed if spreadsheets would take it for a formula."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if value is None or isinstance(value, int | float):
        return value
    text = clean_text(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


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
