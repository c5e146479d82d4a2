"""Clients that speak the Responses API by default, unchanged, on the scripted model.

Each runs in the environment that ``scripts/text_clients.sh`` makes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.text_gateway import SCRIPTED, TextGateway
from tests.stack import ROOT

SUITE = "openai-agents, LiteLLM, Vercel AI SDK, Codex on responses"
pytestmark = pytest.mark.timeout(400)
_SCRIPTS = Path(__file__).parent / "text_clients"
_SECONDS = 120
_INSTALL_SECONDS = 300
_TEXT = "Hello! It is sunny, and the answer is 3."
_CODEX_CONFIG = """
model = "{model}"
model_provider = "moyin"
approval_policy = "never"
sandbox_mode = "danger-full-access"
web_search = "disabled"

[model_providers.moyin]
name = "Moyin"
base_url = "{url}"
env_key = "MOYIN_API_KEY"
wire_api = "responses"
"""


@pytest.fixture(scope="module")
def clients() -> Path:
    """Return the folder of the installed clients."""
    install = subprocess.run(
        [str(ROOT / "scripts" / "text_clients.sh")],
        env={**os.environ, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INSTALL_SECONDS,
    )  # fmt: skip
    if install.returncode != 0:
        pytest.skip(f"clients of text are not installed: {install.stderr[-300:]}")
    return Path(install.stdout.strip())


@pytest.fixture(scope="module")
def node(clients: Path) -> Path:
    """Return the folder of the clients that need Node.js."""
    folder = clients / "node" / "node_modules"
    if not folder.exists():
        pytest.skip("Node.js 20 with npm is missing")
    return folder


def test_openai_agents_runs_tools_handoffs_and_continues(
    clients: Path, text_gateway: TextGateway, tmp_path: Path
) -> None:
    found = _run([str(clients / "bin" / "python"), "agents_sdk.py"], text_gateway, tmp_path)
    assert found["results"] == ["sunny in Paris"]
    assert found["answer"] == found["streamed"] == found["continued"] == _TEXT
    assert "raw_response_event" in found["kinds"]
    assert found["person"] == {"name": "Ada", "age": 36}
    assert found["last_agent"] == "second"


def test_litellm_responses_calls_a_tool_and_continues(
    clients: Path, text_gateway: TextGateway, tmp_path: Path
) -> None:
    command = [str(clients / "bin" / "python"), "litellm_responses.py"]
    found = _run(command, text_gateway, tmp_path)
    assert found["whole"] == found["streamed"] == found["answer"] == _TEXT
    assert found["last"] == "response.completed"
    assert json.loads(found["arguments"]) == {"city": "Paris"}


def test_the_ai_sdk_by_default_streams_runs_tools_and_continues(
    node: Path, text_gateway: TextGateway, tmp_path: Path
) -> None:
    # Node.js looks for packages beside the script.
    (tmp_path / "node_modules").symlink_to(node)
    found = _run(["node", "aisdk.mjs"], text_gateway, tmp_path)
    assert found["whole"] == found["streamed"] == found["answer"] == found["continued"] == _TEXT
    assert found["tokens"]["inputTokens"] > 0 and found["streamedTokens"] > 0
    assert found["results"] == found["streamedResults"] == ["sunny in Paris"]
    assert found["object"] == {"name": "Ada", "age": 36}


def test_codex_runs_a_command_and_reads_its_output(
    node: Path, text_gateway: TextGateway, tmp_path: Path
) -> None:
    home, workspace = tmp_path / "home", tmp_path / "workspace"
    home.mkdir()
    workspace.mkdir()
    config = _CODEX_CONFIG.format(model=SCRIPTED, url=text_gateway.openai)
    (home / "config.toml").write_text(config)
    command = [str(node / ".bin" / "codex"), "exec", "--json", "--skip-git-repo-check"]
    codex = subprocess.run(
        [*command, "Run 'echo hello > made.txt; cat made.txt'"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CODEX_HOME": str(home),
            "MOYIN_API_KEY": text_gateway.api_key,
        },
        cwd=workspace, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS,
    )  # fmt: skip
    assert codex.returncode == 0, codex.stdout[-3000:] + codex.stderr[-2000:]
    events = [json.loads(line) for line in codex.stdout.splitlines()]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    [run] = [item for item in items if item["type"] == "command_execution"]
    assert (run["exit_code"], run["aggregated_output"]) == (0, "hello\n")
    assert [item["text"] for item in items if item["type"] == "agent_message"] == [_TEXT]
    assert events[-1]["type"] == "turn.completed" and events[-1]["usage"]["input_tokens"] > 0
    assert (workspace / "made.txt").read_text() == "hello\n"


def _run(command: list[str], text_gateway: TextGateway, folder: Path) -> Any:
    """Run a script with the gateway's address, and return the JSON in its last line."""
    *program, script = command
    shutil.copy(_SCRIPTS / script, folder)
    place = [text_gateway.openai, text_gateway.api_key, SCRIPTED]
    client = subprocess.run(
        [*program, str(folder / script), *place],
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS,
    )  # fmt: skip
    assert client.returncode == 0, client.stderr[-3000:]
    return json.loads(client.stdout.splitlines()[-1])
