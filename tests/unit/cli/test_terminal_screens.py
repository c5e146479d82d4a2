"""Captures the screens of commands in a pseudo-terminal of a hundred columns."""

from __future__ import annotations

from tests.command_screens import capture, find_flaws
from tests.unit.cli.scripted_gateway import ScriptedGateway
from tests.unit.cli.test_management import (
    ANN,
    FILE,
    MEMBERS,
    MODEL,
    ORGANISATION,
    TEMPLATE,
    audit_entry,
)


def test_screens_of_management(gateway: ScriptedGateway) -> None:
    user_with_markup = {**ANN, "name": "[bold]Ann[/] \x1b]0;title\x07"}
    gateway.routes = {
        "GET /v1/models": {"data": [MODEL]},
        "GET /v1/models/fast": MODEL,
        "GET /templates/poster": TEMPLATE,
        "GET /artifacts": {"artifacts": [FILE], "next_cursor": None},
        "GET /accounts/organisations": {"organisations": [ORGANISATION]},
        f"GET {MEMBERS}": {"members": [user_with_markup]},
        "GET /accounts/limits": {"limits": [{"subject": "key:k", "usd_per_day": "5"}]},
        "GET /accounts/audit": {"entries": [audit_entry(1)]},
    }
    commands = (
        "models list", "models show fast", "templates show poster", "artifacts list",
        "organisations list", "members list", "limits list", "audit list", "models show none",
    )  # fmt: skip
    captured = capture([command.split() for command in commands], columns=100)
    screens = {
        command: [line for line in screen.lines if line]
        for command, screen in zip(commands, captured, strict=True)
    }
    assert screens["models list"][0].split() == [
        "name",
        "status",
        "context",
        "abilities",
        "back",
        "ends",
    ]
    assert "$1 in, $5 out per M tokens" in " ".join(screens["models show fast"])
    assert screens["templates show poster"][1].split(maxsplit=1) == ["title", "A poster"]
    assert "[bold]Ann[/] \ufffd]0;title\ufffd" in screens["members list"][1]
    assert screens["limits list"][1].split() == ["key:k", "usd_per_day", "5"]
    assert screens["audit list"][0].split() == ["at", "actor", "action", "target", "details"]
    for command, screen in zip(commands, captured, strict=True):
        assert screen.status == (1 if command == "models show none" else 0), screen.text
        assert find_flaws(screen) == [], command
    assert screens["models show none"][0].startswith("error: not_found: ")
