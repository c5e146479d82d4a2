from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from moyin.errors import InvalidRequest
from moyin.store.usage import UsageEntry
from moyin.text.protocol.usage import CallsQuery, UsageQuery, build_call_body

NOW = datetime(2026, 11, 28, 9, 30, tzinfo=UTC)


def resolve_period(**parameters: str) -> tuple[datetime, datetime]:
    return UsageQuery.model_validate(parameters).resolve_period(NOW)


def test_the_default_period_is_thirty_days_with_today() -> None:
    assert resolve_period() == (datetime(2026, 10, 30, tzinfo=UTC), NOW)
    # The end is exclusive, so that midnight belongs to the day before.
    since, until = resolve_period(to="2026-11-28")
    assert until - since == timedelta(days=30)


def test_dates_and_times_with_offsets_are_utc() -> None:
    since, until = resolve_period(**{"from": "2026-11-01", "to": "2026-11-02T01:00:00+02:00"})
    assert since == datetime(2026, 11, 1, tzinfo=UTC)
    assert until == datetime(2026, 11, 1, 23, tzinfo=UTC)
    assert CallsQuery.model_validate({"after": "2026-11-01"}).after == since


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"from": "2026-12-01"}, "from"),
        ({"from": "2025-10-01", "to": "2026-11-28"}, "from"),
        ({"to": "0001-01-01"}, "to"),
    ],
)
def test_periods_are_bounded(parameters: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        resolve_period(**parameters)
    assert exc_info.value.field == field


def test_render_is_shown_with_its_time() -> None:
    entry = UsageEntry(
        request_id="j",
        owner="ann",
        backend="render-default",
        model="comfyui",
        input_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        cost_usd=Decimal("0.025"),
        complete=False,
        error="cancelled",
        operation="render",
        unit="gpu_milliseconds",
        quantity=2500,
    )
    shown_call = build_call_body(entry).model_dump(mode="json")
    assert (shown_call["operation"], shown_call["unit"], shown_call["quantity"]) == (
        "render",
        "gpu_milliseconds",
        2500,
    )
    assert (shown_call["status"], shown_call["cost_usd"]) == ("cancelled", "0.025")
