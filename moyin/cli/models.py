"""Implements ``moyin models``, which lists and shows models, aliases and back ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from moyin.cli.screen import AsJson, out, print_json, print_pairs, print_records
from moyin.cli.session import run_with_gateway

app = typer.Typer(
    help="Models and aliases: list, show with back ends and prices.", no_args_is_help=True
)
_ABILITIES = ("tools", "vision", "schema", "thinking")
_UNITS = {
    "usd_per_million_characters": "M characters",
    "usd_per_minute": "minute",
    "usd_per_image": "image",
    "usd_per_thousand_searches": "k searches",
}


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models and aliases that you may use; operators also see their back ends."""
    page = run_with_gateway(lambda gateway: gateway.call("GET", "/v1/models"))
    if as_json:
        print_json(page)
        return
    print_records(
        ("name", "status", "context", "abilities", "back ends"),
        (
            (
                model["id"],
                model["status"],
                model["max_input_tokens"],
                _list_abilities(model),
                sorted({backend["name"] for backend in model.get("backends", ())}),
            )
            for model in page["data"]
        ),
        right_aligned=("context",),
        empty_text="there are no models that you may use",
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model or an alias.")],
    as_json: AsJson = False,
) -> None:
    """Show a model or alias; operators see every back end with its state and price."""
    path = f"/v1/models/{quote(name)}"
    model = run_with_gateway(lambda gateway: gateway.call("GET", path))
    if as_json:
        print_json(model)
        return
    backends = model.get("backends", ())
    if out.is_terminal or not backends:
        pairs = [
            ("name", model["id"]),
            ("status", model["status"]),
            ("context", str(model["max_input_tokens"] or "")),
            ("abilities", ", ".join(_list_abilities(model))),
        ]
        print_pairs(pairs, indent=0)
        out.print()
    if not backends:
        return
    print_records(
        ("back end", "model", "status", "context", "quality", "abilities", "price"),
        (
            (
                backend["name"],
                backend["model"],
                backend["status"],
                backend["context"],
                backend["quality"],
                _list_abilities(backend),
                _describe_price(backend),
            )
            for backend in backends
        ),
        right_aligned=("context", "quality"),
    )


def _list_abilities(model: Mapping[str, Any]) -> list[str]:
    return [*model["abilities"], *(ability for ability in _ABILITIES if model[ability])]


def _describe_price(backend: Mapping[str, Any]) -> str:
    """Return a back end's prices of tokens and of other units as text."""
    token_prices = backend["usd_per_million_tokens"]
    price_texts = [f"${token_prices['input']} in, ${token_prices['output']} out per M tokens"]
    price_texts += [f"${backend[key]} per {unit}" for key, unit in _UNITS.items() if key in backend]
    return "; ".join(price_texts)
