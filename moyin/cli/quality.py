"""Implements ``moyin quality`` (the router's learned data) and ``moyin feedback`` (ratings)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moyin.cli.screen import (
    AlwaysJson,
    AsJson,
    AsLocalJson,
    out,
    print_json,
    print_outcome,
    print_pairs,
    print_table,
)
from moyin.cli.session import run_with_gateway, send_request

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
    report = run_with_gateway(lambda gateway: gateway.call("GET", "/v1/quality"))
    if as_json:
        print_json(report)
        return
    if out.is_terminal:
        state = "frozen" if report["frozen"] else "learning"
        pairs = [("tenant", f"{report['owner']}, {state}"), ("table", report["table_date"])]
        if (judge := report.get("judge")) is not None:
            pairs.append(("judge", _describe_judge(judge)))
        print_pairs(pairs, indent=0)
    _print_models(report["models"])
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
    print_json(run_with_gateway(lambda gateway: gateway.call("GET", "/v1/quality/export")))


@app.command()
def reset(as_json: AsLocalJson = False) -> None:
    """Delete all signals of your tenant."""
    send_request("POST", "/v1/quality/reset")
    print_outcome({"deleted": True}, "signals deleted", as_json=as_json)


@app.command()
def freeze(as_json: AsLocalJson = False) -> None:
    """Stop learning for your tenant; the router still uses what it learned before."""
    send_request("POST", "/v1/quality/freeze", {"frozen": True})
    print_outcome({"frozen": True}, "frozen", as_json=as_json)


@app.command()
def thaw(as_json: AsLocalJson = False) -> None:
    """Resume learning for your tenant."""
    send_request("POST", "/v1/quality/freeze", {"frozen": False})
    print_outcome({"frozen": False}, "learning", as_json=as_json)


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
    result = run_with_gateway(
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
    summary = f"{judge['judged']} judged this month, {judge['agreed']} agreed"
    if judge.get("usd_per_month") is None:
        return summary
    spent_text = "?" if judge["spent_usd"] is None else f"${judge['spent_usd']:.4f}"
    return f"{summary}, {spent_text} of ${judge['usd_per_month']:g} spent"


def _print_models(models: list[dict[str, Any]]) -> None:
    """Print all values of the models as lines to a pipe, or the most important ones as a table.

    On a terminal, the values by kind of request follow below the table, because the columns of the
    table are too narrow for them.
    """
    if not out.is_terminal:
        print_table(
            (),
            (
                (
                    model["model"],
                    ", ".join(filter(None, (_describe_ability(model), _describe_abilities(model)))),
                    _describe_source(model),
                    _describe_signals(model),
                    _describe_shared_levels(model),
                )
                for model in models
            ),
        )
        return
    print_table(
        ("model", "ability", "signals", "from"),
        (
            (
                model["model"],
                _describe_ability(model),
                f"{sum(model['signals'].values()):g}",
                _describe_source(model),
            )
            for model in models
        ),
        right_aligned=("signals",),
    )
    for caption, describe_values in (
        ("ability by kind of request", _describe_abilities),
        ("signals by kind", _describe_signals),
        ("learned from other tenants", _describe_shared_levels),
    ):
        if pairs := [
            (model["model"], text) for model in models if (text := describe_values(model))
        ]:
            _print_caption(caption)
            print_pairs(pairs, indent=0)


def _describe_ability(model: dict[str, Any]) -> str:
    return "" if model["ability"] is None else f"{model['ability']:+.1f} ± {model['spread']:.1f}"


def _describe_source(model: dict[str, Any]) -> str:
    return str(model["source"]).removeprefix(f"{model['model']}, ")


def _describe_abilities(model: dict[str, Any]) -> str:
    estimates = sorted(model["kinds"].items()) if model["ability"] is not None else ()
    return ", ".join(f"{kind} {estimate['ability']:+.1f}" for kind, estimate in estimates)


def _describe_signals(model: dict[str, Any]) -> str:
    counts = sorted(model["signals"].items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {count:g}" for kind, count in counts)


def _describe_shared_levels(model: dict[str, Any]) -> str:
    return ", ".join(f"{kind} {level:+.1f}" for kind, level in sorted(model["shared"].items()))


def _build_price_row(price: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"${price['usd_per_bad_answer']:g}",
        f"${price['cost_usd']:.4f}",
        f"{price['bad_answers']:.1f}",
        ", ".join(f"{model} {count}" for model, count in price["models"].items()),
    )


def _build_calibration_row(point: dict[str, Any]) -> tuple[str, ...]:
    """Return a table row that compares the expected and the actual share of good answers.

    The last cell is a bar: `#` shows the actual share, and `|` the share that the router expected.
    """
    bar = ["#" if place < round(point["good"] * _BAR_WIDTH) else "." for place in range(_BAR_WIDTH)]
    bar[min(int(point["expected"] * _BAR_WIDTH), _BAR_WIDTH - 1)] = "|"
    return (
        f"{point['from']:.1f} to {point['to']:.1f}",
        f"{point['good']:.2f}",
        str(point["signals"]),
        "".join(bar),
    )
