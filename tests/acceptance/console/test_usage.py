"""Tests that the usage of a chosen tenant is shown as a chart and tables, and can be exported."""

from __future__ import annotations

import asyncio
import csv
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from moyin.domain.operation import RENDER, Unit
from moyin.store.schema import jobs, usage
from moyin.store.sql import Database, now
from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack

_DAYS = 30
# Before the month that the page shows first.
_EARLY_DAY = 60
_KEYS = 205


def make_rows(owner: str, key: str, job: str) -> list[dict[str, Any]]:
    """Return rows of the ledger: a month of chats and renders, and many calls two months ago.

    Weekends have no calls.

    Args:
        key: the id of the key that made all calls of this month. Each earlier call has another key.
        job: the id of the job to which all renders belong.
    """
    rows = []
    for day in range(_DAYS):
        created_at = now() - timedelta(days=day)
        amount = 1 + (day * 7) % 5 if created_at.weekday() < 5 else 0
        for model, tokens, nano_usd in (
            ("claude-opus-5-5", 3_000, 90_000_000),
            ("smollm2-135m", 9_000, 4_000_000),
            ("comfyui", 0, 160_000_000),
        ):
            is_render = model == "comfyui"
            rows += [
                {
                    "id": secrets.token_hex(16), "key_id": key,
                    "request_id": job if is_render else secrets.token_hex(8), "owner": owner, "backend": "render-default" if is_render else "local",
                    "model": model, "input_tokens": tokens, "cached_tokens": 0,
                    "output_tokens": tokens // 3, "cost_nano_usd": nano_usd * amount,
                    "complete": True, "created_at": created_at,
                    "operation": RENDER if is_render else None,
                    "unit": Unit.GPU_MILLISECONDS.value if is_render else None,
                    "quantity": 60_000 * amount if is_render else None,
                }
            ] * bool(amount)  # fmt: skip
    early_row = {
        "owner": owner, "backend": "local", "model": "smollm2-135m", "input_tokens": 1,
        "cached_tokens": 0, "output_tokens": 1, "cost_nano_usd": 0, "complete": True,
        "created_at": now() - timedelta(days=_EARLY_DAY),
    }  # fmt: skip
    return rows + [
        {
            **early_row, "id": secrets.token_hex(16), "request_id": secrets.token_hex(8),
            "key_id": f"{number:016x}",
        }
        for number in range(_KEYS)
    ]  # fmt: skip


@dataclass(frozen=True)
class UsedOrganisation:
    """An organisation with usage in the ledger, most of it by the key `nightly` of Aki."""

    organisation: str
    name: str
    email: str
    user: str
    key: str


@pytest.fixture
def used_organisation(gateway: RunningStack) -> Iterator[UsedOrganisation]:
    """Provide an organisation with usage.

    Tests request it before the browser, which blocks other event loops.
    """
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, name = api.create_organisation()
    email = api.create_member(organisation, "admin", "Aki")
    user, key_text = api.create_key(email, name="nightly")
    key = api.call("GET", "/whoami", key=key_text)["key_id"]
    job: dict[str, Any] = {
        "id": secrets.token_hex(16), "owner": organisation, "kind": "render",
        "status": "succeeded", "spec": "", "heads": [], "results": [], "progress": {},
        "attempts": 1, "priority": 3, "metadata": {}, "dispatched": True, "created_at": now(),
        "templates": ["poster"],
    }  # fmt: skip

    async def execute_statements(*statements: Any) -> None:
        database = Database(gateway.settings.sql_url)
        try:
            for statement in statements:
                await database.execute(statement)
        finally:
            await database.close()

    rows = make_rows(organisation, key, job["id"])
    asyncio.run(
        execute_statements(jobs.insert().values(job), *(usage.insert().values(row) for row in rows))
    )
    yield UsedOrganisation(organisation=organisation, name=name, email=email, user=user, key=key)
    asyncio.run(
        execute_statements(
            usage.delete().where(usage.c.owner == organisation),
            jobs.delete().where(jobs.c.owner == organisation),
        )
    )


