"""Finds the names of the users and keys in a usage report, for people who read it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from moyin.cli.session import build_path
from moyin.client.errors import RequestRefused
from moyin.client.gateway import GatewayClient

_PAGE = 200
# Names beyond these pages are shown as ids, as in the console.
_MAX_PAGES = 5
_ALL_OWNERS = "*"


async def read_names(
    gateway: GatewayClient, group_by: list[str], owner: str | None
) -> dict[str, str]:
    """Return the names of users and keys by id, if ``group_by`` has ``user`` or ``key``.

    Users and keys that the caller may not list are left out.

    Args:
        owner: the tenant of the report; None is the caller's own. For ``*``, which means all
            tenants, no names are returned.
    """
    names: dict[str, str] = {}
    if owner == _ALL_OWNERS or not {"user", "key"} & set(group_by):
        return names
    if owner is None:
        owner = str((await gateway.call("GET", "/accounts/whoami"))["owner"])
    if "user" in group_by:
        path = f"/accounts/organisations/{quote(owner, safe='')}/members"
        for user in await _read_all_pages(gateway, path, "members", {}):
            names[user["id"]] = user["name"] or user["email"] or user["id"]
    if "key" in group_by:
        for key in await _read_all_pages(gateway, "/accounts/keys", "keys", {"owner": owner}):
            names[key["id"]] = key["name"] or key["id"]
    return names


async def _read_all_pages(
    gateway: GatewayClient, path: str, member: str, query: dict[str, Any]
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    cursor = None
    for _ in range(_MAX_PAGES):
        try:
            page = await gateway.call(
                "GET", build_path(path, {**query, "limit": _PAGE, "cursor": cursor})
            )
        except RequestRefused as error:
            # 404: a tenant that is no organisation has no members.
            if error.status in (403, 404):
                break
            raise
        records += page[member]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    return records
