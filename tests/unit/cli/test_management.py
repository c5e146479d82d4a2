"""Tests the commands that manage users, limits, files, models and templates of a gateway."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from moyin.cli.main import run
from tests.unit.cli.scripted_gateway import ScriptedGateway

ORGANISATION = {"id": "org1", "name": "Studio", "created_at": "2026-11-01T00:00:00Z"}
ANN = {
    "id": "u1", "email": "ann@example.com", "name": "Ann", "kind": "member", "role": "admin",
    "organisation": "org1", "profile": {}, "disabled": False,
}  # fmt: skip
MODEL = {
    "id": "fast", "status": "up", "max_input_tokens": 4096, "abilities": ["chat"], "tools": True,
    "vision": False, "schema": True, "thinking": False,
    "backends": [
        {
            "name": "claude", "model": "haiku", "status": "up", "context": 200_000, "quality": 2,
            "abilities": ["chat"], "tools": True, "vision": True, "schema": True,
            "thinking": False, "usd_per_million_tokens": {"input": "1", "output": "5"},
            "usd_per_image": "0.04",
        }
    ],
}  # fmt: skip
TEMPLATE = {
    "name": "poster", "title": "A poster", "description": "", "aliases": ["p"], "pool": None,
    "outputs": [],
    "inputs": {
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string", "maxLength": 500},
            "width": {"type": "integer", "default": 512, "minimum": 64, "maximum": 1024},
            "style": {"type": "string", "enum": ["ink", "oil"], "default": "ink"},
            "photo": {"type": "string", "format": "image", "description": "To start from"},
        },
    },
}  # fmt: skip
FILE = {
    "id": "art_1", "name": "d\x1b[31mawn\t.png", "media_type": "image/png", "size": 10,
    "job": None, "created_at": "2026-11-28T00:00:00Z", "url": "/artifacts/art_1",
}  # fmt: skip
MEMBERS = "/accounts/organisations/org1/members"


def make_audit_entry(number: int, **members: Any) -> dict[str, Any]:
    return {
        "id": f"e{number}", "at": f"2026-11-{number % 28 + 1:02}T00:00:00Z", "owner": "org1",
        "actor": "ann", "action": "key.create", "target": "k", "details": {}, "request_id": "r",
        "address": "127.0.0.1", **members,
    }  # fmt: skip


def read_rows(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_models_have_back_ends_and_prices(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.routes = {"GET /v1/models": {"data": [MODEL]}, "GET /v1/models/fast": MODEL}
    assert run(["models", "list"]) == 0
    assert read_rows(capsys) == [["fast", "up", "4096", "chat, tools, schema", "claude"]]
    assert run(["models", "show", "fast"]) == 0
    [row] = read_rows(capsys)
    assert row[-1] == "$1 in, $5 out per M tokens; $0.04 per image"
    assert run(["models", "show", "fast", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == MODEL


def test_template_shows_typed_inputs(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.routes = {
        "GET /templates": {"templates": [TEMPLATE]},
        "GET /templates/poster": TEMPLATE,
    }
    assert run(["templates", "list"]) == 0
    assert read_rows(capsys) == [["poster", "p", "", "prompt, width, style, photo", "A poster"]]
    assert run(["templates", "show", "poster"]) == 0
    assert read_rows(capsys) == [
        ["prompt", "string", "required", "max. length 500", ""],
        ["width", "integer", "512", "from 64, to 1024", ""],
        ["style", "string", "ink", "ink, oil", ""],
        ["photo", "file (artifact id)", "", "", "To start from"],
    ]


def test_files_are_listed_without_their_control_characters(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.routes["GET /artifacts"] = {"artifacts": [FILE], "next_cursor": None}
    assert run(["artifacts", "list", "--type", "image/*", "--limit", "5"]) == 0
    [row] = read_rows(capsys)
    assert row[:4] == ["art_1", "d\ufffd[31mawn\ufffd.png", "image/png", "10"]
    assert gateway.requests[0][1] == "/artifacts?media_type=image/*&limit=5"


def test_file_is_stored_linked_and_deleted(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a b.png"
    file.write_bytes(b"\x89PNG")
    gateway.routes = {
        "POST /artifacts": FILE,
        "POST /artifacts/art_1/link": {"url": "/artifacts/signed/x/a.png", "expires_at": "…"},
        "DELETE /artifacts/art_1": None,
    }
    assert run(["artifacts", "put", str(file)]) == 0
    assert run(["artifacts", "link", "art_1", "--seconds", "60"]) == 0
    assert run(["artifacts", "delete", "art_1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "art_1", f"{gateway.url}/artifacts/signed/x/a.png", "art_1 deleted",
    ]  # fmt: skip
    assert [request[:3] for request in gateway.requests] == [
        ("POST", "/artifacts?name=a+b.png", b"\x89PNG"),
        ("POST", "/artifacts/art_1/link", {"expires_in": 60}),
        ("DELETE", "/artifacts/art_1", None),
    ]


def test_downloaded_file_stays_in_the_folder_and_replaces_none(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.routes["GET /artifacts/art_1"] = b"picture"
    (tmp_path / "d_awn.png").write_text("mine")
    assert run(["artifacts", "get", "art_1", "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "d_awn-1.png")
    assert (tmp_path / "d_awn-1.png").read_bytes() == b"picture"
    assert (tmp_path / "d_awn.png").read_text() == "mine"


def test_several_files_are_downloaded_as_one_archive(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = "/artifacts/signed/archive/token/my%20shots.zip"
    gateway.routes = {"POST /artifacts/archive": {"url": link}, f"GET {link}": b"PK"}
    assert run(["artifacts", "archive", "art_1", "art_2", "-o", str(tmp_path)]) == 0
    assert run(["artifacts", "archive", "--job", "j", "-o", str(tmp_path / "j.zip")]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == [
        str(tmp_path / "my shots.zip"),
        str(tmp_path / "j.zip"),
    ]
    assert (tmp_path / "my shots.zip").read_bytes() == b"PK"
    bodies = [request[2] for request in gateway.requests if request[0] == "POST"]
    assert bodies == [{"artifacts": ["art_1", "art_2"]}, {"artifacts": [], "job": "j"}]


def test_member_is_invited_found_by_email_and_disabled(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.routes = {
        "GET /accounts/organisations": {"organisations": [ORGANISATION]},
        f"GET {MEMBERS}": {"members": [ANN]},
        f"POST {MEMBERS}": {**ANN, "invitation": "secret"},
        f"PATCH {MEMBERS}/u1": {**ANN, "disabled": True},
    }
    assert run(["members", "list"]) == 0
    assert run(["members", "invite", "ann@example.com", "--role", "admin"]) == 0
    assert run(["members", "disable", "Ann@example.com"]) == 0
    row = ["u1", "ann@example.com", "Ann", "member", "admin"]
    assert read_rows(capsys) == [[*row, "active"], [*row, "active"], ["secret"], [*row, "disabled"]]
    bodies = [body for method, _, body, _ in gateway.requests if method != "GET"]
    assert bodies == [
        {"email": "ann@example.com", "name": "", "role": "admin"},
        {"disabled": True},
    ]
    assert run(["members", "role", "bob@example.com", "viewer"]) == 2
    assert run(["members", "role", "u1", "king"]) == 2


def test_one_of_several_organisations_must_be_named(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    organisations = [ORGANISATION, {**ORGANISATION, "id": "org2"}]
    gateway.routes = {
        "GET /accounts/organisations": {"organisations": organisations},
        f"GET {MEMBERS}": {"members": [ANN]},
    }
    assert run(["members", "list"]) == 1
    assert "name one with --organisation" in capsys.readouterr().err
    assert run(["members", "list", "--organisation", "org1"]) == 0


def test_limits_that_are_not_named_keep_their_values(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    stored_limit = {"subject": "key:k", "usd_per_day": "5", "open_jobs": 3, "pools": None}
    gateway.routes = {
        "GET /accounts/limits/key:k": stored_limit,
        "PUT /accounts/limits/key:k": {**stored_limit, "usd_per_day": None, "pools": ["a", "b"]},
        "DELETE /accounts/limits/key:k": None,
    }
    assert run(["limits", "set", "key:k", "usd_per_day=none", "pools=a,b"]) == 0
    assert read_rows(capsys) == [["key:k", "open_jobs", "3"], ["key:k", "pools", "a, b"]]
    assert gateway.requests[-1][2] == {"open_jobs": 3, "pools": ["a", "b"]}
    assert run(["limits", "clear", "key:k"]) == 0
    assert run(["limits", "set", "key:k", "usd_per_day"]) == 2


def test_audit_log_is_searched_over_all_pages(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.routes["GET /accounts/audit"] = {
        "entries": [make_audit_entry(3), make_audit_entry(2, target="=cmd()"), make_audit_entry(1)]
    }
    assert run(["audit", "list", "--search", "CMD", "--json"]) == 0
    [audit_entry] = json.loads(capsys.readouterr().out)["entries"]
    assert audit_entry["id"] == "e2"
    assert run(["audit", "list", "--from", "2026-11-03", "--to", "2026-11-04"]) == 0
    assert [row[0] for row in read_rows(capsys)] == ["2026-11-03T00:00:00Z"]
    assert run(["audit", "export"]) == 0
    heading, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert [row[heading.index("target")] for row in rows] == ["k", "'=cmd()", "k"]
    assert run(["audit", "export", "--format", "jsonl", "--search", "=cmd"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "=cmd()"


def test_usage_is_exported_as_csv(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    total = {"calls": 2, "cost_usd": "0.0000001", "dearest_cost_usd": None}
    gateway.routes["GET /v1/usage"] = {
        "group_by": ["model"],
        "total": total,
        "groups": [{"model": "+1", **total}],
    }
    assert run(["usage", "--by", "model", "--csv"]) == 0
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [
        ["model", "calls", "cost_usd", "dearest_cost_usd"],
        ["'+1", "2", "0.0000001", ""],
    ]


@pytest.mark.parametrize(
    ("arguments", "exit_status"),
    [
        (["models", "show", "none"], 1),
        (["artifacts", "put", "/missing"], 2),
        (["audit", "export", "--format", "xml"], 2),
    ],
)
def test_errors_exit_with_their_status(
    gateway: ScriptedGateway, arguments: list[str], exit_status: int
) -> None:
    assert run(arguments) == exit_status
