"""Tests that each role sees the controls that it may use, and that the API refuses all other calls."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.stack import RunningStack

Role = Literal["viewer", "member", "admin", "player", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "member", "admin", "player", "operator")

READERS: tuple[Role, ...] = ("viewer", "member", "admin", "operator")
WRITERS: tuple[Role, ...] = ("member", "admin", "operator")
ADMINS: tuple[Role, ...] = ("admin", "operator")
PERSONS: tuple[Role, ...] = ("viewer", "member", "admin", "player")
OPERATOR: tuple[Role, ...] = ("operator",)

# The pages: their names, who has them in the menu, and a call that each needs.
PAGES: tuple[tuple[str, str, tuple[Role, ...], str], ...] = (
    ("Overview", "/overview", READERS, "/cluster"),
    ("Jobs", "/jobs", READERS, "/jobs"),
    ("Render", "/render", WRITERS, "POST /jobs"),
    ("Gallery", "/gallery", READERS, "/artifacts"),
    ("Chat", "/chat", WRITERS, "POST /v1/chat/completions"),
    ("Models", "/models", READERS, "/models"),
    ("People", "/people", READERS, "/accounts/organisations"),
    ("Usage", "/usage", WRITERS, "/v1/usage"),
    ("Operate", "/operate", OPERATOR, "/cluster/routes"),
    ("My account", "/account", ROLES, "/accounts/whoami"),
)


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control of a page, the roles that see it, and the API calls that it makes.

    Attributes:
        within: the path of the page that shows it, or a name in `VIEWS`.
        role: the ARIA role of the control's element.
        calls: method and path of each call; a name in braces is a variable of `Studio.values`.
        others: True if roles that do not see the control are still allowed to make its API calls.
    """

    within: str
    role: Any
    name: str
    roles: tuple[Role, ...]
    calls: tuple[str, ...] = ()
    body: Mapping[str, Any] | None = None
    others: bool = False


