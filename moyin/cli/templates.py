"""Implements ``moyin templates``, which lists templates and shows their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from moyin.cli.screen import AsJson, clean_text, out, print_json, print_pairs, print_records
from moyin.cli.session import run_with_gateway

app = typer.Typer(
    help="Templates for `moyin render --template`: list, show their inputs.", no_args_is_help=True
)
_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
    "multipleOf": "in steps of",
    "minLength": "min. length",
    "maxLength": "max. length",
    "pattern": "pattern",
}


@app.command("list")
def list_templates(as_json: AsJson = False) -> None:
    """List the templates; piped output has tab-separated name, aliases, pool, inputs and title."""
    page = run_with_gateway(lambda gateway: gateway.call("GET", "/templates"))
    if as_json:
        print_json(page)
        return
    print_records(
        ("name", "aliases", "pool", "inputs", "title"),
        (
            (
                t["name"],
                t["aliases"],
                t["pool"],
                list(t["inputs"].get("properties", ())),
                t["title"],
            )
            for t in page["templates"]
        ),
        empty_text="no templates are configured",
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A template or its alias.")],
    as_json: AsJson = False,
) -> None:
    """Show a template and its inputs with their types, defaults and allowed values."""
    path = f"/templates/{quote(name, safe='')}"
    template = run_with_gateway(lambda gateway: gateway.call("GET", path))
    if as_json:
        print_json(template)
        return
    if out.is_terminal:
        names = ("name", "title", "description", "aliases", "pool", "outputs")
        pairs = [(name, clean_text(template[name])) for name in names if template[name]]
        print_pairs(pairs, indent=0)
        out.print()
    print_records(
        ("input", "type", "default", "values", "description"),
        _build_input_rows(template["inputs"]),
    )


def _build_input_rows(schema: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    required_names = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        kind = "file (artifact id)" if field.get("format") == "image" else field["type"]
        default = "required" if name in required_names else field.get("default")
        description = field.get("description") or field.get("title")
        yield name, kind, default, _describe_values(field), description


def _describe_values(field: Mapping[str, Any]) -> str:
    if field.get("enum"):
        return clean_text(field["enum"])
    return ", ".join(f"{word} {field[key]}" for key, word in _BOUNDS.items() if key in field)
