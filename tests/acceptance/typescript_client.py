"""Builds the TypeScript client with `scripts/typescript_client.sh`, if Node.js exists."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.stack import ROOT

FOLDER = ROOT / "clients" / "typescript"
_SECONDS = 580
# Exit statuses of the script.
_NO_NODE, _NOT_INSTALLED = 3, 4


def build_typescript_client(*arguments: str) -> str:
    """Build the client and its tests, and return the script's output."""
    process = subprocess.run(
        [str(ROOT / "scripts" / "typescript_client.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    if process.returncode in (_NO_NODE, _NOT_INSTALLED):
        pytest.skip(
            f"scripts/typescript_client.sh cannot build the client: {process.stderr[-300:]}"
        )
    assert process.returncode == 0, (process.stdout + process.stderr)[-5000:]
    return process.stdout
