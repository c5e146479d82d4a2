"""Tests that a newcomer can follow docs/studio.md from the operator's key to a member's costs."""

from __future__ import annotations

import contextlib
import io
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from playwright.sync_api import Page, expect

from tests.acceptance.console.access_api import PASSWORD
from tests.acceptance.console.browser import ConsoleBrowser
from tests.examples import read_example
from tests.stack import RunningStack
from tests.waiting import eventually_blocking

PAGE = "docs/studio.md"


def set_prices(config: dict[str, Any], prices: dict[str, Any]) -> None:
    """Set the prices of the local model and of the pool, as docs/studio.md instructs."""
    apps = {app["name"]: app for app in config["applications"]}
    backends = apps["models"]["deployments"][0]["user_config"]["backends"]
    [local] = [backend for backend in backends if backend["name"] == "local"]
    local["models"][0]["price"] = prices["price"]
    apps["render-default"]["args"]["usd_per_gpu_hour"] = prices["usd_per_gpu_hour"]


@pytest.fixture
def deployed_prices(gateway: RunningStack, tmp_path: Path) -> Iterator[None]:
    """Deploy the prices of docs/studio.md, and restore the configuration afterwards."""
    original_config_path = Path(gateway.env["MOYIN_SERVE_CONFIG"])
    config = yaml.safe_load(original_config_path.read_text())
    set_prices(config, yaml.safe_load(read_example(PAGE, "prices", "yaml")))
    changed_config_path = tmp_path / "serve_config.yaml"
    changed_config_path.write_text(yaml.safe_dump(config))
    gateway.run("deploy", "--config", str(changed_config_path))
    yield
    gateway.run("deploy", "--config", str(original_config_path))


@pytest.fixture
def template(gateway: RunningStack) -> Iterator[str]:
    """Store the template of docs/studio.md, and return its name."""
    template_yaml = read_example(PAGE, "template", "yaml")
    name: str = yaml.safe_load(template_yaml)["name"]
    assert f"`.moyin/templates/{name}.yaml`" in (Path(__file__).parents[3] / PAGE).read_text()
    template_path = gateway.data / "templates" / f"{name}.yaml"
    template_path.parent.mkdir(exist_ok=True)
    template_path.write_text(template_yaml)
    yield name
    template_path.unlink()


def test_a_newcomer_sets_up_a_studio(
    console: ConsoleBrowser, gateway: RunningStack, deployed_prices: None, template: str
) -> None:
    organisation, email = f"Studio {secrets.token_hex(4)}", f"{secrets.token_hex(6)}@example.com"
    page = console.sign_in_with_key(gateway.api_key).page
    invitation = invite_member(console, organisation, email)
    set_budget(page, "5")
    sign_out(page)

    accept_invitation(page, invitation, email)
    key = create_key(page, organisation)
    assert run_chat(gateway.url, key).strip()
    render_sweep(console, template)

    page.get_by_role("link", name="Gallery", exact=True).first.click()
    pictures = page.get_by_role("list", name="Pictures").get_by_role("listitem")
    expect(pictures).to_have_count(3)

    costs = eventually_blocking(lambda: read_costs(gateway.url, key))
    page.get_by_role("link", name="Usage", exact=True).click()
    for model in ("smollm2-135m", "comfyui"):
        row = page.get_by_role("row").filter(has_text=model)
        cost_text = row.get_by_role("cell").last.inner_text()
        assert float(cost_text.removeprefix("$")) == pytest.approx(costs[model], rel=0.06)
        assert float(cost_text.removeprefix("$")) > 0
    page.get_by_text("of $5.00").first.wait_for()
    console.check_accessibility()


