"""Tests that ``--json`` makes commands print only JSON to standard output, but exit as without it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from moyin.cli import comfyui, stack
from moyin.cli.main import app, run
from moyin.proxy.identity import derive_route_secret
from moyin.render.comfyui.install import ComfyUI
from moyin.stack import apps
from moyin.stack.layout import Layout
from moyin.stack.state import StackState
from moyin.store.sql import get_newest_revision
from scripts.reference import WITHOUT_JSON
from tests.unit.cli.scripted_gateway import ScriptedGateway
from tests.unit.cli.test_batches import make_batch
from tests.unit.cli.test_management import FILE, make_audit_entry

_CHUNKS = [{"choices": [{"delta": {"content": text}}]} for text in ("Bl", "ue")]
_JOB: dict[str, Any] = {"id": "j1", "status": "succeeded", "artifacts": [], "error": None}
_PROBLEM = {"code": "step_failed", "message": "no"}


def build_frame(data: Any, event_type: str = "message") -> bytes:
    return f"id: 1-0\nevent: {event_type}\ndata: {json.dumps(data)}\n\n".encode()


def test_commands_without_json_are_those_of_the_reference() -> None:
    assert set(list_commands_without_json("", typer.main.get_command(app))) == set(WITHOUT_JSON)


def list_commands_without_json(name: str, command: Any) -> Iterator[str]:
    children = getattr(command, "commands", {})
    if not children and not any("--json" in parameter.opts for parameter in command.params):
        yield name
    for child_name, child in children.items():
        yield from list_commands_without_json(f"{name} {child_name}".strip(), child)


@pytest.mark.parametrize(
    ("command_line", "routes", "document"),
    [
        ("artifacts delete art_1", {"DELETE /artifacts/art_1": None},
         {"id": "art_1", "deleted": True}),
        ("limits clear key:k", {"DELETE /accounts/limits/key:k": None},
         {"subject": "key:k", "cleared": True}),
        ("quality reset", {"POST /v1/quality/reset": None}, {"deleted": True}),
        ("quality freeze", {"POST /v1/quality/freeze": None}, {"frozen": True}),
        ("quality thaw", {"POST /v1/quality/freeze": None}, {"frozen": False}),
    ],
)  # fmt: skip
def test_a_command_that_changes_something_prints_one_document(
    command_line: str,
    routes: dict[str, Any],
    document: Any,
    gateway: ScriptedGateway,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gateway.routes = routes
    assert read_document(command_line, capsys) == document
    gateway.routes = {}
    assert run([*command_line.split(), "--json"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: not_found: ")


def test_documents_of_downloads_contain_the_paths(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {**_JOB, "artifacts": [FILE]}
    gateway.routes = {
        "GET /artifacts/art_1": b"png",
        "POST /artifacts/archive": {"url": "/artifacts/signed/files.zip"},
        "GET /artifacts/signed/files.zip": b"zip",
        "POST /jobs": {"id": "j1"},
        "GET /jobs/j1/events": build_frame(job, "succeeded"),
    }
    file_document = read_document(f"artifacts get art_1 -o {tmp_path}", capsys)
    assert file_document["id"] == "art_1"
    assert Path(file_document["path"]).read_bytes() == b"png"
    archive_document = read_document(f"artifacts archive art_1 -o {tmp_path}", capsys)
    assert Path(archive_document["path"]).read_bytes() == b"zip"
    job_document = read_document(f"render -t swatch -o {tmp_path}", capsys)
    assert job_document.items() > job.items()
    assert [Path(path).read_bytes() for path in job_document["paths"]] == [b"png"]


def test_chat_prints_a_line_per_chunk_and_then_the_whole_answer(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    stream_end = b"data: [DONE]\n\n: x-moyin-cost-usd=0.25\n\n"
    gateway.routes["POST /v1/chat/completions"] = b"".join(map(build_frame, _CHUNKS)) + stream_end
    *chunks, answer = read_lines("chat colour?", capsys)
    assert chunks == _CHUNKS
    assert (answer["object"], answer["text"], answer["cost_usd"]) == (
        "moyin.answer", "Blue", "0.25",
    )  # fmt: skip
    error_frame = build_frame({"error": {"code": "stream_interrupted", "message": "gone"}})
    gateway.routes["POST /v1/chat/completions"] = build_frame(_CHUNKS[0]) + error_frame
    assert run(["chat", "colour?", "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out) == _CHUNKS[0]
    assert output.err == "error: stream_interrupted: gone\n"


def test_watching_a_job_prints_a_line_per_event(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = {"value": 1, "max": 2}
    first_frame = build_frame(progress, "progress")
    gateway.routes["GET /jobs/j1/events"] = first_frame + build_frame(_JOB, "succeeded")
    assert read_lines("jobs watch j1", capsys) == [
        {"type": "progress", "id": "1-0", "data": progress},
        {"type": "succeeded", "id": "1-0", "data": _JOB},
    ]
    failed_job = {**_JOB, "status": "failed", "error": _PROBLEM}
    gateway.routes["GET /jobs/j1/events"] = first_frame + build_frame(failed_job, "failed")
    assert run(["jobs", "watch", "j1", "--json"]) == 3
    output = capsys.readouterr()
    assert json.loads(output.out.splitlines()[-1])["data"] == failed_job
    assert output.err == "step_failed: no\n"


def test_batches_commands_print_a_line_per_batch(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"url": "/v1/embeddings"}\n')
    new_batch, failed_batch = make_batch("validating"), make_batch("failed", errors={"data": []})
    gateway.routes = {
        "POST /v1/files": {"id": "file-1"},
        "POST /v1/batches": new_batch,
        "GET /v1/batches/batch_1": make_batch("completed", 3),
    }
    assert read_lines(f"batches submit {file}", capsys) == [new_batch]
    assert read_lines(f"batches submit {file} --wait", capsys) == [
        new_batch,
        make_batch("completed", 3),
    ]
    gateway.routes["GET /v1/batches/batch_1"] = failed_batch
    assert run(["batches", "watch", "batch_1", "--json"]) == 3
    output = capsys.readouterr()
    assert (json.loads(output.out), output.err) == (failed_batch, "")


def test_audit_export_prints_a_line_per_entry(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [make_audit_entry(number) for number in (1, 2)]
    gateway.routes["GET /accounts/audit"] = {"entries": entries}
    assert read_lines("audit export", capsys) == entries


def test_logs_prints_an_object_per_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(tmp_path / "data")
    layout.prepare()
    layout.get_log_path("ray").write_text('{"level": "INFO"}\nno JSON\n[1]\n')
    expected_objects = [{"level": "INFO"}, {"message": "no JSON"}, {"message": "[1]"}]
    assert read_lines("logs ray", capsys) == expected_objects


def test_a_followed_log_is_read_in_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ray.log"
    path.write_text("before\n")
    pieces = iter(["half ", "line\nnext"])

    def append_piece(_: float) -> None:
        with path.open("a") as log:
            log.write(next(pieces))

    monkeypatch.setattr("moyin.cli.stack.time.sleep", append_piece)
    assert next(stack._follow_log(path)) == "half line"


def test_status_and_up_print_the_same_document(
    running_stack: StackState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = read_document("status", capsys)
    assert read_document("up", capsys) == status
    assert run(["up", "--foreground", "--json"]) == 2
    assert "--foreground" in capsys.readouterr().err

    async def deploy(*_: object) -> None:
        """Deploy nothing, because no Ray is running."""

    monkeypatch.setattr(apps, "deploy_apps", deploy)
    monkeypatch.setattr(apps, "find_config_problems", lambda _: [])
    path = tmp_path / "apps.yaml"
    path.write_text("applications: []")
    assert read_document(f"deploy --config {path}", capsys) == {"deployed": str(path)}


def test_down_and_ray_env_print_documents(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        read_document("down", capsys).items()
        > {
            "phase": "stopped",
            "was_running": False,
        }.items()
    )
    assert read_document("ray-env", capsys)["RAY_AUTH_MODE"] == "token"


def test_database_commands_print_documents(capsys: pytest.CaptureFixture[str]) -> None:
    newest_revision = get_newest_revision()
    assert read_document("migrate", capsys) == {"revision": newest_revision}
    assert read_document("prune --days 1 --dry-run", capsys) == {
        "dry_run": True, "jobs": 0, "batches": 0,
    }  # fmt: skip
    assert read_document("prune --days 1", capsys) == {
        "dry_run": False, "jobs": 0, "batches": 0, "files": 0, "size": 0,
    }  # fmt: skip
    key = read_document("keys create ann", capsys)
    assert read_document(f"keys revoke {key['id']}", capsys) == {"id": key["id"], "revoked": True}
    assert read_document("migrate base --down", capsys) == {"revision": None}


def test_migrating_down_names_the_revision_that_is_reached(
    capsys: pytest.CaptureFixture[str],
) -> None:
    newest_revision = get_newest_revision()
    assert run(["migrate"]) == 0
    assert run(["migrate", "-1", "--down"]) == 0
    previous_revision = f"{int(newest_revision) - 1:04}"
    assert capsys.readouterr().out.splitlines() == [
        f"the database is at revision {newest_revision}",
        f"the database is at revision {previous_revision}",
    ]
    assert run(["migrate", "--down", "base"]) == 0
    assert capsys.readouterr().out == "the database has no tables\n"


def test_unknown_revisions_and_options_of_migrate_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["migrate", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("error: cannot migrate up to 'nothing': ")
    assert run(["migrate", "--dwon"]) == 2
    assert "No such option: --dwon" in capsys.readouterr().err


def test_profile_commands_print_documents(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("moyin_secret\n"))
    added_profile = read_document(f"profiles add studio {gateway.url} --no-check", capsys)
    assert added_profile == {"name": "studio", "url": gateway.url}
    assert read_document("profiles use studio", capsys) == {"name": "studio", "default": True}
    assert read_document("profiles remove studio", capsys) == {"name": "studio", "removed": True}


def test_route_secrets_and_installations_are_printed_as_documents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOYIN_SECRET", "s" * 32)
    assert read_document("routes secret assets", capsys) == {
        "route": "assets",
        "secret": derive_route_secret(b"s" * 32, "assets"),
    }

    def install(_: object, on_step: Any) -> ComfyUI:
        on_step("installing")
        return ComfyUI(home=Path("/home"), python=Path("/python"))

    monkeypatch.setattr(comfyui, "install", install)
    assert run(["comfyui", "install", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == {"home": "/home", "python": "/python"}
    assert output.err == "installing\n"


def read_document(command_line: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command with ``--json``; return the document, which must be all that it prints."""
    capsys.readouterr()
    assert run([*command_line.split(), "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return json.loads(output.out)


def read_lines(command_line: str, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """Run a command with ``--json``; return the JSON values that it prints, one per line."""
    capsys.readouterr()
    assert run([*command_line.split(), "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return [json.loads(text) for text in output.out.splitlines()]
