"""Tests the pages for models, back ends, quality, routing decisions, and ComfyUI's nodes."""

from __future__ import annotations

from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack


def test_models_back_ends_and_quality(console: ConsoleBrowser, gateway: RunningStack) -> None:
    page = console.sign_in_with_key(gateway.api_key).page
    page.get_by_role("link", name="Models").click()
    row = page.get_by_role("row").filter(has_text="smollm2-135m").filter(has_text="4,096 tokens")
    row.first.get_by_text("up", exact=True).wait_for()
    console.check_accessibility()
    console.screenshot("models", also="ja")
    page.get_by_label("Filter by name").fill("nothing is called so")
    page.get_by_text("Nothing matches the filter").wait_for()
    page.get_by_label("Filter by name").fill("smollm2")
    assert page.get_by_role("link", name="Chat with smollm2-135m").get_attribute("href") == (
        "/console/chat?model=smollm2-135m"
    )

    page.get_by_role("tab", name="Back ends").click()
    local = page.get_by_role("region", name="local")
    local.get_by_text("Breaker: closed").wait_for()
    local.get_by_role("cell", name="smollm2-135m", exact=True).wait_for()
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


def test_nodes_and_model_files_are_searched(console: ConsoleBrowser, gateway: RunningStack) -> None:
    page = console.sign_in_with_key(gateway.api_key).open("/models?tab=comfyui").page
    page.get_by_role("button", name="loras").click()
    page.get_by_text("This folder has no files").wait_for()
    nodes = page.get_by_role("table", name="Nodes")
    nodes.wait_for()
    assert page.get_by_role("row").count() < 100
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
