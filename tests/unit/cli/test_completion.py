from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from moyin.cli.main import app, run

# Commands that print no data of the gateway: an id, a secret, a file, a log, or what they did.
_WITHOUT_JSON = {
    "up", "down", "deploy", "logs", "ray-env", "switches", "chat", "demo", "migrate", "prune",
    "completion", "batches submit", "batches watch", "batches results", "artifacts get",
    "artifacts archive",
    "artifacts delete", "keys revoke", "limits clear", "audit export", "quality reset",
    "quality freeze", "quality thaw", "profiles add", "profiles use", "profiles remove",
    "routes secret", "comfyui install", "comfyui connect", "connect ollama",
}  # fmt: skip


def test_every_command_that_prints_data_has_json() -> None:
    commands = dict(_list_commands("", typer.main.get_command(app)))
    environ = {
        name
        for name, command in commands.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert environ == _WITHOUT_JSON


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_names_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_MOYIN_COMPLETE=complete_{shell}" in script
    assert run(["completion", "tcsh"]) == 2


def test_bash_completes_commands(tmp_path: Path) -> None:
    moyin_program = tmp_path / "moyin"
    moyin_program.write_text(f"#!{sys.executable}\nfrom moyin.cli.main import main\nmain()\n")
    moyin_program.chmod(0o755)
    script = (
        f'eval "$({moyin_program} completion bash)"; COMP_WORDS=(moyin artifacts l); COMP_CWORD=2; '
        f'_moyin_completion {moyin_program}; echo "${{COMPREPLY[@]}}"'
    )
    process = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=300, check=True
    )
    assert sorted(process.stdout.split()) == ["link", "list"]


def _list_commands(name: str, command: Any) -> list[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if not children:
        return [(name, command)]
    return [
        item
        for child_name, child in children.items()
        for item in _list_commands(f"{name} {child_name}".strip(), child)
    ]
