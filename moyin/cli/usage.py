"""Implements ``moyin usage`` (a chart of costs) and ``moyin requests`` (a list of calls)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.markup import escape

from moyin.cli.screen import AsJson, clean_text, out, print_csv, print_json, print_table
from moyin.cli.session import build_path, run_with_gateway
from moyin.cli.usage_names import read_names
from moyin.client.gateway import GatewayClient

_MAX_PAGE = 200
_BAR_WIDTH = 20
# On narrower terminals, bars are half as wide.
_WIDE = 100
# Block characters that fill one to eight eighths of a cell.
_EIGHTHS = "▏▎▍▌▋▊▉█"
_HEADINGS = {"backend": "back end", "owner": "tenant"}
# Labels of groups whose property is null.
_UNNAMED = {
    "operation": "chat, embeddings", "user": "keys of the tenant", "template": "no template",
}  # fmt: skip
_NUMBERS = ("calls", "not complete", "input", "cached", "output", "cost", "dearest", "in", "out")
_AMOUNTS = ("limit", "spent", "reserved", "left")
_CSV_NUMBERS = (
    "calls", "incomplete_calls", "input_tokens", "cached_tokens", "output_tokens",
    "gpu_milliseconds", "load_milliseconds", "cost_usd", "render_cost_usd", "dearest_cost_usd",
)  # fmt: skip
_EMPTY = {
    "calls": 0, "incomplete_calls": 0, "input_tokens": 0, "cached_tokens": 0, "output_tokens": 0,
    "units": {}, "cost_usd": "0", "dearest_cost_usd": None,
}  # fmt: skip

Owner = Annotated[
    str | None, typer.Option(help="A tenant, or `*` for all; only operators name other tenants.")
]
Key = Annotated[str | None, typer.Option(help="Only calls by the API key with this id.")]
Model = Annotated[str | None, typer.Option(help="Only calls that this model answered.")]
Backend = Annotated[
    str | None, typer.Option(help="Only calls to this back end; `cache`: from the cache.")
]
RequestedModel = Annotated[
    str | None, typer.Option(help="Only requests that named this model or alias.")
]


def show_usage(
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="day, model, backend, owner, key, user, template or operation; repeat for a "
            "second. Default: day."
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="First day or time (UTC). Default: 30 days ago.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="Day or time (UTC) before which calls ended.")
    ] = None,
    owner: Owner = None,
    key: Key = None,
    model: Model = None,
    backend: Backend = None,
    requested_model: RequestedModel = None,
    as_json: AsJson = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV with a heading and exact numbers.")
    ] = False,
) -> None:
    """Show calls, tokens, costs and budgets with a bar chart.

    The output also has the cost that the calls would have had on the most expensive model.
    """
    path = build_path(
        "/v1/usage",
        {
            "group_by": by,
            "from": since,
            "to": until,
            "owner": owner,
            "key": key,
            "model": model,
            "backend": backend,
            "requested_model": requested_model,
        },
    )

    async def read_report(gateway: GatewayClient) -> tuple[dict[str, Any], dict[str, str]]:
        report = await gateway.call("GET", path)
        # Programs get the ids instead of names.
        needs_names = out.is_terminal and not (as_json or as_csv)
        return report, await read_names(gateway, report["group_by"], owner) if needs_names else {}

    report, names = run_with_gateway(read_report)
    if as_json:
        print_json(report)
    elif as_csv:
        _print_csv(report)
    else:
        _print_report(report, names)


def list_requests(
    status: Annotated[
        str | None, typer.Option(help="complete, cancelled, failed or incomplete.")
    ] = None,
    after: Annotated[str | None, typer.Option(help="First day or time (UTC).")] = None,
    before: Annotated[
        str | None, typer.Option(help="Day or time (UTC) before which calls ended.")
    ] = None,
    owner: Owner = None,
    key: Key = None,
    model: Model = None,
    backend: Backend = None,
    requested_model: RequestedModel = None,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of calls, newest first.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """List recorded calls; piped output has all values that `--json` prints, separated by tabs."""
    filters = {
        "status": status,
        "after": after,
        "before": before,
        "owner": owner,
        "key": key,
        "model": model,
        "backend": backend,
        "requested_model": requested_model,
    }
    calls = run_with_gateway(lambda gateway: _read_calls(gateway, filters, limit))
    if as_json:
        print_json(calls)
    elif out.is_terminal:
        print_table(
            ("id", "time (UTC)", "model", "in", "out", "cost", "status"),
            map(_build_call_row, calls),
            right_aligned=_NUMBERS,
            optional_columns=("time (UTC)", "in", "out"),
            empty_text="no calls",
        )
    else:
        print_table((), (["" if v is None else str(v) for v in call.values()] for call in calls))


async def _read_calls(
    gateway: GatewayClient, filters: dict[str, Any], limit: int
) -> list[dict[str, Any]]:
    """Return up to ``limit`` recorded calls, newest first, which are read page by page.

    Args:
        filters: the query parameters of ``GET /v1/requests`` that select calls.
    """
    calls: list[dict[str, Any]] = []
    cursor = None
    while True:
        page_size = min(limit - len(calls), _MAX_PAGE)
        path = build_path("/v1/requests", {**filters, "limit": page_size, "cursor": cursor})
        page = await gateway.call("GET", path)
        calls += page["requests"]
        cursor = page["next_cursor"]
        if cursor is None or len(calls) >= limit:
            return calls


def _print_report(report: dict[str, Any], labels: Mapping[str, str]) -> None:
    """Print a usage report; ``labels`` are the names of users and keys by id."""
    properties = report["group_by"]
    groups = _add_empty_days(report["groups"]) if properties == ["day"] else report["groups"]
    measure = _choose_measure(report["total"])
    # Units other than tokens are shown only if there are any, because most tenants only chat.
    shows_units = not out.is_terminal or bool(report["total"].get("units"))
    max_value = max((Decimal(str(group[measure])) for group in groups), default=Decimal(0))
    columns = [
        *(_HEADINGS.get(name, name) for name in properties),
        "calls", "not complete", "input", "cached", "output",
        *(("units",) if shows_units else ()), "cost", "dearest",
    ]  # fmt: skip
    if not out.is_terminal:
        print_table(columns, (_build_plain_row(properties, group) for group in groups))
        return
    start_text, end_text = (report[name][:16].replace("T", " ") for name in ("from", "to"))
    out.print(f"[dim]{start_text} to {end_text} (UTC)[/]")
    if not groups:
        out.print("no calls")
    else:
        captions = {"cost_usd": "bar: cost", "output_tokens": "bar: output", "calls": "bar: calls"}
        rows = [
            (
                *_build_row(properties, group, labels, shows_units=shows_units),
                draw_bar(Decimal(str(group[measure])), max_value),
            )
            for group in groups
        ]
        print_table(
            (*columns, captions[measure]),
            rows,
            right_aligned=_NUMBERS,
            optional_columns=("not complete", "cached"),
        )
        out.print(f"\n{_describe_total(report)}")
    _print_budgets(report["budgets"])


def _print_csv(report: dict[str, Any]) -> None:
    """Print the groups of a usage report as CSV; columns are named as in the gateway's JSON."""
    column_names = [
        *report["group_by"],
        *(name for name in _CSV_NUMBERS if name in report["total"]),
    ]
    print_csv(
        column_names,
        ([_parse_number(n, group[n]) for n in column_names] for group in report["groups"]),
    )


