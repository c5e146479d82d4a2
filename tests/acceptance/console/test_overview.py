"""Tests the pages that show running work and problems, for operators and for members."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import expect

from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack


def test_an_operator_sees_pools_nodes_and_back_ends(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    cluster = httpx.get(f"{gateway.url}/cluster", headers=headers, timeout=60).json()
    backends = httpx.get(f"{gateway.url}/v1/backends", headers=headers, timeout=60).json()
    page = console.sign_in_with_key(gateway.api_key).open("/overview").page
    for heading in ("Money", "Render pools", "Nodes and GPUs", "Text back ends"):
        page.get_by_role("region", name=heading, exact=True).wait_for()
    pools = page.get_by_role("region", name="Render pools", exact=True)
    for pool in cluster["pools"]:
        pools.get_by_role("heading", name=pool["name"], exact=True).wait_for()
    nodes = page.get_by_role("region", name="Nodes and GPUs", exact=True)
    for node in cluster["nodes"]:
        nodes.get_by_role("heading", name=node["host"], exact=True).first.wait_for()
    for backend in backends["backends"]:
        page.get_by_role("rowheader", name=backend["name"], exact=True).wait_for()
    page.get_by_role("region", name="This month", exact=True).get_by_text("$").first.wait_for()
    console.check_accessibility()
    console.screenshot("overview", also="ja")


def test_events_update_the_page(console: ConsoleBrowser, gateway: RunningStack) -> None:
    # A real fault would break the farm that other tests share.
    problem = (
        '{"code":"long_wait","subject":"default","since":"2026-11-28T09:00:00Z",'
        '"parameters":{"waiting_since":"2026-11-28T08:55:00Z","queued":3},'
        '"message":"A render has waited.","advice":"Add `actors`."}'
    )
    event = f'event: cluster\ndata: {{"pools":[],"nodes":[],"problems":[{problem}]}}\n\n'
    page = console.sign_in_with_key(gateway.api_key).page
    page.route(
        "**/cluster/events?**",
        lambda route: route.fulfill(content_type="text/event-stream", body=event),
    )
    console.open("/overview")
    page.get_by_text("Renders wait long: default").wait_for()
    page.get_by_text("A render has waited.").wait_for()
    page.get_by_text("No render pools").wait_for()
    page.get_by_text("connecting again").wait_for()
    console.check_accessibility()


def test_an_operator_sees_routes_versions_and_configuration(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    routes = httpx.get(f"{gateway.url}/cluster/routes", headers=headers, timeout=60).json()
    page = console.sign_in_with_key(gateway.api_key).open("/operate").page
    page.get_by_role("region", name="Checks", exact=True).get_by_text("Database").wait_for()
    for route in routes["routes"]:
        page.get_by_role("heading", name=route["name"], exact=True).wait_for()
        for upstream in route["upstreams"]:
            page.get_by_role("cell", name=upstream["url"], exact=True).first.wait_for()
    versions = page.get_by_role("region", name="Versions", exact=True)
    versions.get_by_text(routes["versions"]["ray"], exact=True).wait_for()
    links = page.get_by_role("region", name="Other web interfaces", exact=True)
    addresses = httpx.get(f"{gateway.url}/cluster/links", headers=headers, timeout=60).json()
    for address in addresses.values():
        expect(links.get_by_role("link", name=address, exact=True)).to_have_attribute(
            "href", address
        )
    console.check_accessibility()
    console.screenshot("operate", also="ja")
    page.get_by_role("button", name="Show the configuration").click()
    page.get_by_role("button", name="Hide the configuration").wait_for()
    page.get_by_text('"routes"').wait_for()
    console.check_accessibility()


def test_an_operator_sees_what_the_last_deployment_changed(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    # Another configuration would change the farm that other tests share.
    changes = {
        "changes": [
            {
                "applied_at": "2026-11-28T09:00:00Z",
                "differences": [
                    {"path": "routes.shop.retries", "before": 1, "after": 2},
                    {"path": "routes.wiki", "before": None, "after": {"name": "wiki"}},
                ],
                "more": 3,
            }
        ]
    }
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    real = httpx.get(f"{gateway.url}/cluster/config-changes", headers=headers, timeout=60).json()
    assert real.keys() == changes.keys()
    page = console.sign_in_with_key(gateway.api_key).page
    page.route("**/cluster/config-changes", lambda route: route.fulfill(json=changes))
    console.open("/operate")
    panel = page.get_by_role("region", name="Last changes of the configuration", exact=True)
    row = panel.get_by_role("row").filter(has_text="routes.shop.retries")
    expect(row.get_by_role("cell")).to_have_text(["routes.shop.retries", "1", "2"])
    panel.get_by_role("row").filter(has_text="routes.wiki").get_by_text("none").wait_for()
    panel.get_by_text("and 3 more").wait_for()
    console.check_accessibility()


def test_problems_and_reasons_are_in_japanese(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    problem = (
        '{"code":"pool_without_renderer","subject":"default","since":"2026-11-28T09:00:00Z",'
        '"parameters":{"error":"out of memory","is_placing":false},'
        '"message":"The pool has no renderer.","advice":"Read the log."}'
    )
    event = f'event: cluster\ndata: {{"pools":[],"nodes":[],"problems":[{problem}]}}\n\n'
    page = console.sign_in_with_key(gateway.api_key).page
    page.route(
        "**/cluster/events?**",
        lambda route: route.fulfill(content_type="text/event-stream", body=event),
    )
    console.open("/overview").choose_language("ja")
    page.get_by_text("プール default に使えるレンダラーがありません").wait_for()
    page.get_by_text("out of memory").wait_for()
    assert page.get_by_text("The pool has no renderer.").count() == 0
    console.open("/models?tab=route")
    page.get_by_label("プロンプト").fill("こんにちは")
    page.get_by_role("button", name="説明").click()
    page.get_by_role("table", name="候補").get_by_text("無料").wait_for()
    excluded = page.get_by_role("table", name="対象外").get_by_role("row")
    # Claude has no key here, or one for a server that does not respond.
    reason = re.compile("未設定|ヘルスチェックに失敗しています")
    excluded.filter(has_text="claude-opus-5-5").get_by_text(reason).wait_for()
    assert page.locator("table [lang=en]").count() == 0
    console.check_accessibility()


def test_a_member_sees_the_pools_only(console: ConsoleBrowser, gateway: RunningStack) -> None:
    answer = httpx.post(
        f"{gateway.url}/accounts/keys",
        headers={"Authorization": f"Bearer {gateway.api_key}"},
        json={"name": "overview-reader", "scopes": ["jobs:read"]},
        timeout=60,
    )
    answer.raise_for_status()
    page = console.sign_in_with_key(answer.json()["key"]).open("/overview").page
    page.get_by_role("region", name="Render pools", exact=True).wait_for()
    assert page.get_by_role("link", name="Operate").count() == 0
    for heading in ("Money", "Nodes and GPUs", "Text back ends"):
        assert page.get_by_role("region", name=heading, exact=True).count() == 0
    console.check_accessibility()
    console.open("/operate").page.get_by_text("There is no such page").wait_for()
