"""Captures the screens of commands in a pseudo-terminal of a hundred columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.command_screens import capture, find_flaws, run_in_pipe
from tests.unit.cli.scripted_gateway import ScriptedGateway
from tests.unit.cli.test_management import (
    ANN,
    FILE,
    MEMBERS,
    MODEL,
    ORGANISATION,
    TEMPLATE,
    make_audit_entry,
)


def test_screens_of_management_commands_are_complete(gateway: ScriptedGateway) -> None:
    user_with_markup = {**ANN, "name": "[bold]Ann[/] \x1b]0;title\x07"}
    gateway.routes = {
        "GET /v1/models": {"data": [MODEL]},
        "GET /v1/models/fast": MODEL,
        "GET /templates/poster": TEMPLATE,
        "GET /artifacts": {"artifacts": [FILE], "next_cursor": None},
        "GET /accounts/organisations": {"organisations": [ORGANISATION]},
        f"GET {MEMBERS}": {"members": [user_with_markup]},
        "GET /accounts/limits": {"limits": [{"subject": "key:k", "usd_per_day": "5"}]},
        "GET /accounts/audit": {"entries": [make_audit_entry(1)]},
    }
    commands = (
        "models list", "models show fast", "templates show poster", "artifacts list",
        "organisations list", "members list", "limits list", "audit list", "models show none",
    )  # fmt: skip
    captured_screens = capture([command.split() for command in commands], columns=100)
    lines_by_command = {
        command: [line for line in screen.lines if line]
        for command, screen in zip(commands, captured_screens, strict=True)
    }
    assert lines_by_command["models list"][0].split() == [
        "name",
        "status",
        "context",
        "abilities",
        "back",
        "ends",
    ]
    assert "$1 in, $5 out per M tokens" in " ".join(lines_by_command["models show fast"])
    assert lines_by_command["templates show poster"][1].split(maxsplit=1) == ["title", "A poster"]
    assert "[bold]Ann[/] \ufffd]0;title\ufffd" in lines_by_command["members list"][1]
    assert lines_by_command["limits list"][1].split() == ["key:k", "usd_per_day", "5"]
    assert lines_by_command["audit list"][0].split() == [
        "at",
        "actor",
        "action",
        "target",
        "details",
    ]
    for command, screen in zip(commands, captured_screens, strict=True):
        assert screen.status == (1 if command == "models show none" else 0), screen.text
        assert find_flaws(screen) == [], command
    assert lines_by_command["models show none"][0].startswith("error: not_found: ")


def test_quality_of_many_kinds_fits_a_narrow_terminal(gateway: ScriptedGateway) -> None:
    kinds = ("code", "extraction", "mathematics", "reasoning", "summary", "translation")
    names = [f"claude-model-{number}" for number in range(4)]
    models = [
        {
            "model": name, "ability": 4.6, "spread": 0.7,
            "kinds": {kind: {"ability": 5.1} for kind in kinds},
            "source": f"{name}, the vendor's line-up on 2026-11-27",
            "signals": dict.fromkeys(kinds, 2.0), "shared": {"code": 0.4},
        }
        for name in names
    ]  # fmt: skip
    gateway.routes["GET /v1/quality"] = {
        "owner": "studio", "frozen": False, "table_date": "2026-11-27", "models": models,
        "calibration": [], "prices": [],
    }  # fmt: skip
    [screen] = capture([["quality", "show"]], columns=80)
    assert find_flaws(screen) == []
    rows = [line for line in screen.lines if line.startswith(names[0])]
    assert rows[0].split(maxsplit=5) == [
        names[0], "+4.6", "±", "0.7", "12", "the vendor's line-up on 2026-11-27",
    ]  # fmt: skip
    assert len(rows) == 4, "by kind of request each model has one entry per list"
    # Two lines of heading, a table, and three lists with at most two lines per entry.
    assert len(screen.lines) <= 33
    [piped_screen] = run_in_pipe([["quality", "show"]])
    ability_column = "+4.6 ± 0.7, " + ", ".join(f"{kind} +5.1" for kind in kinds)
    assert piped_screen.lines[0].split("\t") == [
        names[0], ability_column, "the vendor's line-up on 2026-11-27",
        ", ".join(f"{kind} 2" for kind in kinds), "code +0.4",
    ]  # fmt: skip


def test_json_of_a_render_has_no_progress_bar_on_a_terminal(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    job: dict[str, Any] = {"id": "j1", "status": "succeeded", "artifacts": [], "error": None}
    events = f"event: queued\ndata: {{}}\n\nevent: succeeded\ndata: {json.dumps(job)}\n\n"
    gateway.routes = {"POST /jobs": {"id": "j1"}, "GET /jobs/j1/events": events.encode()}
    command = ["render", "-t", "swatch", "-o", str(tmp_path)]
    bar_screen, json_screen = capture([command, [*command, "--json"]])
    assert "queued" in bar_screen.output.decode()
    assert json.loads(json_screen.text) == {**job, "paths": []}
