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
class ForeignObjects:
    """Ids of objects that belong to the operator's tenant, and not to that of the signed-in user."""

    job: str
    batch: str
    artifact: str
    user: str
    key: str
    organisation: str


@pytest.fixture(scope="module")
def foreign_objects(gateway: RunningStack) -> ForeignObjects:
    api, accounts = Api(gateway), AccountsApi(gateway.url, gateway.api_key)
    inputs = {"prompt": SECRET, "width": 64}
    job = api.render(template="swatch", inputs={**inputs, "seed": 3})
    batch = api.render(template="swatch", inputs=inputs, batch={"seeds": [4, 5]})
    organisation, _ = accounts.create_organisation()
    email = accounts.create_member(organisation, "member", "Mika")
    session = accounts.call("POST", "/login", {"email": email, "password": PASSWORD})
    key = accounts.call("POST", "/keys", {"name": SECRET}, key=session["access_token"])
    return ForeignObjects(
        job=job["id"], batch=batch["id"], artifact=job["artifacts"][0]["id"],
        user=session["user"]["id"], organisation=organisation,
        key=accounts.call("GET", "/whoami", key=key["key"])["key_id"],
    )  # fmt: skip


@pytest.fixture
def stranger(
    console: ConsoleBrowser, gateway: RunningStack, foreign_objects: ForeignObjects
) -> Iterator[ConsoleBrowser]:
    """Sign in as an admin of an empty organisation, who must not see the operator's objects."""
    accounts = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = accounts.create_organisation()
    yield console.sign_in(accounts.create_member(organisation, "admin", "Eve"), PASSWORD)
    # The browser itself notes each answer 404, and each field that the gateway refuses.
    console.check_clean("status of 404", "status of 400")


def expect_nothing_foreign(page: Page, message: str) -> None:
    page.locator("main").get_by_text(message).first.wait_for()
    expect(page.locator("main .mantine-Skeleton-root[data-visible]")).to_have_count(0)
    content = page.content()
    assert SECRET not in content and "Mika" not in content
    assert page.locator("main img").count() == 0


def test_pages_of_foreign_jobs_and_batches_show_not_found(
    stranger: ConsoleBrowser, foreign_objects: ForeignObjects
) -> None:
    for job_id in (foreign_objects.job, foreign_objects.batch, *MALFORMED):
        expect_nothing_foreign(stranger.open(f"/jobs/{job_id}").page, "There is no such job")
    stranger.check_accessibility()
    expect_nothing_foreign(
        stranger.open(f"/jobs/{foreign_objects.job}/graph").page, "There is no such page"
    )
    stranger.page.get_by_role("link", name="Go to the first page").click()
    stranger.page.get_by_role("heading", name="Overview").wait_for()


def test_foreign_jobs_do_not_fill_in_the_render_form(
    stranger: ConsoleBrowser, foreign_objects: ForeignObjects
) -> None:
    for job, result_job in (
        (foreign_objects.job, foreign_objects.batch),
        ("7.png", "..%2f..%2fjobs"),
        ("<b>", "a" * 3000),
    ):
        page = stranger.open(f"/render?job={job}&result={result_job}").page
        expect(page.locator("main").get_by_text("There is no such job")).to_have_count(2)
        expect_nothing_foreign(page, "There is no such job")
        # The form is there all the same.
        page.get_by_role("button", name="Render 1 picture").wait_for()
    stranger.check_accessibility()


def test_filters_by_foreign_ids_find_nothing(
    stranger: ConsoleBrowser, foreign_objects: ForeignObjects
) -> None:
    for path, message in (
        (f"/jobs?search={foreign_objects.job}", "No job matches"),
        ("/jobs?template=nobody-has-it", "No job matches"),
        (f"/jobs?search={SECRET[4:]}", "No job matches"),
        (f"/jobs?metadata.project={foreign_objects.job}", "No job matches"),
        ("/jobs?cursor=made-up", "This did not work"),
        ("/jobs?created_after=never", "This did not work"),
        (f"/gallery?user={foreign_objects.user}", "No picture matches"),
        ("/gallery?template=nobody-has-it", "No picture matches"),
        ("/gallery?after=never&before=99999-99-99", "No pictures yet"),
        (f"/people?organisation={foreign_objects.organisation}", "Eve"),
        (f"/people/keys?organisation={foreign_objects.organisation}", "There are no keys here"),
        (f"/people/limits?organisation={foreign_objects.organisation}", "No limits"),
        (f"/chat?model={foreign_objects.key}", "models"),
        ("/people/nothing", "Eve"),
        ("/nothing/at/all", "There is no such page"),
    ):
        expect_nothing_foreign(stranger.open(path).page, message)


def test_foreign_files_and_routes_are_not_found(
    stranger: ConsoleBrowser, foreign_objects: ForeignObjects
) -> None:
    for path in (
        f"/artifacts/{foreign_objects.artifact}", f"/artifacts/{foreign_objects.artifact}?w=256",
        f"/jobs/{foreign_objects.job}/graph", f"/jobs/{foreign_objects.job}/events", f"/jobs/{foreign_objects.job}/preview",
        "/artifacts/%00", f"/artifacts/{'a' * 3000}",
        f"/accounts/users/{foreign_objects.user}", f"/accounts/limits/key:{foreign_objects.key}",
        f"/accounts/organisations/{foreign_objects.organisation}/members",
    ):  # fmt: skip
        response = stranger.page.goto(f"{stranger.url}{path}")
        assert response is not None and response.status == 404, path
        assert SECRET not in stranger.page.content()


def test_an_organisation_that_does_not_exist_is_not_found(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).page
    for organisation in ("org_none", f"org_{'a' * 300}"):
        console.open(f"/people/limits?organisation={organisation}")
        page.get_by_text("There is no such organisation").wait_for()
        assert page.get_by_role("button", name="Save").count() == 0
    page.get_by_role("combobox", name="Organisation").wait_for()
    console.check_accessibility()
    console.check_clean("status of 404")