def _parse_number(name: str, raw_value: Any) -> Any:
    # Amounts are strings in the JSON, but a spreadsheet needs numbers.
    return Decimal(raw_value) if name.endswith("_usd") and raw_value is not None else raw_value


def _choose_measure(total: dict[str, Any]) -> str:
    """Return the name of the value that the chart's bars show.

    It is the first of cost, output tokens and calls that is not zero in ``total``.
    """
    if Decimal(total["cost_usd"]):
        return "cost_usd"
    return "output_tokens" if total["output_tokens"] else "calls"


def _add_empty_days(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups of a report by day, with an empty group for each day without calls.

    Days before the first group and after the last are not added.
    """
    if not groups:
        return []
    groups_by_day = {group["day"]: group for group in groups}
    first_day, last_day = (
        date.fromisoformat(min(groups_by_day)),
        date.fromisoformat(max(groups_by_day)),
    )
    days = ((first_day + timedelta(n)).isoformat() for n in range((last_day - first_day).days + 1))
    return [groups_by_day.get(day, {"day": day, **_EMPTY}) for day in days]


def _build_plain_row(properties: Sequence[str], group: dict[str, Any]) -> list[str]:
    row = {**group, "units": _describe_units(group.get("units", {}))}
    values = [row[name] for name in (*properties, *_EMPTY)]
    return ["" if value is None else str(value) for value in values]


def _build_row(
    properties: Sequence[str],
    group: dict[str, Any],
    labels: Mapping[str, str],
    *,
    shows_units: bool,
) -> list[str]:
    dearest_cost = group["dearest_cost_usd"]
    return [
        *(escape(_describe_group(name, group[name], labels)) for name in properties),
        f"{group['calls']:,}",
        f"{group['incomplete_calls']:,}",
        *(shorten_number(group[f"{kind}_tokens"]) for kind in ("input", "cached", "output")),
        *((_describe_units(group.get("units", {})),) if shows_units else ()),
        format_cost(group["cost_usd"]),
        "" if dearest_cost is None else format_cost(dearest_cost),
    ]


def _describe_group(name: str, value: str | None, labels: Mapping[str, str]) -> str:
    if not value:
        return _UNNAMED.get(name, "unknown")
    # Names come from other people.
    return clean_text(labels.get(value, value)) if name in ("user", "key") else value


def _describe_units(units: dict[str, int]) -> str:
    return ", ".join(f"{shorten_number(number)} {unit}" for unit, number in units.items())


def _build_call_row(call: dict[str, Any]) -> list[str]:
    model, requested_model = call["model"], call["requested_model"]
    if requested_model not in (None, model, f"{call['backend']}/{model}"):
        model = f"{requested_model} > {model}"
    if call.get("unit") is not None:
        model += f" ({call['quantity']:,} {call['unit']})"
    status = call["status"] if call["status"] != "failed" else call["error"]
    return [
        escape(call["request_id"]),
        call["created_at"][5:19].replace("T", " "),
        escape(model),
        shorten_number(call["input_tokens"]),
        shorten_number(call["output_tokens"]),
        format_cost(call["cost_usd"]),
        escape(status),
    ]


def _describe_total(report: dict[str, Any]) -> str:
    totals = report["total"]
    summary = f"{totals['calls']:,} calls, [bold]{format_cost(totals['cost_usd'])}[/]"
    if totals["dearest_cost_usd"] is None:
        return summary
    # Both sums include the cost of renders, because routing does not affect it.
    render_cost = Decimal(totals.get("render_cost_usd", "0"))
    cost, dearest_cost = (
        Decimal(totals[f"{name}cost_usd"]) - render_cost for name in ("", "dearest_")
    )
    models = dict.fromkeys(m["model"] for m in report["dearest"].values() if m is not None)
    summary += f"; on {escape(' and '.join(models))} {format_cost(totals['dearest_cost_usd'])}"
    return (
        f"{summary}: [bold]{1 - cost / dearest_cost:.0%}[/] saved"
        if cost < dearest_cost
        else summary
    )


def _print_budgets(budgets: list[dict[str, Any]] | None) -> None:
    if budgets is None:
        out.print("\n[yellow]budgets cannot be read at the moment: try again later[/]")
    elif budgets:
        out.print()
        print_table(
            ("budget", *_AMOUNTS, "resets (UTC)"),
            (
                (
                    f"{budget['of']}, {budget['limit'].removeprefix('usd_per_')}",
                    *(format_cost(budget[f"{name}_usd"]) for name in _AMOUNTS),
                    budget["resets_at"][:10],
                )
                for budget in budgets
            ),
            right_aligned=_AMOUNTS,
        )


def draw_bar(value: Decimal, max_value: Decimal) -> str:
    """Return a bar whose length is ``value`` relative to ``max_value``.

    It consists of block characters, or of `#` on terminals that lack them.
    """
    if not value or not max_value:
        return ""
    width = _BAR_WIDTH if out.width >= _WIDE else _BAR_WIDTH // 2
    eighths = max(round(value / max_value * width * 8), 1)
    if not out.encoding.startswith("utf"):
        return "#" * max(round(eighths / 8), 1)
    whole_blocks, remaining_eighths = divmod(eighths, 8)
    return _EIGHTHS[-1] * whole_blocks + (
        _EIGHTHS[remaining_eighths - 1] if remaining_eighths else ""
    )


def shorten_number(value: int) -> str:
    """Return a number in short form, such as 812, 12.3k or 4.06M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            scaled_value = value / size
            return f"{scaled_value:.{max(0, 3 - len(str(int(scaled_value))))}f}{unit}"
    return str(value)


def format_cost(usd: str) -> str:
    """Return an amount in US dollars with at least two decimals and two significant digits."""
    amount = Decimal(usd)
    if not amount or abs(amount) >= Decimal("0.1"):
        return f"${amount:,.2f}"
    return f"${amount:.{1 - amount.adjusted()}f}"
