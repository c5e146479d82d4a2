"""Tests the pages for models, back ends, quality, routing decisions, and ComfyUI's nodes."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Route, expect

from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.acceptance.console.forged import build_backends, build_cluster
from tests.acceptance.console.test_live import send_events
from tests.stack import RunningStack


def test_models_back_ends_and_quality_are_listed(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).page
    page.get_by_role("link", name="Models").click()
    row = page.get_by_role("row").filter(has_text="smollm2-135m").filter(has_text="4,096 tokens")
    row.first.get_by_text("up", exact=True).wait_for()
    row.first.get_by_text("free").wait_for()
    [opus_model] = [
        model_entry
        for model_entry in Api(gateway).get("/v1/models")["data"]
        if model_entry["id"] == "claude-opus-5-5"
    ]
    price = opus_model["backends"][0]["usd_per_million_tokens"]
    dollars = f"${float(price['input']):.2f} / ${float(price['output']):.2f}"
    row = page.get_by_role("row").filter(has=page.get_by_text("claude-opus-5-5", exact=True))
    row.get_by_text(dollars).wait_for()
    console.check_accessibility()
    console.screenshot("models", also_in="ja")
    page.get_by_label("Filter by name").fill("nothing is called so")
    page.get_by_text("Nothing matches the filter").wait_for()
    page.get_by_label("Filter by name").fill("smollm2")
    assert page.get_by_role("link", name="Chat with smollm2-135m").get_attribute("href") == (
        "/console/chat?model=smollm2-135m"
    )

    page.get_by_role("tab", name="Back ends").click()
    local_region = page.get_by_role("region", name="local")
    local_region.get_by_text("Breaker: closed").wait_for()
    local_region.get_by_role("cell", name="smollm2-135m", exact=True).wait_for()
    for backend in Api(gateway).get("/v1/backends")["backends"]:
        card = page.get_by_role("region", name=backend["name"], exact=True)
        card.get_by_text(f"Data location: {backend['residency']}").wait_for()
        for model in backend["models"]:
            cells = card.get_by_role("row").filter(has_text=model["name"]).first.get_by_role("cell")
            price = model["usd_per_million_tokens"]
            expect(cells.nth(4)).to_have_text(f"{price['input']} / {price['output']}")
    console.check_accessibility()
    console.screenshot("models-backends")

    page.get_by_role("tab", name="Quality").click()
    page.get_by_role("table", name="Quality").get_by_text("claude-opus-5-5", exact=True).wait_for()
    console.check_accessibility()
    console.screenshot("models-quality")


def test_a_dry_run_explains_every_candidate(console: ConsoleBrowser, gateway: RunningStack) -> None:
    page = console.sign_in_with_key(gateway.api_key).open("/models?tab=route").page
    page.get_by_label("Prompt").fill("Hello there")
    page.get_by_role("button", name="Explain").click()
    page.get_by_text("Would answer: local · smollm2-135m").wait_for()
    page.get_by_role("table", name="Candidates").get_by_text("free").wait_for()
    excluded = page.get_by_role("table", name="Excluded").get_by_role("row")
    excluded.filter(has_text="claude-opus-5-5").wait_for()
    console.check_accessibility()
    console.screenshot("models-dry-run")
    page.get_by_label("Lowest quality").fill("0.999")
    page.get_by_role("button", name="Explain").click()
    page.get_by_text("Nobody would answer").wait_for()
    console.check_accessibility()


def test_loads_of_back_ends_and_long_lists_are_shown(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    # The farm has no traffic that trips a breaker, and fewer models than a page has.
    page = console.sign_in_with_key(gateway.api_key).page
    send_events(page, backends=build_backends())
    real_models = Api(gateway).get("/v1/models")
    names = [f"host-{number:03}" for number in range(150)]

    def list_models(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        matching_names = [name for name in names if query.get("search", [""])[0] in name]
        after_id = query.get("after_id", [""])[0]
        page_names = [name for name in matching_names if name > after_id][: int(query["limit"][0])]
        models = [{**real_models["data"][0], "id": name, "backends": []} for name in page_names]
        has_more = bool(page_names) and page_names[-1] != matching_names[-1]
        last_id = page_names[-1] if page_names else None
        route.fulfill(
            json={**real_models, "data": models, "has_more": has_more, "last_id": last_id}
        )

    page.route("**/v1/models?**", list_models)
    console.open("/models")
    rows = page.get_by_role("table", name="Text models").get_by_role("row")
    expect(rows).to_have_count(101)
    page.get_by_role("button", name="Load more").click()
    expect(rows).to_have_count(151)
    page.get_by_role("button", name="Load more").wait_for(state="detached")
    page.get_by_label("Filter by name").fill("host-14")
    expect(rows).to_have_count(11)

    page.get_by_role("tab", name="Back ends").click()
    berlin_region = page.get_by_role("region", name="berlin", exact=True)
    for expected_text in (
        "vllm · Data location: eu", "Breaker: closed", "Now: 3 of 8 running, 5 waiting",
        "calls: 120, errors: 4 · 42.5 tokens/s · half within 1.2 s, nine of ten within 6 s",
    ):  # fmt: skip
        expect(berlin_region).to_contain_text(expected_text)
    expect(berlin_region.get_by_role("cell")).to_have_text(
        [
            "gemma-3",
            "loaded",
            "0.4 s",
            "87 tokens/s",
            "0.15 / 0.60",
            re.compile("^tier 3 · Ability 1.5"),
        ]
    )
    oslo_region = page.get_by_role("region", name="oslo", exact=True)
    expect(oslo_region).to_contain_text("Breaker: open, tries again in 30 s")
    expect(oslo_region.get_by_role("cell").nth(1)).to_have_text("not loaded")
    console.check_accessibility()

    add_worse_candidates(page)
    page.get_by_role("tab", name="Dry run").click()
    page.get_by_label("Prompt").fill("Hello there")
    page.get_by_role("button", name="Explain").click()
    candidates = page.get_by_role("table", name="Candidates").get_by_role("row")
    expect(candidates).to_have_count(4)
    for row_index, (name, usd_behind, reason, _) in enumerate(LOSERS, start=2):
        cells = candidates.nth(row_index).get_by_role("cell")
        expect(cells.nth(0)).to_contain_text(name)
        expect(cells.nth(2)).to_have_text(f"+${usd_behind}")
        expect(cells.nth(6)).to_have_text(reason)
    console.check_accessibility()
    console.screenshot("models-candidates")


# The back end, how far it is behind in US dollars, and why.
LOSERS = (
    ("paris", "0.25", "costs $0.25 more", {"code": "costs_more", "usd": 0.25}),
    ("tokyo", "1.25", "takes 3 s longer", {"code": "takes_longer", "seconds": 3.0}),
)


def add_worse_candidates(page: Any) -> None:
    """Add two worse candidates to each explanation of a route that the page gets from the router."""

    def explain(route: Route) -> None:
        explanation = route.fetch().json()
        [best_candidate] = explanation["candidates"]
        for name, usd_behind, reason, code in LOSERS:
            explanation["candidates"].append(
                {
                    **best_candidate, "backend": name, "score_usd": best_candidate["score_usd"] + float(usd_behind),
                    "loses_by_usd": float(usd_behind), "reason": reason, "reasons": [code],
                }
            )  # fmt: skip
        route.fulfill(json=explanation)

    page.route("**/v1/route", explain)


def test_pools_have_their_own_nodes_and_files(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    # The farm has one pool, and no model files.
    page = console.sign_in_with_key(gateway.api_key).page
    cluster = build_cluster()
    page.route("**/cluster", lambda route: route.fulfill(json=cluster))
    queries: list[dict[str, list[str]]] = []
    files = [f"style-{number:03}.safetensors" for number in range(120)]

    def list_files(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        queries.append(query)
        matching_files = [name for name in files if query.get("search", [""])[0] in name]
        after_name = query.get("after", [""])[0]
        page_of_files = [name for name in matching_files if name > after_name][
            : int(query["limit"][0])
        ]
        route.fulfill(json=page_of_files, headers={"x-total-count": str(len(matching_files))})

    def fulfill_with(body: Any, count: int) -> Any:
        return lambda route: route.fulfill(json=body, headers={"x-total-count": str(count)})

    film_node = {
        "FilmGrain": {"name": "FilmGrain", "display_name": "Film Grain", "category": "film"}
    }
    page.route("**/models?pool=film", lambda route: route.fulfill(json=["loras"]))
    page.route("**/models/loras?**pool=film**", list_files)
    page.route("**/object_info?**pool=film**", fulfill_with(film_node, 1))
    console.open("/models?tab=comfyui")
    page.get_by_role("table", name="Nodes").wait_for()
    page.get_by_role("combobox", name="Render pool").click()
    page.get_by_role("option", name="film").click()
    page.get_by_role("button", name="Details of Film Grain").wait_for()
    page.get_by_text("1 of 1 nodes").wait_for()
    table = page.get_by_role("table", name="Model files: loras")
    expect(table.get_by_role("row")).to_have_count(51)
    page.get_by_text("50 of 120 files").wait_for()
    page.get_by_role("button", name="Load more").click()
    expect(table.get_by_role("row")).to_have_count(101)
    page.get_by_label("Search files").fill("style-11")
    expect(table.get_by_role("row")).to_have_count(11)
    assert all(query["pool"] == ["film"] for query in queries)
    console.check_accessibility()
    console.screenshot("models-pools")


def test_nodes_and_model_files_are_searched(console: ConsoleBrowser, gateway: RunningStack) -> None:
    page = console.sign_in_with_key(gateway.api_key).open("/models?tab=comfyui").page
    page.get_by_role("button", name="loras").click()
    page.get_by_text("This folder has no files").wait_for()
    nodes = page.get_by_role("table", name="Nodes")
    nodes.wait_for()
    rows = nodes.get_by_role("row")
    expect(rows).to_have_count(51)
    status = page.get_by_role("status").filter(has_text="nodes")
    count = len(Api(gateway).get("/object_info"))
    expect(status).to_have_text(f"50 of {count:,} nodes")
    page.get_by_role("button", name="Load more").click()
    expect(rows).to_have_count(101)
    page.get_by_label("Search nodes").fill("ksampler advanced")
    nodes.get_by_role("button", name="Details of KSampler (Advanced)").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("row").filter(has_text="noise_seed").wait_for()
    dialog.get_by_text("LATENT").last.wait_for()
    console.check_accessibility()
    console.screenshot("models-nodes")
    page.keyboard.press("Escape")
    console.choose_language("ja")
    page.get_by_role("heading", name="モデルファイル").wait_for()
    console.check_accessibility()
