"""Runs the TypeScript client's own tests, and the examples of docs/jobs.md and its README."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.clients_page import list_snippets
from tests.acceptance.typescript_client import FOLDER, build_typescript_client
from tests.stack import ROOT
from tests.unit.clients.python.scripted_gateway import (
    Reply,
    ScriptedGateway,
    build_event,
    json_reply,
    problem_reply,
    stream_reply,
)


@pytest.fixture
def page_gateway() -> Iterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    gateway.script("POST", "/artifacts", json_reply({"id": "art_1"}, 201))
    yield gateway
    gateway.stop()


def test_typescript_client_tests_pass() -> None:
    output = build_typescript_client("test")
    counts = dict(re.findall(r"^# (\w+) (\d+)$", output, re.MULTILINE))
    assert counts["fail"] == "0"
    assert int(counts["pass"]) > 50, f"only {counts['pass']} tests ran; expected over 50"


def run_example(
    gateway: ScriptedGateway,
    folder: Path,
    page: Path = ROOT / "docs" / "jobs.md",
    name: str = "client-typescript",
) -> subprocess.CompletedProcess[str]:
    """Run an example as JavaScript in the client's package, and return the ended process."""
    build_typescript_client()
    language, example = list_snippets(page)[name]
    assert language == "ts"
    (folder / "photo.png").write_bytes(b"photo")
    script = FOLDER / "build" / f"page-{os.getpid()}.mjs"
    script.write_text(example.replace("http://127.0.0.1:8000", gateway.url))
    try:
        return subprocess.run(
            ["node", str(script)],
            env={"PATH": os.environ["PATH"], "GATEWAY": gateway.url, "KEY": "key-1"},
            cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        script.unlink()


def test_the_example_renders_a_photo(page_gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway = page_gateway
    ended_job = {"id": "j1", "status": "succeeded", "artifacts": [{"id": "art_2"}]}
    gateway.script("POST", "/jobs", json_reply({"id": "j1", "status": "queued"}, 202))
    gateway.script(
        "GET", "/jobs/j1/events",
        stream_reply(
            build_event("progress", {"value": 3, "max": 20, "step": 0}, "1-0"),
            build_event("succeeded", ended_job, "2-0"),
        ),
    )  # fmt: skip
    gateway.script("GET", "/jobs/j1", json_reply(ended_job))
    gateway.script("GET", "/artifacts/art_2", Reply(body=b"picture"))
    process = run_example(gateway, tmp_path)
    assert (process.returncode, process.stdout) == (0, "3 of 20\n"), process.stderr
    assert (tmp_path / "art_2.png").read_bytes() == b"picture"
    assert gateway.requests[0].body == b"photo"
    assert gateway.requests[1].json == {
        "kind": "render", "template": "restyle",
        "inputs": {"image": "artifact:art_1", "seed": 7}, "metadata": {"project": "dawn"},
    }  # fmt: skip


def test_the_example_shows_the_error(page_gateway: ScriptedGateway, tmp_path: Path) -> None:
    page_gateway.script("POST", "/jobs", problem_reply(400, "invalid_request", field="inputs.seed"))
    process = run_example(page_gateway, tmp_path)
    assert process.returncode == 1
    assert re.search(r"MoyinError.*invalid_request", process.stderr)
    assert "field: 'inputs.seed'" in process.stderr


def test_the_example_of_the_readme_asks_for_a_colour(
    page_gateway: ScriptedGateway, tmp_path: Path
) -> None:
    gateway = page_gateway
    ended_job = {
        "id": "j1",
        "status": "succeeded",
        "outputs": [{"step": 0, "kind": "chat", "text": "teal"}],
    }
    gateway.script("POST", "/jobs", json_reply({"id": "j1", "status": "queued"}, 202))
    gateway.script(
        "GET", "/jobs/j1/events", stream_reply(build_event("succeeded", ended_job, "2-0"))
    )
    gateway.script("GET", "/jobs/j1", json_reply(ended_job))
    process = run_example(gateway, tmp_path, FOLDER / "README.md", "example")
    assert (process.returncode, process.stdout) == (0, "teal\n"), process.stderr
    assert gateway.requests[0].json["kind"] == "chat"


def test_the_commands_of_the_readme_build_the_package(tmp_path: Path) -> None:
    build_typescript_client()
    client_copy = tmp_path / "clients" / "typescript"
    shutil.copytree(
        FOLDER, client_copy, ignore=shutil.ignore_patterns("node_modules", "build", "dist")
    )
    language, commands = list_snippets(FOLDER / "README.md")["build"]
    assert language == "sh"
    authorities_path = Path("/etc/ssl/certs/ca-certificates.crt")
    environment = {"npm_config_audit": "false", "npm_config_fund": "false"} | dict(os.environ)
    if authorities_path.exists():
        # Node.js has its own list of certificate authorities.
        environment.setdefault("NODE_EXTRA_CA_CERTS", str(authorities_path))
    process = subprocess.run(
        ["bash", "-euc", commands],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    manifest = json.loads((client_copy / "package.json").read_text())
    assert (client_copy / manifest["exports"]["."]["default"]).is_file()


def test_the_installation_of_the_readme_links_the_package(tmp_path: Path) -> None:
    build_typescript_client()
    language, readme_command = list_snippets(FOLDER / "README.md")["install"]
    assert (language, readme_command) == ("sh", "npm install /path/to/moyin/clients/typescript\n")
    (tmp_path / "package.json").write_text('{"name": "app", "private": true}')
    install_command = readme_command.replace("/path/to/moyin/clients/typescript", str(FOLDER))
    # Needs no registry, as the package has no dependencies.
    environment = os.environ | {"npm_config_offline": "true", "npm_config_audit": "false"}
    script = "import('moyin-client').then((m) => console.log(typeof m.Client))"
    process = subprocess.run(
        ["bash", "-euc", f"{install_command}node -e {shlex.quote(script)}"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "function"
