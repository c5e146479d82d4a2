"""Implements ``moyin quality``, which manages the router's learned data, and ``moyin feedback``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moyin.cli.screen import AlwaysJson, AsJson, out, print_json, print_pairs, print_table
from moyin.cli.session import send, with_gateway

app = typer.Typer(
    help="The quality of answers: show, export, reset, freeze, thaw.", no_args_is_help=True
)
_BAR_WIDTH = 20


@app.command()
def show(as_json: AsJson = False) -> None:
    """Show what the router has learned about models, and how accurate its estimates were.

    The output has the abilities of models, the signals by kind of request, this month's results of
    the judge, and what the last thirty days would have cost with other values of
    `usd_per_bad_answer`.
    """
    report = with_gateway(lambda gateway: gateway.call("GET", "/v1/quality"))
    if as_json:
        print_json(report)
        return
    if out.is_terminal:
        state = "frozen" if report["frozen"] else "learning"
        pairs = [("tenant", f"{report['owner']}, {state}"), ("table", report["table_date"])]
        if (judge := report.get("judge")) is not None:
            pairs.append(("judge", _describe_judge(judge)))
        print_pairs(pairs, indent=0)
    print_table(
        ("model", "ability", "from", "signals", "other tenants"),
        map(_build_model_row, report["models"]),
    )
    if report["calibration"]:
        _print_caption(
            "rated answers by expected quality: # is the share found good, | the expected share"
        )
        print_table(
            ("expected", "good", "signals", ""), map(_build_calibration_row, report["calibration"])
        )
    if any(price["models"] for price in report["prices"]):
        _print_caption("the last thirty days under other prices of a bad answer")
        print_table(
            ("price", "cost", "bad answers", "models"), map(_build_price_row, report["prices"])
        )


@app.command()
def export(_: AlwaysJson = True) -> None:
    """Print all stored signals of your tenant as JSON."""
    print_json(with_gateway(lambda gateway: gateway.call("GET", "/v1/quality/export")))


@app.command()
def reset() -> None:
    """Delete all signals of your tenant."""
    send("POST", "/v1/quality/reset")
    out.print("signals deleted")


@app.command()
def freeze() -> None:
    """Stop learning for your tenant; the router still uses what it learned before."""
    send("POST", "/v1/quality/freeze", {"frozen": True})
    out.print("frozen")


@app.command()
def thaw() -> None:
    """Resume learning for your tenant."""
    send("POST", "/v1/quality/freeze", {"frozen": False})
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
    as_json: AsJson = False,
) -> None:
    """Rate an answer, so that the router learns from it."""
    rating = {"score": score, "better_request_id": better, "comment": comment}
    body = {name: value for name, value in rating.items() if value is not None}
    result = with_gateway(
        lambda gateway: gateway.call("POST", "/v1/feedback", {"request_id": request_id, **body})
    )
    if as_json:
        print_json(result)
    elif result["learned"]:
        out.print("learned")
    elif result["scores"]:
        out.print("stored, but not learned, because learning is frozen (`moyin quality thaw`)")
    else:
        out.print("stored, but not learned, because the request chose its model")


def _print_caption(text: str) -> None:
    if out.is_terminal:
        out.print(f"\n[dim]{text}[/]")


def _describe_judge(judge: dict[str, Any]) -> str:
    """Return the judge's results of this month as text, with the cost if the caller may see it."""
    text = f"{judge['judged']} judged this month, {judge['agreed']} agreed"
    if judge.get("usd_per_month") is None:
        return text
    spent_text = "?" if judge["spent_usd"] is None else f"${judge['spent_usd']:.4f}"
    return f"{text}, {spent_text} of ${judge['usd_per_month']:g} spent"


def _build_model_row(model: dict[str, Any]) -> tuple[str, ...]:
    ability = ""
    if model["ability"] is not None:
        kinds = "".join(
            f", {kind} {estimate['ability']:+.1f}"
            for kind, estimate in sorted(model["kinds"].items())
        )
        ability = f"{model['ability']:+.1f} ± {model['spread']:.1f}{kinds}"
    counts = sorted(model["signals"].items(), key=lambda item: -item[1])
    return (
        model["model"],
        ability,
        model["source"].removeprefix(f"{model['model']}, "),
        ", ".join(f"{kind} {count:g}" for kind, count in counts),
        ", ".join(f"{kind} {level:+.1f}" for kind, level in sorted(model["shared"].items())),
    )


def _build_price_row(price: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"${price['usd_per_bad_answer']:g}",
        f"${price['cost_usd']:.4f}",
        f"{price['bad_answers']:.1f}",
        ", ".join(f"{model} {count}" for model, count in price["models"].items()),
    )


def _build_calibration_row(point: dict[str, Any]) -> tuple[str, ...]:
    """Return a table row that compares estimates with results, with a bar.

    In the bar `#` shows the share of good answers, and `|` the share that the router expected.
    """
    bar = ["#" if place < round(point["good"] * _BAR_WIDTH) else "." for place in range(_BAR_WIDTH)]
    bar[min(int(point["expected"] * _BAR_WIDTH), _BAR_WIDTH - 1)] = "|"
    return (
        f"{point['from']:.1f} to {point['to']:.1f}",
        f"{point['good']:.2f}",
        str(point["signals"]),
        "".join(bar),
    )