# What is opened on a page: the page, the role and name of what opens it, and who can.
VIEWS: dict[str, tuple[str, Any, str, tuple[Role, ...]]] = {
    "open picture": ("/gallery", "button", "Open", READERS),
    "menu of a member": ("/people", "button", "Actions for Boss", ADMINS),
    "menu of a service account": ("/people", "button", "Actions for robot", ADMINS),
    "menu of a key": ("/people/keys", "button", "Actions for", WRITERS),
}
LIMITS = ("PUT /accounts/limits/user:{user}", "DELETE /accounts/limits/user:{user}")
MEMBER = "/accounts/organisations/{organisation}/members/{user}"
CONTROLS = (
    Control(
        within="/overview", role="region", name="Text back ends", roles=ADMINS,
        calls=("GET /v1/backends",),
    ),
    Control(within="/overview", role="region", name="Money", roles=WRITERS, calls=("GET /v1/usage",)),
    Control(
        within="/overview", role="region", name="Nodes and GPUs", roles=OPERATOR,
        calls=("GET /cluster/problems",),
    ),
    Control(
        within="/jobs", role="button", name="All that match the filters", roles=WRITERS,
        calls=("POST /jobs/cancel", "POST /jobs/delete"), body={"filter": {"search": "x"}},
    ),
    Control(within="/jobs", role="checkbox", name="Select all jobs on this page", roles=WRITERS),
    Control(
        within="/jobs/{job}", role="button", name="Delete", roles=WRITERS,
        calls=("DELETE /jobs/{job}", "POST /jobs/{job}/cancel", "POST /jobs/{job}/retry"),
    ),
    Control(
        within="/jobs/{job}", role="link", name="Run again with changes", roles=WRITERS,
        calls=("POST /jobs",), body={"kind": "render", "template": "swatch", "inputs": {}},
    ),
    Control(within="/jobs/{job}", role="link", name="Download", roles=READERS, calls=("GET {file}",)),
    Control(
        within="/gallery", role="button", name="as a favourite", roles=WRITERS,
        calls=("PUT {file}/favourite", "DELETE {file}/favourite"),
    ),
    Control(
        within="/render", role="button", name="Render 1 picture", roles=WRITERS,
        calls=("POST /jobs", "POST /artifacts"), body={"kind": "render", "template": "swatch"},
    ),
    Control(within="/render", role="combobox", name="Template", roles=WRITERS),
    Control(
        within="/chat", role="button", name="Send", roles=WRITERS,
        calls=("POST /v1/chat/completions", "POST /v1/feedback"),
        body={"model": "auto", "messages": [{"role": "user", "content": "x"}]},
    ),
    Control(within="/gallery", role="checkbox", name="Select", roles=READERS),
    Control(within="open picture", role="link", name="Download", roles=READERS),
    Control(
        within="open picture", role="button", name="Share", roles=WRITERS,
        calls=("POST {file}/link",), body={"expires_in": 3600},
    ),
    Control(
        within="open picture", role="button", name="Delete", roles=WRITERS, calls=("DELETE {file}",)
    ),
    Control(within="open picture", role="link", name="Render again", roles=WRITERS),
    Control(
        within="/models", role="tab", name="Text models", roles=WRITERS, calls=("GET /v1/models",)
    ),
    Control(
        within="/models", role="tab", name="Back ends", roles=ADMINS, calls=("GET /v1/backends",)
    ),
    Control(
        within="/models", role="tab", name="Dry run", roles=WRITERS, calls=("POST /v1/route",),
        body={"model": "auto", "messages": [{"role": "user", "content": "x"}]},
    ),
    Control(
        within="/models", role="tab", name="ComfyUI", roles=READERS, calls=("GET /object_info",)
    ),
    Control(
        within="/people", role="tab", name="Members", roles=READERS,
        calls=("GET /accounts/organisations/{organisation}/members",),
    ),
    Control(
        within="/people", role="tab", name="Keys", roles=WRITERS,
        calls=("GET /accounts/keys", "POST /accounts/keys"), body={"scopes": ["jobs:read"]},
    ),
    Control(
        within="/people", role="tab", name="Limits and budgets", roles=ADMINS,
        calls=("GET /accounts/limits/owner:{organisation}",),
    ),
    Control(
        within="/people", role="tab", name="Audit log", roles=ADMINS, calls=("GET /accounts/audit",)
    ),
    Control(
        within="/people", role="button", name="Invite", roles=ADMINS,
        calls=("POST /accounts/organisations/{organisation}/members",),
        body={"email": "x@example.com", "role": "viewer"},
    ),
    Control(
        within="/people", role="button", name="New service account", roles=ADMINS,
        calls=("POST /accounts/organisations/{organisation}/service-accounts",),
        body={"name": "bot", "role": "viewer"},
    ),
    Control(
        within="/people", role="button", name="Actions for", roles=ADMINS,
        calls=(f"PATCH {MEMBER}", f"POST {MEMBER}/invitation", *LIMITS), body={},
    ),
    Control(
        within="menu of a member", role="menuitem", name="Change role", roles=ADMINS,
        calls=(f"PATCH {MEMBER}",), body={"role": "viewer"},
    ),
    Control(
        within="menu of a member", role="menuitem", name="Limits and budget", roles=ADMINS,
        calls=LIMITS, body={},
    ),
    Control(
        within="menu of a member", role="menuitem", name="Disable", roles=ADMINS,
        calls=(f"PATCH {MEMBER}",), body={"disabled": True},
    ),
    Control(
        within="menu of a service account", role="menuitem", name="New key", roles=ADMINS,
        calls=("POST /accounts/keys",), body={"user": "{robot}", "scopes": ["jobs:read"]},
    ),
    Control(
        within="menu of a key", role="menuitem", name="Limits and budget", roles=ADMINS,
        calls=("PUT /accounts/limits/key:{key}",), body={},
    ),
    Control(
        within="menu of a key", role="menuitem", name="Replace secret", roles=WRITERS,
        calls=("POST /accounts/keys/{key}/rotate",), body={},
    ),
    Control(
        within="menu of a key", role="menuitem", name="Revoke", roles=WRITERS,
        calls=("DELETE /accounts/keys/{key}",),
    ),
    Control(
        within="/operate", role="button", name="Show the configuration", roles=OPERATOR,
        calls=("GET /cluster/routes", "GET /cluster/config-changes", "GET /cluster/links"),
    ),
    Control(
        within="/people", role="button", name="New organisation", roles=OPERATOR,
        calls=("POST /accounts/organisations",), body={"name": "x"},
    ),
    Control(
        within="/people/keys", role="button", name="New key", roles=("member", "admin"),
        # Operators create keys of their own tenant, which is not shown here.
        others=True,
    ),
    Control(
        within="/people/keys", role="button", name="Actions for everybody", roles=ADMINS,
        calls=(
            "POST /accounts/keys/{key}/rotate", "DELETE /accounts/keys/{key}",
            "PUT /accounts/limits/key:{key}",
        ), body={},
    ),
    Control(
        within="/people/limits", role="button", name="Save", roles=OPERATOR,
        calls=("PUT /accounts/limits/owner:{organisation}",), body={},
    ),
    Control(
        within="/usage", role="combobox", name="Tenant", roles=OPERATOR,
        calls=("GET /v1/usage?owner=*",),
    ),
    Control(
        within="/account", role="button", name="Change password", roles=PERSONS,
        calls=("POST /accounts/password",),
        body={"current_password": "x", "new_password": PASSWORD},
    ),
    Control(
        within="/account", role="button", name="Sign out everywhere", roles=PERSONS,
        calls=("GET /accounts/sessions",),
    ),
    Control(
        within="/account", role="button", name="New key", roles=("member", "admin"), others=True
    ),
    Control(
        within="/account", role="button", name="Close my account", roles=("player",),
        calls=("DELETE /accounts/me",),
    ),
)  # fmt: skip