def invite_member(console: ConsoleBrowser, organisation: str, email: str) -> str:
    """Create an organisation with one member, and return the invitation link."""
    page = console.page
    page.get_by_role("link", name="People", exact=True).click()
    page.get_by_role("button", name="New organisation").click()
    page.get_by_label("Name of the organisation").fill(organisation)
    page.get_by_role("button", name="Create").click()
    page.get_by_text("Nobody is here yet").wait_for()
    # A list that shows only the chosen tenant loses the new one with the next visit.
    console.open("/people")
    page.get_by_role("combobox", name="Organisation").click()
    page.get_by_role("option", name=organisation).click()
    page.get_by_role("tab", name="Keys").click()
    page.get_by_text("Members create their own keys").wait_for()
    page.get_by_role("tab", name="Members").click()
    page.get_by_role("button", name="Invite").click()
    page.get_by_role("dialog").get_by_role("textbox", name="Email").fill(email)
    page.get_by_role("textbox", name="Name", exact=True).fill("Ann")
    page.get_by_role("dialog").get_by_role("button", name="Invite").click()
    link: str = page.get_by_test_id("secret").inner_text()
    page.get_by_role("button", name="Done").click()
    return link


def set_budget(page: Page, dollars: str) -> None:
    page.get_by_role("button", name="Actions for Ann").click()
    page.get_by_role("menuitem", name="Limits and budget").click()
    page.get_by_label("US dollars per day").fill(dollars)
    page.get_by_role("button", name="Save").click()
    page.get_by_role("dialog").wait_for(state="detached")


def sign_out(page: Page) -> None:
    page.get_by_role("banner").get_by_role("button").last.click()
    page.get_by_role("menuitem", name="Sign out").click()
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()


def accept_invitation(page: Page, invitation: str, email: str) -> None:
    """Choose a password by the invitation's link, and sign in with it."""
    page.goto(invitation)
    page.get_by_label("New password").first.fill(PASSWORD)
    page.get_by_role("button", name="Set the password").click()
    page.get_by_text("The password is set.").wait_for()
    page.get_by_role("link", name="Go to sign-in").click()
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").first.fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("navigation").wait_for()


def create_key(page: Page, organisation: str) -> str:
    """Create an API key for the member on the console, and return its secret."""
    page.get_by_role("link", name="My account", exact=True).click()
    page.get_by_text(organisation, exact=True).wait_for()
    page.get_by_role("button", name="New key").click()
    page.get_by_label("Name of the key").fill("script")
    page.get_by_role("button", name="Create", exact=True).click()
    key: str = page.get_by_test_id("secret").inner_text()
    page.get_by_role("button", name="Done").click()
    return key


def run_chat(url: str, key: str) -> str:
    """Run the program of docs/studio.md that uses the official SDK, and return what it prints."""
    program = read_example(PAGE, "chat", "python")
    program = program.replace("http://127.0.0.1:8000", url).replace("moyin_…", key)
    assert url in program
    assert key in program
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(program, PAGE, "exec"), {})
    return output.getvalue()


def render_sweep(console: ConsoleBrowser, template: str) -> None:
    """Render a sweep (one job of several renders) over three colours on the console."""
    page = console.page
    page.get_by_role("link", name="Render", exact=True).click()
    page.get_by_role("combobox", name="Template").click()
    page.get_by_role("option", name=f"({template})").click()
    page.get_by_text("Sweep", exact=True).click()
    page.get_by_role("combobox", name="Values").press_sequentially("2003199,14911780,16711680,")
    page.get_by_role("button", name="Render 3 variants").click()
    page.get_by_text("3 of 3 done").wait_for(timeout=240_000)
    console.check_accessibility()


def read_costs(url: str, key: str) -> dict[str, float] | None:
    """Return each model's total cost in US dollars, or None while fewer than four calls are booked."""
    response = httpx.get(
        f"{url}/v1/usage", params={"group_by": "model"},
        headers={"authorization": f"Bearer {key}"}, timeout=60,
    ).raise_for_status()  # fmt: skip
    groups = response.json()["groups"]
    if sum(group["calls"] for group in groups) < 4:
        return None
    return {group["model"]: float(group["cost_usd"]) for group in groups}
