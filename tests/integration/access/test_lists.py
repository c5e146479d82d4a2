"""Tests pages and filters of the lists in the accounts app, and who may see budgets."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from tests.integration.access.fixtures import AccountsApp

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def read_pages(accounts: AccountsApp, path: str, list_name: str, bearer: str) -> list[Any]:
    """Read a list in pages of two, and return all its entries.

    Args:
        path: the path of the list, up to the ``?`` or ``&`` after which parameters are added.
        list_name: the member of a page that holds the entries.
    """
    entries: list[Any] = []
    cursor = ""
    while True:
        page = await accounts.expect_ok("GET", f"{path}limit=2{cursor}", bearer)
        assert len(page[list_name]) <= 2
        entries += page[list_name]
        if page["next_cursor"] is None:
            return entries
        cursor = f"&cursor={page['next_cursor']}"


async def test_members_are_listed_by_pages_and_searched(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    path = f"/organisations/{organisation_id}"
    for name in ("Aki", "Mika", "100%", "Mikado", "Ren"):
        body = {"name": name}
        await accounts.expect_ok("POST", f"{path}/service-accounts", accounts.operator, body)
    members = await read_pages(accounts, f"{path}/members?", "members", accounts.operator)
    assert [m["name"] for m in members] == ["Ren", "Mikado", "100%", "Mika", "Aki"]
    full_list = await accounts.expect_ok("GET", f"{path}/members", accounts.operator)
    assert (full_list["members"], full_list["next_cursor"]) == (members, None)
    matching_members = await read_pages(
        accounts, f"{path}/members?search=mika&", "members", accounts.operator
    )
    assert [m["name"] for m in matching_members] == ["Mikado", "Mika"]
    # `%` and `_` stand for themselves.
    matching_members = await read_pages(
        accounts, f"{path}/members?search=%25&", "members", accounts.operator
    )
    assert [m["name"] for m in matching_members] == ["100%"]
    refused_response = await accounts.call("GET", f"{path}/members?cursor=x", accounts.operator)
    assert (refused_response.status, refused_response.body["field"]) == (400, "cursor")


async def test_operators_find_organisations_and_keys_of_others(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    admin_token = (await accounts.add_member(organisation_id, "admin"))["access_token"]
    member_token = (await accounts.add_member(organisation_id))["access_token"]
    name = (await accounts.expect_ok("GET", f"/organisations/{organisation_id}", admin_token))[
        "name"
    ]
    [listed_organisation] = (
        await accounts.expect_ok(
            "GET", f"/organisations?search={name[-8:].upper()}", accounts.operator
        )
    )["organisations"]
    assert listed_organisation["id"] == organisation_id
    created_ids = [
        (await accounts.expect_ok("POST", "/keys", bearer, {"name": f"key {number}"}))["id"]
        for number, bearer in enumerate((admin_token, admin_token, member_token))
    ]
    await accounts.expect_ok("DELETE", f"/keys/{created_ids[0]}", admin_token)
    for bearer, expected_ids in ((admin_token, created_ids), (member_token, created_ids[2:])):
        keys = await read_pages(accounts, "/keys?", "keys", bearer)
        assert [key["id"] for key in keys] == expected_ids[::-1]
    path = f"/keys?owner={organisation_id}&valid=true&"
    keys = await read_pages(accounts, path, "keys", accounts.operator)
    assert [key["id"] for key in keys] == created_ids[:0:-1]
    user = keys[0]["user"]
    assert await read_pages(accounts, f"/keys?user={user}&", "keys", admin_token) == keys[:1]
    own_id = (await accounts.expect_ok("GET", "/me", admin_token))["id"]
    assert await read_pages(accounts, f"/keys?user={own_id}&", "keys", member_token) == []
    assert (await accounts.call("GET", path, admin_token)).status == 200
    foreign_keys_path = f"/keys?owner={await accounts.create_organisation()}"
    assert (await accounts.call("GET", foreign_keys_path, admin_token)).code == "insufficient_scope"


async def test_the_audit_log_is_filtered(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    session = await accounts.add_member(organisation_id, "admin")
    admin_token, user_id = session["access_token"], session["user"]["id"]
    key_id = (await accounts.expect_ok("POST", "/keys", admin_token, {"name": "ci"}))["id"]
    await accounts.expect_ok("DELETE", f"/keys/{key_id}", admin_token)

    async def list_actions(query: str, bearer: str = admin_token) -> list[str]:
        page = await accounts.expect_ok("GET", f"/audit?{query}", bearer)
        assert {entry["owner"] for entry in page["entries"]} <= {organisation_id}
        return [entry["action"] for entry in page["entries"]]

    assert await list_actions("action=key") == ["key.revoke", "key.create"]
    assert await list_actions("action=key.create") == ["key.create"]
    assert await list_actions("action=ke") == []
    assert await list_actions(f"target={user_id}") == ["member.create"]
    assert await list_actions(f"target={key_id}&actor={user_id}") == ["key.revoke", "key.create"]
    assert await list_actions("to=2020-01-01T00:00:00Z") == []
    assert len(await list_actions("from=2020-01-01T00:00:00Z")) == 4
    all_actions = await list_actions(f"owner={organisation_id}", accounts.operator)
    assert all_actions[-1] == "organisation.create"
    refused_response = await accounts.call(
        "GET", f"/audit?owner={secrets.token_hex(4)}", admin_token
    )
    assert refused_response.code == "insufficient_scope"


async def test_an_admin_sees_budgets_of_the_tenant_and_its_members(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    session = await accounts.add_member(organisation_id, "admin")
    admin_token, user_id = session["access_token"], session["user"]["id"]
    tenant_path = f"/limits/owner:{organisation_id}"
    await accounts.expect_ok("PUT", tenant_path, accounts.operator, {"usd_per_month": "300"})
    await accounts.expect_ok("PUT", f"/limits/user:{user_id}", admin_token, {"usd_per_day": "2.5"})
    assert (await accounts.expect_ok("GET", tenant_path, admin_token))["usd_per_month"] == "300"
    [budget] = (await accounts.expect_ok("GET", f"{tenant_path}/budgets", admin_token))["budgets"]
    assert (budget["limit"], budget["limit_usd"], budget["left_usd"]) == (
        "usd_per_month", "300", "300",
    )  # fmt: skip
    [budget] = (await accounts.expect_ok("GET", f"/limits/user:{user_id}/budgets", admin_token))[
        "budgets"
    ]
    assert (budget["limit"], budget["spent_usd"]) == ("usd_per_day", "0")
    # Only operators change those of the tenant, and nobody sees those of another.
    assert (await accounts.call("PUT", tenant_path, admin_token, {})).status == 404
    assert (await accounts.call("DELETE", tenant_path, admin_token)).status == 404
    foreign_budgets_path = f"/limits/owner:{await accounts.create_organisation()}/budgets"
    assert (await accounts.call("GET", foreign_budgets_path, admin_token)).status == 404


async def test_sign_in_methods_are_listed(accounts: AccountsApp) -> None:
    sign_in_methods = await accounts.expect_ok("GET", "/sign-in")
    assert sign_in_methods == {"providers": [], "registration": True, "password_reset": True}
