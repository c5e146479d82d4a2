"""Runs `moyin doctor` as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tests.stack import ROOT


def run_doctor(
    environ: Mapping[str, str],
    *options: str,
    sandbox_command: Sequence[str] = (),
    python: str = sys.executable,
) -> tuple[int, dict[str, Any]]:
    """Run `moyin doctor --json`, and return its exit status and its checks by name.

    Args:
        sandbox_command: the command line of a sandbox to run it in.
        python: the interpreter to run it with.
    """
    command = [
        *sandbox_command,
        python,
        "-m",
        "moyin.cli.main",
        "doctor",
        "--json",
        *options,
    ]
    process = subprocess.run(
        command,
        env=dict(environ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    print(process.stderr)
    assert process.stdout.startswith("["), process.stdout + process.stderr
    return process.returncode, {check["name"]: check for check in json.loads(process.stdout)}


def list_fixed_checks(checks: Mapping[str, Any]) -> set[str]:
    """Return the names of the checks whose problem `--fix` has mended."""
    return {name for name, check in checks.items() if check["fixed"]}


def list_problem_checks(checks: Mapping[str, Any], *, mendable: bool = False) -> set[str]:
    """Return the names of the checks that failed or warned.

    Args:
        mendable: True to return only those whose problem `--fix` would mend.
    """
    return {
        name
        for name, check in checks.items()
        if check["verdict"] != "ok" and (check["fix"] or not mendable)
    }
