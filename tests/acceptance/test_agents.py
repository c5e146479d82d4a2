"""Tests coding agents, unchanged and configured as docs/clients.md says, on the scripted model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.clients_page import fill_in_snippet
from tests.acceptance.text_clients_environment import TextClients, run_script
from tests.acceptance.text_gateway import SCRIPTED, TextGateway

SUITE = "openai-agents, Codex, Claude Code, Continue"
pytestmark = pytest.mark.timeout(400)
_SECONDS = 120
_TEXT = "Hello! It is sunny, and the answer is 3."


def test_openai_agents_runs_tools_handoffs_and_continues(
    text_clients: TextClients, text_gateway: TextGateway, tmp_path: Path
) -> None:
    script_arguments = [text_gateway.url, text_gateway.api_key, SCRIPTED]
    summary = run_script([text_clients.python, "agents_sdk.py", *script_arguments], tmp_path)
    assert summary["hello"] == _TEXT
    assert summary["results"] == ["sunny in Paris"]
    assert summary["answer"] == summary["streamed"] == summary["continued"] == _TEXT
    assert "raw_response_event" in summary["kinds"]
    assert summary["person"] == {"name": "Ada", "age": 36}
    assert summary["last_agent"] == "second"


def test_codex_runs_a_command_and_reads_its_output(
    text_clients: TextClients, text_gateway: TextGateway, tmp_path: Path
) -> None:
    node = text_clients.require_node()
    home, workspace = _create_folders(tmp_path)
    # The command that the model asks for needs no approval here.
    approval_settings = 'approval_policy = "never"\nsandbox_mode = "danger-full-access"\n'
    config = approval_settings + fill_in_snippet("codex", url=text_gateway.url, model=SCRIPTED)
    (home / "config.toml").write_text(config)
    command = [str(node / ".bin" / "codex"), "exec", "--json", "--skip-git-repo-check"]
    codex_process = _run_agent(
        [*command, "Run 'echo hello > made.txt; cat made.txt'"],
        workspace,
        {"HOME": str(home), "CODEX_HOME": str(home), "MOYIN_API_KEY": text_gateway.api_key},
    )
    assert codex_process.returncode == 0, (
        codex_process.stdout[-3000:] + codex_process.stderr[-2000:]
    )
    events = [json.loads(line) for line in codex_process.stdout.splitlines()]
    completed_items = [event["item"] for event in events if event["type"] == "item.completed"]
    [command_item] = [item for item in completed_items if item["type"] == "command_execution"]
    assert (command_item["exit_code"], command_item["aggregated_output"]) == (0, "hello\n")
    assert [item["text"] for item in completed_items if item["type"] == "agent_message"] == [_TEXT]
    assert events[-1]["type"] == "turn.completed" and events[-1]["usage"]["input_tokens"] > 0
    assert (workspace / "made.txt").read_text() == "hello\n"


def test_claude_code_gets_an_answer(
    text_clients: TextClients, text_gateway: TextGateway, tmp_path: Path
) -> None:
    [program] = text_clients.require_node().glob("@anthropic-ai/claude-code-*/claude")
    home, workspace = _create_folders(tmp_path)
    shell_lines = fill_in_snippet("claude-code", url=text_gateway.url, model=SCRIPTED)
    claude_process = _run_agent(
        ["sh", "-c", f'{shell_lines}exec "{program}" -p "Say hello." --output-format json'],
        workspace,
        {"HOME": str(home), "MOYIN_API_KEY": text_gateway.api_key},
    )
    assert claude_process.returncode == 0, (
        claude_process.stdout[-3000:] + claude_process.stderr[-2000:]
    )
    result = json.loads(claude_process.stdout.splitlines()[-1])
    assert (result["is_error"], result["result"]) == (False, _TEXT)
    assert result["usage"]["output_tokens"] > 0


def test_continue_cli_gets_answers(
    text_clients: TextClients, text_gateway: TextGateway, tmp_path: Path
) -> None:
    program = text_clients.require_node() / "@continuedev" / "cli" / "dist" / "cn.js"
    home, workspace = _create_folders(tmp_path)
    config = fill_in_snippet("continue", url=text_gateway.url, model=SCRIPTED)
    (workspace / "config.yaml").write_text(config.replace("moyin_…", text_gateway.api_key))
    process = _run_agent(
        ["node", str(program), "-p", "Say hello.", "--config", "config.yaml"],
        workspace,
        {"HOME": str(home), "CONTINUE_TELEMETRY_ENABLED": "0"},
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.strip().endswith(_TEXT)


def _create_folders(parent: Path) -> tuple[Path, Path]:
    """Create and return a new home folder and a new working folder."""
    home, workspace = parent / "home", parent / "workspace"
    home.mkdir()
    workspace.mkdir()
    return home, workspace


def _run_agent(
    command: list[str], folder: Path, environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], **environ},
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS,
    )  # fmt: skip
