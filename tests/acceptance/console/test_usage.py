"""Tests that usage is shown as a chart and as tables, of a chosen tenant, and can be exported."""

from __future__ import annotations

import asyncio
import csv
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from moyin.domain.operation import RENDER, Unit
from moyin.store.schema import usage
from moyin.store.sql import Database, now
from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack

_DAYS = 30


def make_rows(owner: str) -> list[dict[str, Any]]:
    """Return a month of chats and renders in the ledger, with quiet weekends."""
    rows = []
    for day in range(_DAYS):
        at = now() - timedelta(days=day)
        work = 1 + (day * 7) % 5 if at.weekday() < 5 else 0
        for model, tokens, nano_usd in (
            ("claude-opus-5-5", 3_000, 90_000_000),
            ("smollm2-135m", 9_000, 4_000_000),
            ("comfyui", 0, 160_000_000),
        ):
            renders = model == "comfyui"
            rows += [
                {
                    "id": secrets.token_hex(16), "request_id": secrets.token_hex(8),
                    "owner": owner, "backend": "render-default" if renders else "local",
                    "model": model, "input_tokens": tokens, "cached_tokens": 0,
                    "output_tokens": tokens // 3, "cost_nano_usd": nano_usd * work,
                    "complete": True, "created_at": at,
                    "operation": RENDER if renders else None,
                    "unit": Unit.GPU_MILLISECONDS.value if renders else None,
                    "quantity": 60_000 * work if renders else None,
                }
            ] * bool(work)  # fmt: skip
    return rows


@pytest.fixture
def used(gateway: RunningStack) -> Iterator[tuple[str, str]]:
    """Provide the id and the name of an organisation with a month of usage in the ledger.

    Tests name it before the browser, in whose event loop no other can run.
    """
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, name = api.new_organisation()

    async def write(*statements: Any) -> None:
        database = Database(gateway.settings.sql_url)
        try:
            for statement in statements:
                await database.execute(statement)
        finally:
            await database.close()

    asyncio.run(write(*(usage.insert().values(row) for row in make_rows(organisation))))
    yield organisation, name
    asyncio.run(write(usage.delete().where(usage.c.owner == organisation)))


def test_usage_by_day_person_and_model(
    used: tuple[str, str], console: ConsoleBrowser, gateway: RunningStack, tmp_path: Path
) -> None:
    organisation, _ = used
    email = AccountsApi(gateway.url, gateway.api_key).new_member(organisation, "admin", "Aki")
    page = console.sign_in(email, PASSWORD).open("/usage").page
    page.get_by_role("heading", name="Usage").wait_for()
    chart = page.get_by_role("img", name="Cost by day")
    chart.locator(".usage-day:has(.usage-bar)").first.wait_for()
    assert chart.locator(".usage-day:has(.usage-bar)").count() > _DAYS / 2
    page.get_by_role("cell", name="claude-opus-5-5").first.wait_for()
    console.check_accessibility()
    console.screenshot("usage", also="ja")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    download.value.save_as(tmp_path / "usage.csv")
    with (tmp_path / "usage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"claude-opus-5-5", "smollm2-135m", "comfyui"}
    for group in ("Day", "Person", "Key", "Template"):
        page.get_by_role("combobox", name="By").click()
        page.get_by_role("option", name=group, exact=True).click()
        page.get_by_role("columnheader", name=group, exact=True).wait_for()
    page.get_by_text("Tokens", exact=True).click()
    page.get_by_role("img", name="Tokens by day").wait_for()
    page.get_by_text("7 days", exact=True).click()
    console.check_accessibility()


def test_an_operator_chooses_an_organisation(
    used: tuple[str, str], console: ConsoleBrowser, gateway: RunningStack
) -> None:
    _, name = used
    page = console.sign_in_with_key(gateway.api_key).open("/usage").page
    tenant = page.get_by_role("combobox", name="Tenant")
    tenant.fill(name)
    page.get_by_role("option", name=name).click()
    page.get_by_role("cell", name="claude-opus-5-5").first.wait_for()
    page.get_by_role("combobox", name="By").click()
    page.get_by_role("option", name="Tenant", exact=True).click()
    page.get_by_role("columnheader", name="Tenant", exact=True).wait_for()
    assert page.locator("tbody").get_by_role("row").count() == 1
    console.check_accessibility()
    tenant.click()
    page.get_by_role("option", name="All", exact=True).wait_for()
    page.get_by_role("option", name="Your own", exact=True).click()
    page.get_by_role("cell", name="claude-opus-5-5").first.wait_for(state="detached")
