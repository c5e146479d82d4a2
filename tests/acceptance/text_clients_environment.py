"""Installs the text clients of ``scripts/text_clients.sh``, and runs their scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.clients_page import write_snippets
from tests.stack import ROOT

_SCRIPTS = Path(__file__).parent / "text_clients"
_INSTALL_SECONDS = 300
_SECONDS = 240


@dataclass(frozen=True, kw_only=True)
class TextClients:
    """The environments of the installed clients.

    Attributes:
        python: the interpreter of the environment with openai-agents and LiteLLM.
        frameworks_python: the interpreter for LlamaIndex and Haystack, which need other versions.
    """

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "python" / "bin" / "python")

    @property
    def frameworks_python(self) -> str:
        return str(self.folder / "frameworks" / "bin" / "python")

    def require_node(self) -> Path:
        """Return the folder of the clients that need Node.js, or skip the test."""
        folder = self.folder / "node" / "node_modules"
        if not folder.exists():
            pytest.skip("the clients for Node.js are not installed: Node.js 20 with npm is missing")
        return folder


def install_text_clients() -> TextClients:
    """Install the clients if they are missing; skip the test if they cannot be installed."""
    install_process = subprocess.run(
        [str(ROOT / "scripts" / "text_clients.sh")],
        env={**os.environ, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INSTALL_SECONDS,
    )  # fmt: skip
    if install_process.returncode != 0:
        pytest.skip(
            f"scripts/text_clients.sh cannot install the text clients: {install_process.stderr[-300:]}"
        )
    return TextClients(folder=Path(install_process.stdout.strip()))


def run_script(command: list[str], folder: Path) -> Any:
    """Run a script of ``text_clients`` with the snippets of docs/clients.md; return its results.

    The results are the JSON in the last line of output.

    Args:
        command: the program, the script's name, and its arguments.
    """
    program, script, *arguments = command
    shutil.copytree(_SCRIPTS, folder, dirs_exist_ok=True)
    write_snippets(folder)
    client_process = subprocess.run(
        [program, str(folder / script), *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS,
    )  # fmt: skip
    assert client_process.returncode == 0, client_process.stderr[-3000:]
    return json.loads(client_process.stdout.splitlines()[-1])