class Studio:
    """An organisation with a person of each role, a job with a picture, and the operator's key.

    Attributes:
        values: the values of the variables in the paths of `CONTROLS`.
    """

    def __init__(self, stack: RunningStack) -> None:
        self.stack = stack
        self._accounts = AccountsApi(stack.url, stack.api_key)
        self.organisation, _ = self._accounts.create_organisation()
        boss_email = self._accounts.create_member(self.organisation, "admin", "Boss")
        login = {"email": boss_email, "password": PASSWORD}
        session = self._accounts.call("POST", "/login", login)
        token = session["access_token"]
        key_body = {"name": "everybody", "scopes": ["text", "jobs:read", "jobs:write"]}
        key = self._accounts.call("POST", "/keys", key_body, key=token)
        robots_path = f"/organisations/{self.organisation}/service-accounts"
        robot = self._accounts.call("POST", robots_path, {"name": "robot"})
        self.job = _OrganisationApi(stack, key["key"]).render(
            template="swatch", inputs={"prompt": "role", "seed": 7, "width": 64}
        )
        self.values = {
            "organisation": self.organisation,
            "user": session["user"]["id"],
            "robot": robot["id"],
            "job": self.job["id"],
            "file": self.job["artifacts"][0]["url"],
            "key": self._accounts.call("GET", "/whoami", key=key["key"])["key_id"],
        }

    def sign_in(self, console: ConsoleBrowser, role: Role) -> None:
        """Sign in to the console as a user with this role."""
        if role == "operator":
            console.sign_in_with_key(self.stack.api_key)
        elif role == "player":
            console.sign_in(self._register_player(), PASSWORD)
        else:
            email = self._accounts.create_member(self.organisation, role, role.title())
            if role in WRITERS:
                login = {"email": email, "password": PASSWORD}
                token = self._accounts.call("POST", "/login", login)["access_token"]
                self._accounts.call("POST", "/keys", {"name": "own"}, key=token)
            console.sign_in(email, PASSWORD)

    def fill_in_values(self, body: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return a control's body with `values` in place of its variables, or None without a body."""
        if body is None:
            return None
        return {
            name: value.format(**self.values) if isinstance(value, str) else value
            for name, value in body.items()
        }

    def _register_player(self) -> str:
        email = f"{secrets.token_hex(6)}@example.com"
        self._accounts.call("POST", "/register", {"email": email, "password": PASSWORD})
        return email


class _OrganisationApi(Api):
    """Calls the API with a key of the organisation."""

    def __init__(self, stack: RunningStack, key: str) -> None:
        super().__init__(stack)
        self._headers = {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def studio(gateway: RunningStack) -> Studio:
    return Studio(gateway)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_sees_the_controls_that_it_may_use(
    console: ConsoleBrowser, gateway: RunningStack, studio: Studio, role: Role
) -> None:
    studio.sign_in(console, role)
    page = console.page
    menu = page.get_by_role("navigation", name="Pages")
    expected_links = [name for name, _, roles, _ in PAGES if role in roles]
    expected_links += ["ComfyUI"] if role in READERS else []
    assert menu.get_by_role("link").all_inner_texts() == expected_links
    views = dict.fromkeys(control.within for control in CONTROLS)
    for name, path, roles, call in PAGES:
        if role in roles and path in views:
            continue
        console.open(path)
        if role in roles:
            page.get_by_role("heading", name=name, exact=True, level=2).wait_for()
        else:
            page.get_by_text("There is no such page, or you may not see it.").wait_for()
            assert call_api(page, call if " " in call else f"GET {call}", {}) in (403, 404), call
    problems = []
    for view in views:
        if not open_view(console, studio, role, view):
            continue
        for control in CONTROLS:
            if control.within == view:
                elements = page.get_by_role(control.role, name=control.name)
                if role in control.roles:
                    expect(elements.first).to_be_visible()
                elif elements.count():
                    problems.append(f"{view} shows {control.name}, which the role must not see")
    assert problems == []
    for control in CONTROLS:
        if role not in control.roles and not control.others:
            for call in control.calls:
                status = call_api(
                    page, call.format(**studio.values), studio.fill_in_values(control.body)
                )
                if status not in (403, 404):
                    problems.append(
                        f"{control.name}: {call} is answered with {status}, not with 403 or 404"
                    )
    assert problems == []
    console.check_clean("403", "404")


def open_view(console: ConsoleBrowser, studio: Studio, role: Role, view: str) -> bool:
    """Open a page, or one of `VIEWS` on its page; return False if the role has no such page or view."""
    path, opener_role, name, allowed_roles = VIEWS.get(view, (view, "", "", READERS))
    path = path.format(**studio.values)
    parent = f"/{path.split('/')[1]}"
    if role not in next(roles for _, page, roles, _ in PAGES if page == parent):
        return False
    if name and role not in allowed_roles:
        return False
    if role == "operator" and parent in ("/jobs", "/gallery"):
        # The operator's own tenant has other jobs.
        inputs = {"prompt": "role", "seed": 7, "width": 64}
        job = Api(studio.stack).render(template="swatch", inputs=inputs)
        path = path if path == parent else f"/jobs/{job['id']}"
    if role == "operator" and parent == "/people":
        path += f"?organisation={studio.organisation}"
    page = console.open(path).page
    page.locator("main h2").first.wait_for()
    expect(page.locator("main .mantine-Skeleton-root[data-visible]")).to_have_count(0)
    if parent == "/gallery":
        page.get_by_role("list", name="Pictures").get_by_role(
            "button", name="Open"
        ).first.wait_for()
    if path.startswith("/people?") or path == "/people":
        page.get_by_role("cell", name="Boss").first.wait_for()
    if name:
        page.locator("main").get_by_role(opener_role, name=name).first.click()
        page.locator("[role=dialog], [role=menu]").first.wait_for()
        console.check_accessibility()
    return True


def call_api(page: Page, call: str, body: Mapping[str, Any] | None) -> int:
    """Return the status of a call with the session of the page."""
    method, path = call.split(" ", 1)
    status: int = page.evaluate(
        """async ([method, path, body]) => (await fetch(path, {
          method,
          ...(method === "GET" || body === null ? {} : {
            headers: {"content-type": "application/json"}, body: JSON.stringify(body),
          }),
        })).status""",
        [method, path, None if body is None else dict(body)],
    )
    return status
