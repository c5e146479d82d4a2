"""Runs the shell examples of docs/accounts.md against the real accounts app."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.examples import run_shell_example
from tests.integration.access.fixtures import AccountsApp

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def run_example(accounts: AccountsApp, name: str, **variables: Any) -> list[Any]:
    """Run the example ``name`` of docs/accounts.md, and return the JSON bodies that it prints.

    Args:
        variables: the shell variables that the page presumes.
    """
    output = await asyncio.to_thread(
        run_shell_example, "docs/accounts.md", name, url=accounts.url, **variables
    )
    decoder, bodies, position = json.JSONDecoder(), [], 0
    while position < len(output.rstrip()):
        body, position = decoder.raw_decode(output, position)
        bodies.append(body)
    return bodies


async def test_player_example_registers_and_shows_the_user(accounts: AccountsApp) -> None:
    token = (await accounts.register_player())["access_token"]
    session, own_user = await run_example(accounts, "player", ACCESS_TOKEN=token)
    assert session["access_token"]
    assert own_user == await accounts.expect_ok("GET", "/me", token)


async def test_a_member_makes_a_key_and_rotates_another(accounts: AccountsApp) -> None:
    token = (await accounts.add_member(await accounts.create_organisation()))["access_token"]
    old_key = await accounts.expect_ok("POST", "/keys", token, {"name": "old", "scopes": ["text"]})
    key, rotated_key = await run_example(accounts, "keys", ACCESS_TOKEN=token, ID=old_key["id"])
    assert (key["name"], key["scopes"]) == ("ci", ["text"])
    assert rotated_key["key"] != old_key["key"]


async def test_an_operator_sets_limits(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    [limits] = await run_example(
        accounts, "limits", OPERATOR_KEY=accounts.operator, ORG=organisation_id
    )
    shown_limits = await accounts.expect_ok(
        "GET", f"/limits/owner:{organisation_id}", accounts.operator
    )
    assert shown_limits == limits
    assert shown_limits["requests_per_minute"] == 600
