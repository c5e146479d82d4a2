"""``moyin quality``: what is known of models, and what signals taught; ``moyin feedback``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moyin.cli.screen import facts, out, print_json, rows
from moyin.cli.session import with_gateway
from moyin.client.gateway import GatewayClient

__all__ = ["app", "feedback"]

app = typer.Typer(
    help="The quality of answers: show, export, reset, freeze, thaw.", no_args_is_help=True
)
_BAR = 20


@app.command()
def show() -> None:
    """Show what the router knows about models, and how well its estimates held.

    Shows abilities, signals by kind of request, this month's judge results, and the cost and risk of
    the last thirty days under other prices of a bad answer.
    """
    found = with_gateway(lambda gateway: gateway.call("GET", "/v1/quality"))
    if out.is_terminal:
        state = "frozen" if found["frozen"] else "learning"
        shown = [("tenant", f"{found['owner']}, {state}"), ("table", found["table_date"])]
        if (judge := found.get("judge")) is not None:
            shown.append(("judge", _judge(judge)))
        facts(shown, indent=0)
    rows(("model", "ability", "from", "signals", "other tenants"), map(_model, found["models"]))
    if found["calibration"]:
        _caption("rated answers by expected quality; # were found good, | was expected")
        rows(("expected", "good", "signals", ""), map(_point, found["calibration"]))
    if any(one["models"] for one in found["prices"]):
        _caption("the last thirty days, had a useless answer cost")
        rows(("this much", "money", "bad answers", "models"), map(_price, found["prices"]))


@app.command()
def export() -> None:
    """Print all stored signals of your tenant as JSON."""
    print_json(with_gateway(lambda gateway: gateway.call("GET", "/v1/quality/export")))


@app.command()
def reset() -> None:
    """Delete all signals of your tenant."""
    _post("/v1/quality/reset", None)
    out.print("forgotten")


@app.command()
def freeze() -> None:
    """Stop learning for your tenant; what was learned stays in use."""
    _post("/v1/quality/freeze", {"frozen": True})
    out.print("frozen")


@app.command()
def thaw() -> None:
    """Resume learning for your tenant."""
    _post("/v1/quality/freeze", {"frozen": False})
    out.print("learning")


def feedback(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="`x-request-id` of the answer.")],
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Rating from 0 (useless) to 1 (good).")
    ] = None,
    better: Annotated[
        str | None, typer.Option(metavar="ID", help="Request id of a better answer.")
    ] = None,
    comment: Annotated[
        str | None, typer.Option(help="Comment for people; the router does not read it.")
    ] = None,
) -> None:
    """Rate an answer, so that the router learns from it."""
    given = {"score": score, "better_request_id": better, "comment": comment}
    body = {name: value for name, value in given.items() if value is not None}
    found = with_gateway(
        lambda gateway: gateway.call("POST", "/v1/feedback", {"request_id": request_id, **body})
    )
    if found["learned"]:
        out.print("learned")
    elif found["scores"]:
        out.print("noted; nothing is learned while your tenant is frozen (`moyin quality thaw`)")
    else:
        out.print("noted; the request named its model")


def _post(path: str, body: Any) -> None:
    async def post(gateway: GatewayClient) -> None:
        async with gateway.open("POST", path, body):
            pass

    with_gateway(post)


def _caption(text: str) -> None:
    """Say, to a person, what the next table shows."""
    if out.is_terminal:
        out.print(f"\n[dim]{text}[/]")


def _judge(judge: dict[str, Any]) -> str:
    """Return what the judge found this month, and for operators what it cost."""
    text = f"{judge['judged']} judged this month, {judge['agreed']} agreed"
    if judge.get("usd_per_month") is None:
        return text
    spent = "?" if judge["spent_usd"] is None else f"${judge['spent_usd']:.4f}"
    return f"{text}, {spent} of ${judge['usd_per_month']:g} spent"


def _model(one: dict[str, Any]) -> tuple[str, ...]:
    ability = ""
    if one["ability"] is not None:
        kinds = "".join(
            f", {kind} {known['ability']:+.1f}" for kind, known in sorted(one["kinds"].items())
        )
        ability = f"{one['ability']:+.1f} ± {one['spread']:.1f}{kinds}"
    counts = sorted(one["signals"].items(), key=lambda item: -item[1])
    return (
        one["model"],
        ability,
        one["source"].removeprefix(f"{one['model']}, "),
        ", ".join(f"{kind} {count:g}" for kind, count in counts),
        ", ".join(f"{kind} {level:+.1f}" for kind, level in sorted(one["shared"].items())),
    )


def _price(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"${one['usd_per_bad_answer']:g}",
        f"${one['cost_usd']:.4f}",
        f"{one['bad_answers']:.1f}",
        ", ".join(f"{model} {count}" for model, count in one["models"].items()),
    )


def _point(point: dict[str, Any]) -> tuple[str, ...]:
    """A row of the reliability curve: `#` is what was good, `|` what was expected."""
    bar = ["#" if place < round(point["good"] * _BAR) else "." for place in range(_BAR)]
    bar[min(int(point["expected"] * _BAR), _BAR - 1)] = "|"
    return (
        f"{point['from']:.1f} to {point['to']:.1f}",
        f"{point['good']:.2f}",
        str(point["signals"]),
        "".join(bar),
    )
