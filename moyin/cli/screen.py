"""Prints tables and values: with colours to a terminal, tab-separated into a pipe."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.markup import escape
from rich.table import Table
from rich.text import Text

# A time in UTC as the gateway writes it.
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(Z|\+00:00)")
_WORD = re.compile(r"\s*\S+\s*")
# Characters by which a text could control the terminal, or show itself in another order: control
# characters of both ASCII and Latin-1 but tab and line feed, and those of writing directions.
_CONTROLLING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Below this width of a terminal, text beside a name would be a column of single words.
_MIN_TEXT_WIDTH = 20


class Screen(Console):
    """A console that wraps text between words on a terminal, but not in a pipe.

    Words that are wider than the terminal, such as keys and addresses, stay whole, so that they can
    be copied. Characters that control the terminal are replaced in all texts, since many come from
    others: names, graphs, errors.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True)

    def print(self, *objects: Any, **options: Any) -> None:
        objects = tuple(map(_disarm_object, objects))
        if not (self.is_terminal and len(objects) == 1 and isinstance(objects[0], str)):
            super().print(*objects, **options)
            return
        text = self.render_str(objects[0], markup=options.pop("markup", None))
        for line in wrap_text(text, self.width):
            super().print(line, **options)


def wrap_text(text: Text, width: int) -> Iterator[Text]:
    """Yield the lines of a text that is broken between words, each indented like its paragraph.

    rich itself either breaks words that do not fit, or leaves all text unbroken.
    """
    for paragraph in text.split("\n", allow_blank=True) or [text]:
        indent = " " * (len(paragraph.plain) - len(paragraph.plain.lstrip()))
        break_offsets, column = [], 0
        for word in _WORD.finditer(paragraph.plain):
            if column and column + cell_len(word[0].rstrip()) > width:
                break_offsets.append(word.start())
                column = len(indent)
            column += cell_len(word[0])
        for number, line in enumerate(paragraph.divide(break_offsets)):
            line.rstrip()
            yield Text(indent) + line if number else line


def disarm(text: str) -> str:
    """Return a text with characters replaced that could control the terminal."""
    return _CONTROLLING.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def _disarm_object(value: Any) -> Any:
    if isinstance(value, str):
        return disarm(value)
    if isinstance(value, Text) and _CONTROLLING.search(value.plain):
        # Keeps the styles, because the length stays the same.
        value = value.copy()
        value.plain = _CONTROLLING.sub("\N{REPLACEMENT CHARACTER}", value.plain)
    return value


out = Screen()
errors = Screen(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the gateway's JSON.")]
AsLocalJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print a JSON object per line.")]
AlwaysJson = Annotated[bool, typer.Option("--json", help="The output is always JSON.")]


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right_aligned: Collection[str] = (),
    optional_columns: Sequence[str] = (),
    empty_text: str = "",
) -> None:
    """Print a table with a heading to a terminal, or tab-separated lines into a pipe.

    A terminal shows times without fractions of a second and without their zone, which is UTC. If
    the terminal is too narrow, columns are left out: those without values, then the optional ones.
    If even that does not suffice, the cells of each row stand below each other.

    Args:
        right_aligned: the columns that are aligned to the right, such as numbers.
        optional_columns: the columns that may be left out, the first one first; a pipe gets all.
        empty_text: what a terminal shows if there are no rows.
    """
    if not out.is_terminal:
        for row in rows:
            sys.stdout.write("\t".join(row) + "\n")
        return
    text_rows = [
        [Text.from_markup(_TIME.sub(r"\1 \2", disarm(cell))) for cell in row] for row in rows
    ]
    if not text_rows and empty_text:
        out.print(empty_text, style="dim", markup=False)
        return
    widths = _fit_columns(columns, text_rows, optional_columns)
    if not widths:
        for number, text_row in enumerate(text_rows):
            if number:
                out.print()
            pairs = ((name, cell.plain) for name, cell in zip(columns, text_row, strict=True))
            print_pairs(((name, value) for name, value in pairs if value), indent=0)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, width in widths.items():
        justify: Literal["left", "right"] = "right" if columns[number] in right_aligned else "left"
        table.add_column(columns[number], overflow="fold", width=width, justify=justify)
    for text_row in text_rows:
        table.add_row(*(text_row[number] for number in widths))
    out.print(table)


