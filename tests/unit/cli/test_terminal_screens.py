"""Captures the screens of commands in a pseudo-terminal of a hundred columns."""

from __future__ import annotations

import json
import re

from tests.unit.cli.scripted_gateway import ScriptedGateway
from tests.unit.cli.terminal import run_in_terminal
from tests.unit.cli.test_management import (
    ANN,
    FILE,
    MEMBERS,
    MODEL,
    ORGANISATION,
    TEMPLATE,
    audit_entry,
)

# All commands in one process, because imports take longer than they do.
_PROGRAM = """
import json, sys
from moyin.cli.main import run
for arguments in json.loads(sys.argv[1]):
    print("screen", *arguments, flush=True)
    print("status", run(arguments), flush=True)
"""
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def test_screens_of_management(gateway: ScriptedGateway) -> None:
    bracketed = {**ANN, "name": "[bold]Ann[/] \x1b]0;title\x07"}
    gateway.routes = {
        "GET /v1/models": {"data": [MODEL]},
        "GET /v1/models/fast": MODEL,
        "GET /templates/poster": TEMPLATE,
        "GET /artifacts": {"artifacts": [FILE], "next_cursor": None},
        "GET /accounts/organisations": {"organisations": [ORGANISATION]},
        f"GET {MEMBERS}": {"members": [bracketed]},
        "GET /accounts/limits": {"limits": [{"subject": "key:k", "usd_per_day": "5"}]},
        "GET /accounts/audit": {"entries": [audit_entry(1)]},
    }
    screens = capture(
        "models list", "models show fast", "templates show poster", "artifacts list",
        "organisations list", "members list", "limits list", "audit list", "models show none",
    )  # fmt: skip
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
    for name, lines in screens.items():
        assert lines[-1] == ("status 1" if name == "models show none" else "status 0"), lines
        assert max(map(len, lines)) <= 100, lines
    assert screens["models show none"][0].startswith("error: not_found: ")


def capture(*commands: str) -> dict[str, list[str]]:
    """Return the lines of each command's screen, without styles."""
    output = run_in_terminal(_PROGRAM, json.dumps([command.split() for command in commands]))
    text = _STYLE.sub("", output.decode()).replace("\r\n", "\n")
    assert "\x1b" not in text
    parts = re.split(r"^screen (.*)\n", text, flags=re.MULTILINE)[1:]
    return {
        name: [line.rstrip() for line in body.splitlines() if line.strip()]
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }
