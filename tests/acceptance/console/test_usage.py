"""Tests that usage is shown as a chart and as tables, and can be exported."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack
from tests.waiting import eventually_blocking


def test_usage_by_day_person_and_model(
    console: ConsoleBrowser, gateway: RunningStack, tmp_path: Path
) -> None:
    bearer = {"authorization": f"Bearer {gateway.api_key}"}
    url = f"{gateway.url}/v1/usage"
    call = {"model": "auto", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    httpx.post(
        f"{gateway.url}/v1/chat/completions", json=call, headers=bearer, timeout=300
    ).raise_for_status()

    def read() -> Any:
        query = {"group_by": "model"}
        answer = httpx.get(url, params=query, headers=bearer, timeout=60).json()
        return answer if answer["groups"] else None

    known = eventually_blocking(read)
    page = console.sign_in_with_key(gateway.api_key).open("/usage").page
    page.get_by_role("heading", name="Usage").wait_for()
    page.get_by_role("img", name="Cost by day").wait_for()
    page.get_by_role("rowheader").or_(
        page.get_by_role("cell", name=known["groups"][0]["model"])
    ).first.wait_for()
    console.check_accessibility()
    console.screenshot("usage")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    download.value.save_as(tmp_path / "usage.csv")
    with (tmp_path / "usage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} >= {group["model"] for group in known["groups"]}
    for group in ("Day", "Person", "Key", "Template"):
        page.get_by_role("combobox", name="By").click()
        page.get_by_role("option", name=group, exact=True).click()
        page.get_by_role("columnheader", name=group, exact=True).wait_for()
    page.get_by_text("Tokens", exact=True).click()
    page.get_by_role("img", name="Tokens by day").wait_for()
    page.get_by_text("7 days", exact=True).click()
    console.check_accessibility()
