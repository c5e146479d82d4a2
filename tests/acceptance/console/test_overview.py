"""Tests the pages that show running work and problems, for operators and for members."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import expect

from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.forged import build_backends, build_cluster, build_usage
from tests.acceptance.console.test_live import EVENTS, send_events
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
    console.screenshot("overview", also_in="ja")


def test_events_update_the_page(console: ConsoleBrowser, gateway: RunningStack) -> None:
    # This machine has no graphics card, and a real fault would break the farm that other tests share.
    page = console.sign_in_with_key(gateway.api_key).page
    send_events(page, cluster=build_cluster(), backends=build_backends(), usage=build_usage())
    console.open("/overview")
    page.get_by_text("Renders wait long: studio").wait_for()
    page.get_by_text("A render has waited in the pool studio for 12 minutes; 7 wait.").wait_for()
    page.get_by_text("Add renderers to the pool, or send renders to another one.").wait_for()

    nodes = page.get_by_role("region", name="Nodes and GPUs", exact=True)
    nodes.get_by_text("GPU 0 · NVIDIA H100").wait_for()
    nodes.get_by_text(re.compile(r"41 GB of 80 GB in use · 67 °C · 25\s?% free")).wait_for()
    gpu_bar = nodes.get_by_role("img", name=re.compile("^GPU 0: "))
    accessible_name = re.compile(r"50\s?% comfyui-studio-0, 25\s?% llama-local-0, 25\s?% free$")
    expect(gpu_bar).to_have_accessible_name(accessible_name)
    shares = nodes.get_by_role("listitem")
    expect(shares).to_have_count(2)
    expect(shares.first).to_contain_text(
        re.compile(r"comfyui-studio-0rendering.*50\s?% · flux.gguf, t5.gguf")
    )
    expect(shares.last).to_contain_text(re.compile(r"llama-local-0ready.*25\s?% · smollm2-135m"))

    studio = page.get_by_role("region", name="studio", exact=True)
    for expected_text in (
        "Waiting7", "Rendering2", "Ready2", "Scale1 to 4, by demand", "Oldest came12 min. ago",
        "Wait, last hour3.5 s (90 %: 1 min 15 s)", "ComfyUI0.3.75",
    ):  # fmt: skip
        expect(studio).to_contain_text(expected_text)
    lost_renderer = studio.get_by_role("listitem").filter(has_text="comfyui-studio-1")
    expect(lost_renderer).to_contain_text("lost 3 times in ten minutes")
    expect(lost_renderer).to_contain_text("CUDA out of memory")
    page.get_by_role("region", name="film", exact=True).get_by_text("Does not respond").wait_for()

    backends = page.get_by_role("table", name="Text back ends").get_by_role("row")
    cells = backends.filter(has_text="berlin").get_by_role("cell")
    expect(cells).to_have_text(["up", "120", "4", "3 / 85 wait", "1.2 s", "42.5", "gemma-3"])
    cells = backends.filter(has_text="oslo").get_by_role("cell")
    expect(cells).to_have_text(
        ["downbreaker openagain in 30 s", "9", "9", "0 / no limit", "1.2 s", "\u2013", "qwen-3"]
    )

    today_region = page.get_by_role("region", name="Today", exact=True)
    month_region = page.get_by_role("region", name="This month", exact=True)
    for period, expected_texts in (
        (
            today_region,
            ("1,234 calls", "$2.50", "Text: $1.50", "Renders: $1.00", "(claude-opus-5-5): $7.00"),
        ),
        (month_region, ("56,789 calls", "$40.00", "Text: $30.00", "Renders: $10.00", "$85.00")),
    ):
        for expected_text in expected_texts:
            expect(period).to_contain_text(expected_text)
    expect(today_region).to_contain_text(re.compile(r"Saved by routing: \$4\.50 \(75\s?%\)"))
    expect(month_region).to_contain_text(re.compile(r"Saved by routing: \$45\.00 \(60\s?%\)"))
    console.check_accessibility()
    console.screenshot("overview-busy")

    page.unroute(EVENTS)
    send_events(page, cluster=build_cluster(pools=[], nodes=[], problems=[]))
    page.get_by_text("No render pools").wait_for()
    page.get_by_text("All is well").wait_for()
    page.get_by_text("connecting again").wait_for()
    console.check_accessibility()


def test_an_operator_sees_routes_versions_and_configuration(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    routes = httpx.get(f"{gateway.url}/cluster/routes", headers=headers, timeout=60).json()
    page = console.sign_in_with_key(gateway.api_key).open("/operate").page
    page.get_by_role("region", name="Checks", exact=True).get_by_text("Database").wait_for()
    doctor = httpx.get(f"{gateway.url}/cluster/doctor", headers=headers, timeout=120).json()
    verdicts = {check["name"]: check["verdict"] for check in doctor["checks"]}
    for name in ("data folder", "database", "api key", "ports", "valkey server", "apps"):
        assert verdicts[name] == "ok", doctor
    assert gateway.valkey_password not in str(doctor)
    assert gateway.api_key not in str(doctor)
    machine_region = page.get_by_role("region", name="The gateway's machine", exact=True)
    for check in doctor["checks"]:
        row = machine_region.get_by_role("listitem").filter(
            has=page.get_by_text(check["name"], exact=True)
        )
        icon_name = {"ok": "good", "warn": "could be better", "fail": "wrong"}[check["verdict"]]
        row.get_by_role("img", name=icon_name).first.wait_for()
    machine_region.get_by_role("button", name="Check again").click()
    page.get_by_role("region", name="Intake sources", exact=True).get_by_text(
        "No message queues"
    ).wait_for()
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
    console.screenshot("operate", also_in="ja")
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
    real_body = httpx.get(
        f"{gateway.url}/cluster/config-changes", headers=headers, timeout=60
    ).json()
    assert real_body.keys() == changes.keys()
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
    response = httpx.post(
        f"{gateway.url}/accounts/keys",
        headers={"Authorization": f"Bearer {gateway.api_key}"},
        json={"name": "overview-reader", "scopes": ["jobs:read"]},
        timeout=60,
    )
    response.raise_for_status()
    page = console.sign_in_with_key(response.json()["key"]).open("/overview").page
    page.get_by_role("region", name="Render pools", exact=True).wait_for()
    assert page.get_by_role("link", name="Operate").count() == 0
    for heading in ("Money", "Nodes and GPUs", "Text back ends"):
        assert page.get_by_role("region", name=heading, exact=True).count() == 0
    console.check_accessibility()
    console.open("/operate").page.get_by_text("There is no such page").wait_for()
