"""Tests that pages for objects of other tenants and for invalid ids show "not found"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.stack import RunningStack

SECRET = "the-secret-caption"
# Not found, as anything that belongs to nobody. The gateway itself refuses NUL in an address.
MALFORMED = (
    "7.png", "..%2f..%2fjobs", "<script>", "a" * 3000, "%F0%9F%A6%8A",
)  # fmt: skip


@dataclass(frozen=True)
class Others:
    """The ids of objects of the operator's tenant, to which the signed-in user does not belong."""

    job: str
    batch: str
    artifact: str
    user: str
    key: str
    organisation: str


@pytest.fixture(scope="module")
def others(gateway: RunningStack) -> Others:
    api, accounts = Api(gateway), AccountsApi(gateway.url, gateway.api_key)
    inputs = {"prompt": SECRET, "width": 64}
    job = api.render(template="swatch", inputs={**inputs, "seed": 3})
    batch = api.render(template="swatch", inputs=inputs, batch={"seeds": [4, 5]})
    organisation, _ = accounts.new_organisation()
    email = accounts.new_member(organisation, "member", "Mika")
    session = accounts.call("POST", "/login", {"email": email, "password": PASSWORD})
    key = accounts.call("POST", "/keys", {"name": SECRET}, key=session["access_token"])
    return Others(
        job=job["id"], batch=batch["id"], artifact=job["artifacts"][0]["id"],
        user=session["user"]["id"], organisation=organisation,
        key=accounts.call("GET", "/whoami", key=key["key"])["key_id"],
    )  # fmt: skip


@pytest.fixture
def stranger(
    console: ConsoleBrowser, gateway: RunningStack, others: Others
) -> Iterator[ConsoleBrowser]:
    """Sign in as an admin of an empty organisation, who must not see the operator's objects."""
    accounts = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = accounts.new_organisation()
    yield console.sign_in(accounts.new_member(organisation, "admin", "Eve"), PASSWORD)
    # The browser itself notes each answer 404, and each field that the gateway refuses.
    console.check_clean("status of 404", "status of 400")


def expect_nothing(page: Page, text: str) -> None:
    page.locator("main").get_by_text(text).first.wait_for()
    expect(page.locator("main .mantine-Skeleton-root[data-visible]")).to_have_count(0)
    content = page.content()
    assert SECRET not in content and "Mika" not in content
    assert page.locator("main img").count() == 0


def test_pages_of_jobs_and_batches(stranger: ConsoleBrowser, others: Others) -> None:
    for name in (others.job, others.batch, *MALFORMED):
        expect_nothing(stranger.open(f"/jobs/{name}").page, "There is no such job")
    stranger.check_accessibility()
    expect_nothing(stranger.open(f"/jobs/{others.job}/graph").page, "There is no such page")
    stranger.page.get_by_role("link", name="Go to the first page").click()
    stranger.page.get_by_role("heading", name="Overview").wait_for()


def test_renders_from_jobs(stranger: ConsoleBrowser, others: Others) -> None:
    for job, result in (
        (others.job, others.batch),
        ("7.png", "..%2f..%2fjobs"),
        ("<b>", "a" * 3000),
    ):
        page = stranger.open(f"/render?job={job}&result={result}").page
        expect(page.locator("main").get_by_text("There is no such job")).to_have_count(2)
        expect_nothing(page, "There is no such job")
        # The form is there all the same.
        page.get_by_role("button", name="Render 1 picture").wait_for()
    stranger.check_accessibility()


def test_lists_that_are_filtered_by_ids(stranger: ConsoleBrowser, others: Others) -> None:
    for path, text in (
        (f"/jobs?search={others.job}", "No job matches"),
        ("/jobs?template=nobody-has-it", "No job matches"),
        (f"/jobs?search={SECRET[4:]}", "No job matches"),
        (f"/jobs?metadata.project={others.job}", "No job matches"),
        ("/jobs?cursor=made-up", "This did not work"),
        ("/jobs?created_after=never", "This did not work"),
        (f"/gallery?user={others.user}", "No picture matches"),
        ("/gallery?template=nobody-has-it", "No picture matches"),
        ("/gallery?after=never&before=99999-99-99", "No pictures yet"),
        (f"/people?organisation={others.organisation}", "Eve"),
        (f"/people/keys?organisation={others.organisation}", "There are no keys here"),
        (f"/people/limits?organisation={others.organisation}", "No limits"),
        (f"/chat?model={others.key}", "models"),
        ("/people/nothing", "Eve"),
        ("/nothing/at/all", "There is no such page"),
    ):
        expect_nothing(stranger.open(path).page, text)


def test_files_and_links(stranger: ConsoleBrowser, others: Others) -> None:
    for path in (
        f"/artifacts/{others.artifact}", f"/artifacts/{others.artifact}?w=256",
        f"/jobs/{others.job}/graph", f"/jobs/{others.job}/events", f"/jobs/{others.job}/preview",
        "/artifacts/%00", f"/artifacts/{'a' * 3000}",
        f"/accounts/users/{others.user}", f"/accounts/limits/key:{others.key}",
        f"/accounts/organisations/{others.organisation}/members",
    ):  # fmt: skip
        response = stranger.page.goto(f"{stranger.url}{path}")
        assert response is not None and response.status == 404, path
        assert SECRET not in stranger.page.content()


def test_an_operator_names_an_organisation_that_does_not_exist(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).page
    for name in ("org_none", f"org_{'a' * 300}"):
        console.open(f"/people/limits?organisation={name}")
        page.get_by_text("There is no such organisation").wait_for()
        assert page.get_by_role("button", name="Save").count() == 0
    page.get_by_role("combobox", name="Organisation").wait_for()
    console.check_accessibility()
    console.check_clean("status of 404")
