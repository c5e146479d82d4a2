from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moyin.cli.main import run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
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
