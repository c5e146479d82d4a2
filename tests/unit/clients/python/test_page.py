"""Runs the examples of docs/jobs.md and of the client's README against a scripted gateway."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.clients_page import list_snippets
from tests.unit.clients.python.scripted_gateway import (
    Reply,
    ScriptedGateway,
    build_event,
    json_reply,
    problem_reply,
    stream_reply,
)

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "jobs.md"
README = ROOT / "clients" / "python" / "README.md"


@pytest.fixture(autouse=True)
def _set_environment(
    gateway: ScriptedGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY", gateway.url)
    monkeypatch.setenv("KEY", "key-1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"photo")
    gateway.script("POST", "/artifacts", json_reply({"id": "art_1"}, 201))


def run_example() -> None:
    language, code = list_snippets(PAGE)["client"]
    assert language == "python"
    exec(code, {})


def test_the_example_renders_a_photo(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    run_example()
    assert capsys.readouterr().out == "3 of 20\n"
    assert (tmp_path / "art_2.png").read_bytes() == b"picture"
    assert gateway.requests[1].json == {
        "kind": "render", "template": "restyle",
        "inputs": {"image": "artifact:art_1", "seed": 7}, "metadata": {"project": "dawn"},
    }  # fmt: skip


def test_the_example_names_the_field_that_is_wrong(gateway: ScriptedGateway) -> None:
    gateway.script("POST", "/jobs", problem_reply(400, "invalid_request", field="inputs.seed"))
    with pytest.raises(SystemExit, match=r"invalid_request: .* \(field inputs.seed\)"):
        run_example()


def test_the_example_shows_why_a_job_failed(gateway: ScriptedGateway) -> None:
    failed_job = {"id": "j1", "status": "failed", "error": {"code": "render_failed"}}
    gateway.script("POST", "/jobs", json_reply({"id": "j1", "status": "queued"}, 202))
    gateway.script("GET", "/jobs/j1/events", stream_reply(build_event("failed", failed_job, "2-0")))
    gateway.script("GET", "/jobs/j1", json_reply(failed_job))
    with pytest.raises(SystemExit, match=r"failed: .*render_failed"):
        run_example()


def test_the_example_of_the_readme_asks_for_a_colour(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
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
    language, code = list_snippets(README)["example"]
    assert language == "python"
    exec(code.replace("http://127.0.0.1:8000", gateway.url).replace("moyin_…", "key-1"), {})
    assert capsys.readouterr().out == "teal\n"
    assert gateway.requests[0].json["kind"] == "chat"


def test_the_installation_of_the_readme_brings_the_whole_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The build writes into the folder.
    package = shutil.copytree(
        README.parent,
        tmp_path / "clients" / "python",
        ignore=shutil.ignore_patterns("build", "*.egg-info"),
    )
    language, commands = list_snippets(README)["install"]
    assert language == "sh"
    # Install without the Internet, into a folder outside the environment of the tests. pip reads
    # NO_BUILD_ISOLATION inverted: 0 turns build isolation off.
    target = tmp_path / "target"
    pip_options = {
        "TARGET": str(target),
        "NO_INDEX": "1",
        "NO_DEPS": "1",
        "NO_BUILD_ISOLATION": "0",
    }
    for name, value in pip_options.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, capture_output=True)
    modules = {path.name for path in (package / "moyin_client").iterdir() if path.is_file()}
    assert {path.name for path in (target / "moyin_client").iterdir() if path.is_file()} == modules
    [metadata] = target.glob("moyin_client-*.dist-info/METADATA")
    required_packages = re.findall("^Requires-Dist: (\\w+)", metadata.read_text(), re.MULTILINE)
    assert required_packages == ["httpx"]