def _fit_columns(
    columns: Sequence[str], rows: Sequence[Sequence[Text]], optional_columns: Sequence[str]
) -> dict[int, int]:
    """Choose the columns that fit on the terminal; return their widths by column number.

    The result is empty if not even the required columns fit.
    """
    cells = dict(enumerate(zip(columns, *rows, strict=True)))
    if rows and _measure_spare_width(_measure_columns(cells)) < 0:
        cells = {n: column for n, column in cells.items() if n == 0 or any(map(str, column[1:]))}
    for name in (None, *optional_columns):
        cells = {n: column for n, column in cells.items() if column[0] != name}
        if widths := _compute_column_widths(cells):
            return widths
    return {}


def _measure_columns(cells: Mapping[int, Sequence[object]]) -> dict[int, int]:
    return {
        number: max(Text(str(cell)).cell_len for cell in column) for number, column in cells.items()
    }


def _measure_spare_width(widths: Mapping[int, int]) -> int:
    return out.width - sum(widths.values()) - 2 * (len(widths) - 1)


def _compute_column_widths(cells: Mapping[int, Sequence[object]]) -> dict[int, int]:
    """Return column widths that break no word; empty if the terminal is too narrow.

    The first column is not broken even between words, since users copy its ids.
    """
    full_widths = _measure_columns(cells)
    widths = {
        number: max((cell_len(word) for cell in column for word in str(cell).split()), default=0)
        for number, column in cells.items()
    }
    widths[0] = full_widths[0]
    spare_width = _measure_spare_width(widths)
    if spare_width < 0:
        return {}
    # Columns that lack little come first, so that most cells stay on one line.
    for number in sorted(widths, key=lambda n: full_widths[n] - widths[n]):
        added_width = min(full_widths[number] - widths[number], spare_width)
        widths[number] += added_width
        spare_width -= added_width
    return widths


def print_records(columns: Sequence[str], rows: Iterable[Sequence[object]], **options: Any) -> None:
    """Print a table of values from the gateway, whose texts are not trusted.

    Control characters are replaced, because they could control the terminal or add lines. None is
    printed as an empty cell, a list as its items with commas, and an object as JSON in a pipe, or
    as its members on a terminal. The options are those of `print_table`.
    """

    def format_cell(value: object) -> str:
        return escape(describe_value(value)) if out.is_terminal else clean_text(value)

    print_table(columns, (list(map(format_cell, row)) for row in rows), **options)


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print records as CSV (RFC 4180); the heading is left out if ``columns`` is empty."""
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


def describe_value(value: object) -> str:
    """Return a value as text for people: an object is ``name=value`` for each member."""
    if isinstance(value, dict):
        return ", ".join(f"{clean_text(n)}={describe_value(v)}" for n, v in value.items())
    return json.dumps(value) if isinstance(value, bool) else clean_text(value)


def format_count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as ``1 job`` or ``2 jobs``."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _escape_formula(value: object) -> object:
    """Return the value of a CSV cell, with a quote in front if a spreadsheet would run it."""
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
    value_width = max(out.width - indent - width - 2, _MIN_TEXT_WIDTH)
    for name, value in pairs:
        lines = wrap_text(Text(value), value_width) if out.is_terminal else [Text(value)]
        for number, line in enumerate(lines):
            label = "" if number else name
            out.print(Text.assemble(" " * indent, (f"{label:<{width}}", "dim"), "  ", line))


def print_json(value: Any) -> None:
    """Print a value as JSON, with colours on a terminal."""
    text = _write_json(value, indent=2)
    if out.is_terminal:
        out.print(JSONHighlighter()(text))
    else:
        sys.stdout.write(text + "\n")


def print_json_line(value: Any) -> None:
    """Print a value as JSON on one line, at once, because a program may be waiting for it."""
    sys.stdout.write(_write_json(value) + "\n")
    sys.stdout.flush()


def _write_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON in which characters that could control the terminal are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _CONTROLLING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def print_outcome(value: Any, text: str, *, as_json: bool) -> None:
    """Print the outcome of a command, as JSON or as one line of text."""
    if as_json:
        print_json(value)
    else:
        out.print(text, markup=False)