def read_csv(page: Page) -> list[dict[str, str]]:
    """Save the table as CSV, and return its rows."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    with download.value.path().open(newline="") as file:
        return list(csv.DictReader(file))


def group_by(page: Page, group: str) -> None:
    page.get_by_role("combobox", name="By").click()
    page.get_by_role("option", name=group, exact=True).click()
    page.get_by_role("columnheader", name=group, exact=True).wait_for()


def test_usage_is_grouped_by_day_person_and_model(
    used_organisation: UsedOrganisation, console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in(used_organisation.email, PASSWORD).open("/usage").page
    page.get_by_role("heading", name="Usage").wait_for()
    chart = page.get_by_role("img", name="Cost by day")
    chart.locator(".usage-day:has(.usage-bar)").first.wait_for()
    day_count = chart.locator(".usage-day:has(.usage-bar)").count()
    assert day_count > _DAYS / 2
    page.get_by_role("cell", name="claude-opus-5-5").first.wait_for()
    console.check_accessibility()
    console.screenshot("usage", also_in="ja")
    rows = read_csv(page)
    assert {row["model"] for row in rows} == {"claude-opus-5-5", "smollm2-135m", "comfyui"}
    cost_usd = sum(Decimal(row["cost_usd"]) for row in rows)
    call_count = sum(int(row["calls"]) for row in rows)
    assert call_count == 3 * day_count

    group_by(page, "Day")
    rows = read_csv(page)
    assert [row["day"] for row in rows] == sorted(row["day"] for row in rows)
    assert (len(rows), sum(Decimal(row["cost_usd"]) for row in rows)) == (day_count, cost_usd)
    group_by(page, "Person")
    page.get_by_role("cell", name="Aki").first.wait_for()
    [row] = read_csv(page)
    assert (row["user"], row["name"], row["calls"]) == (
        used_organisation.user,
        "Aki",
        str(call_count),
    )
    group_by(page, "Template")
    page.get_by_role("cell", name="poster").first.wait_for()
    rows = read_csv(page)
    assert {row["template"]: int(row["calls"]) for row in rows} == {
        "poster": day_count,
        "": 2 * day_count,
    }
    assert {row["template"]: Decimal(row["render_cost_usd"]) > 0 for row in rows} == {
        "poster": True, "": False,
    }  # fmt: skip
    group_by(page, "Key")
    page.get_by_role("cell", name="nightly").first.wait_for()
    [row] = read_csv(page)
    assert (row["key"], row["name"], Decimal(row["cost_usd"])) == (
        used_organisation.key,
        "nightly",
        cost_usd,
    )

    for measure in ("Calls", "Tokens"):
        page.get_by_role("radiogroup", name="Measure").get_by_text(measure, exact=True).click()
        page.get_by_role("img", name=f"{measure} by day").wait_for()
    console.check_accessibility()
    # What many keys did two months ago is read page by page.
    total_cell = page.locator("tfoot th").nth(1)
    page.get_by_text("90 days", exact=True).click()
    expect(total_cell).to_have_text(str(call_count + _KEYS))
    table_rows = page.locator("tbody").get_by_role("row")
    for count in (100, 200):
        expect(table_rows).to_have_count(count)
        page.get_by_role("button", name="Load more").click()
    expect(table_rows).to_have_count(1 + _KEYS)
    expect(page.get_by_role("button", name="Load more")).to_have_count(0)
    console.check_accessibility()
    page.reload()
    page.get_by_text("90 days", exact=True).click()
    group_by(page, "Key")
    expect(table_rows).to_have_count(100)
    assert len(read_csv(page)) == 1 + _KEYS

    # Both days are included, in UTC.
    first_day = (now() - timedelta(days=_EARLY_DAY + 1)).date()
    page.get_by_label("From", exact=True).fill(first_day.isoformat())
    page.get_by_label("To", exact=True).fill((first_day + timedelta(days=1)).isoformat())
    expect(total_cell).to_have_text(str(_KEYS))
    page.get_by_label("To", exact=True).fill(first_day.isoformat())
    page.get_by_text("Nothing was used in this time").wait_for()
    console.check_accessibility()
    for days_shown in ("7 days", "30 days"):
        with page.expect_response("**/v1/usage?*group_by=key*") as response:
            page.get_by_text(days_shown, exact=True).click()
        expect(total_cell).to_have_text(str(response.value.json()["total"]["calls"]))
    assert response.value.json()["total"]["calls"] == call_count


def test_an_operator_sees_the_usage_of_a_chosen_organisation(
    used_organisation: UsedOrganisation, console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).open("/usage").page
    tenant = page.get_by_role("combobox", name="Tenant")
    tenant.fill(used_organisation.name)
    page.get_by_role("option", name=used_organisation.name).click()
    page.get_by_role("cell", name="claude-opus-5-5").first.wait_for()
    group_by(page, "Tenant")
    assert page.locator("tbody").get_by_role("row").count() == 1
    console.check_accessibility()
    tenant.click()
    page.get_by_role("option", name="All", exact=True).click()
    # Of all tenants, this one has spent by far the most.
    page.get_by_role("cell", name=used_organisation.organisation).first.wait_for()
    report = httpx.get(
        f"{gateway.url}/v1/usage?owner=*&group_by=owner", timeout=60,
        headers={"authorization": f"Bearer {gateway.api_key}"},
    ).json()  # fmt: skip
    assert [row["owner"] for row in read_csv(page)] == [row["owner"] for row in report["groups"]]
    group_by(page, "Model")
    page.get_by_role("cell", name="claude-opus-5-5").first.wait_for()
    console.check_accessibility()
    tenant.click()
    page.get_by_role("option", name="Your own", exact=True).click()
    page.get_by_role("cell", name="claude-opus-5-5").first.wait_for(state="detached")
