"""Implements ``moyin route``, which explains the routing decision for a prompt."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from moyin.cli.screen import errors, out, print_json, print_pairs, print_table
from moyin.cli.session import run_with_gateway
from moyin.client.gateway import GatewayClient
from moyin.text.quality.wording import format_probability

_COLUMNS = ("model", "back end", "p_good", "at least", "basis", "cost", "seconds", "score", "why")


def route(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The prompt; `-` reads it from standard input.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A model, an alias, or `auto`.")
    ] = "auto",
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    quality: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Lowest probability of a good answer to accept."),
    ] = None,
    bad_answer: Annotated[
        float | None,
        typer.Option("--usd-per-bad-answer", min=0, help="Cost of a useless answer in US dollars."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
) -> None:
    """Show which model would answer a prompt, and why, without calling a model."""
    question = sys.stdin.read() if prompt == "-" else prompt
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    headers = {}
    if quality is not None:
        headers["x-moyin-quality"] = str(quality)
    if bad_answer is not None:
        headers["x-moyin-usd-per-bad-answer"] = str(bad_answer)

    async def explain(gateway: GatewayClient) -> Any:
        return await gateway.call("POST", "/v1/route", body, headers=headers)

    decision = run_with_gateway(explain)
    if as_json:
        print_json(decision)
    else:
        _print_decision(decision)
    if decision["error"] is not None:
        errors.print(f"{decision['error']['code']}: {decision['error']['message']}", markup=False)
        raise typer.Exit(1)


def _print_decision(decision: dict[str, Any]) -> None:
    request_estimate = decision["quality"]
    if out.is_terminal:
        if request_estimate is not None:
            print_pairs([("request", _describe_request(request_estimate))], indent=0)
        if decision["route"] is not None:
            print_pairs([("chosen", decision["route"])], indent=0)
        if (exploration := decision["explore"]["tried"]) is not None:
            share = f"{decision['explore']['share']:.1%} of such requests"
            print_pairs([("tries", f"{exploration['model']} on {share}")], indent=0)
    refused_rows = (
        (refusal["model"], refusal["backend"], *[""] * 6, f"out: {refusal['reason']}")
        for refusal in decision["refused"]
    )
    rows = [*map(_build_candidate_row, decision["candidates"]), *refused_rows]
    if not out.is_terminal:
        print_table(_COLUMNS, rows)
        return
    # Reasons are printed below the table, because a ninth column would be too narrow for sentences.
    candidates = [row[:-1] for row in rows[: len(decision["candidates"])]]
    if candidates:
        print_table(_COLUMNS[:-1], candidates)
    print_pairs(((row[0], row[-1]) for row in rows), indent=0)


def _describe_request(request: dict[str, Any]) -> str:
    return (
        f"{request['kind']}, language {request['language']}, "
        f"difficulty {request['difficulty']:+.1f} ± {request['spread']:.1f}; "
        f"a useless answer costs ${request['usd_per_bad_answer']:g}"
    )


def _build_candidate_row(candidate: dict[str, Any]) -> tuple[str, ...]:
    estimates, quality = candidate["expected"], candidate["quality"]
    estimate = ("", "", "") if quality is None else _format_estimate(quality)
    return (
        candidate["model"],
        candidate["backend"],
        *estimate,
        f"${estimates['cost_usd']}",
        f"{estimates['seconds']:.1f}",
        f"{candidate['score_usd']:.6f}",
        candidate["reason"],
    )


def _format_estimate(quality: dict[str, Any]) -> tuple[str, str, str]:
    signals = quality["signals"]
    basis = f"{quality['basis']}, {signals} signals" if signals else quality["basis"]
    return format_probability(quality["p_good"]), format_probability(quality["p_good_low"]), basis
