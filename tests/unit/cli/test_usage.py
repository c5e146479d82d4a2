from __future__ import annotations

import io
import re
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from moyin.cli import screen, usage
from moyin.cli.usage import draw_bar, format_cost, shorten_number
from moyin.cli.usage_names import read_names
from moyin.client.gateway import GatewayClient
from tests.unit.cli.conftest import Handler

TOTAL = {
    "calls": 3, "incomplete_calls": 1, "input_tokens": 12_345, "cached_tokens": 0,
    "output_tokens": 812, "cost_usd": "1.5", "dearest_cost_usd": "6",
}  # fmt: skip
ANN = {"id": "u2", "name": "Ann\x1b[2J", "email": None}
REPORT: dict[str, Any] = {
    "from": "2026-11-01T00:00:00Z",
    "to": "2026-11-04T00:00:00Z",
    "group_by": ["day"],
    "total": TOTAL,
    "groups": [
        {"day": "2026-11-01", **TOTAL, "cost_usd": "1"},
        {"day": "2026-11-03", **TOTAL, "cost_usd": "0.5"},
    ],
    "dearest": {"chat": {"model": "opus", "backend": "claude"}, "embeddings": None},
    "budgets": [
        {
            "limit": "usd_per_day", "of": "key", "limit_usd": "2", "spent_usd": "0.5",
            "reserved_usd": "0.0012", "left_usd": "1.4988", "resets_at": "2026-11-05T00:00:00Z",
        }
    ],
}  # fmt: skip


def capture_report(
    monkeypatch: pytest.MonkeyPatch, report: dict[str, Any], names: dict[str, str] | None = None
) -> list[str]:
    """Return the lines that show the report in a terminal; runs of blanks become one blank."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    terminal = Console(
        file=output, force_terminal=True, width=100, highlight=False, soft_wrap=True, no_color=True
    )
    for module in (screen, usage):
        monkeypatch.setattr(module, "out", terminal)
    usage._print_report(report, names or {})
    output.seek(0)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output.read()).splitlines()
    assert max(map(len, lines)) <= 100
    return [" ".join(line.split()) for line in lines if line.strip()]


def test_report_has_a_chart_with_empty_days_the_saving_and_budgets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert capture_report(monkeypatch, REPORT) == [
        "2026-11-01 00:00 to 2026-11-04 00:00 (UTC)",
        "day calls not complete input cached output cost dearest bar: cost",
        f"2026-11-01 3 1 12.3k 0 812 $1.00 $6.00 {'█' * 20}",
        "2026-11-02 0 0 0 0 0 $0.00",
        f"2026-11-03 3 1 12.3k 0 812 $0.50 $6.00 {'█' * 10}",
        "3 calls, $1.50; on opus $6.00: 75% saved",
        "budget limit spent reserved left resets (UTC)",
        "key, day $2.00 $0.50 $0.0012 $1.50 2026-11-05",
    ]


def test_renders_are_not_part_of_the_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    total = {**TOTAL, "cost_usd": "101", "render_cost_usd": "100", "dearest_cost_usd": "104"}
    assert "3 calls, $101.00; on opus $104.00: 75% saved" in capture_report(
        monkeypatch, {**REPORT, "total": total}
    )
    render_total = {**total, "cost_usd": "100", "dearest_cost_usd": "100"}
    assert "3 calls, $100.00; on opus $100.00" in capture_report(
        monkeypatch, {**REPORT, "total": render_total}
    )


def test_free_usage_is_charted_by_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    free_totals = {**TOTAL, "cost_usd": "0", "dearest_cost_usd": None}
    report = {
        **REPORT,
        "total": free_totals,
        "groups": [{"key": None, **free_totals}],
        "group_by": ["key"],
    }
    lines = capture_report(monkeypatch, {**report, "budgets": None})
    assert lines[1].endswith("bar: output")
    assert lines[2].startswith("unknown 3 1")
    assert lines[3:] == ["3 calls, $0.00", "budgets cannot be read at the moment: try again later"]


async def test_users_and_keys_have_their_names_where_these_may_be_read(
    stub_gateway: tuple[GatewayClient, dict[str, Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, handlers = stub_gateway
    member_pages = {"": ([{"id": "u1", "name": "", "email": "mi@x"}], "2"), "2": ([ANN], None)}

    async def list_members(request: web.Request) -> web.Response:
        assert request.query["limit"] == "200"
        users, cursor = member_pages[request.query.get("cursor", "")]
        return web.json_response({"members": users, "next_cursor": cursor})

    async def refuse_keys(request: web.Request) -> web.Response:
        assert request.query["owner"] == "org_1"
        return web.json_response({"code": "insufficient_scope", "detail": "no"}, status=403)

    async def show_caller(_: web.Request) -> web.Response:
        return web.json_response({"owner": "org_1"})

    handlers["/accounts/whoami"] = show_caller
    handlers["/accounts/organisations/org_1/members"] = list_members
    handlers["/accounts/keys"] = refuse_keys
    names = await read_names(gateway, ["user", "key"], None)
    assert names == {"u1": "mi@x", "u2": "Ann\x1b[2J"}
    assert (
        await read_names(gateway, ["user"], "*") == await read_names(gateway, ["day"], None) == {}
    )
    groups = [{"user": user, "key": "k", **TOTAL} for user in ("u2", "u1", "u3", None)]
    report = {**REPORT, "group_by": ["user", "key"], "groups": groups}
    lines = capture_report(monkeypatch, report, {**names, "k": "farm"})
    shown_names = [line.split(" 3 ")[0] for line in lines[2:6]]
    assert shown_names == [
        "Ann\N{REPLACEMENT CHARACTER}[2J farm",
        "mi@x farm",
        "u3 farm",
        "keys of the tenant farm",
    ]


async def test_pages_are_read_until_the_limit(
    stub_gateway: tuple[GatewayClient, dict[str, Handler]],
) -> None:
    gateway, handlers = stub_gateway
    queries: list[dict[str, str]] = []

    async def list_requests(request: web.Request) -> web.Response:
        queries.append(dict(request.query))
        calls = [{"request_id": "r"}] * int(request.query["limit"])
        return web.json_response({"requests": calls, "next_cursor": f"c{len(queries)}"})

    handlers["/v1/requests"] = list_requests
    calls = await usage._read_calls(gateway, {"owner": "a&b", "key": None}, 450)
    assert len(calls) == 450
    assert queries == [
        {"owner": "a&b", "limit": "200"},
        {"owner": "a&b", "limit": "200", "cursor": "c1"},
        {"owner": "a&b", "limit": "50", "cursor": "c2"},
    ]


@pytest.mark.parametrize(
    ("number", "expected_text"),
    [(0, "0"), (999, "999"), (1_000, "1.00k"), (12_345, "12.3k"), (4_060_000, "4.06M")],
)
def test_numbers_are_shortened_to_three_digits(number: int, expected_text: str) -> None:
    assert shorten_number(number) == expected_text


@pytest.mark.parametrize(
    ("usd", "expected_text"),
    [("0", "$0.00"), ("1234.5", "$1,234.50"), ("0.0831", "$0.083"), ("0.0000012", "$0.0000012")],
)
def test_small_costs_keep_two_significant_digits(usd: str, expected_text: str) -> None:
    assert format_cost(usd) == expected_text


def test_a_bar_shows_even_the_smallest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    wide_console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=100)
    monkeypatch.setattr(usage, "out", wide_console)
    assert draw_bar(Decimal(0), Decimal(9)) == ""
    assert draw_bar(Decimal("0.001"), Decimal(9)) == "▏"
    assert draw_bar(Decimal(9), Decimal(9)) == "█" * 20
    narrow_console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=80)
    monkeypatch.setattr(usage, "out", narrow_console)
    assert draw_bar(Decimal(9), Decimal(9)) == "█" * 10
    ascii_console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=100)
    monkeypatch.setattr(usage, "out", ascii_console)
    assert draw_bar(Decimal(9), Decimal(9)) == "#" * 20
