"""Runs `moyin` commands in terminals and pipes, and judges how their screens look."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import typer.main

from moyin.cli.main import app
from tests.terminal import Screen, run_in_terminal

# All commands in one process, because imports take longer than they do.
_PROGRAM = """
import json, sys
from moyin.cli.main import run
sys.argv[0] = "moyin"
for number, arguments in enumerate(json.loads(sys.argv[1])):
    status = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    print(end=f"\\x1e{number} {status}\\x1e", flush=True)
"""
_END = re.compile(rb"\x1e(\d+) (\d+)\x1e")
# A real terminal that shows no pictures.
_ATTRIBUTES = b"\x1b[?62;22c"
_SECONDS = 400
# A character is cut off before this one; progress has a space before it.
_CUT = re.compile(r"\S…")


def list_commands() -> dict[str, Any]:
    """Return every visible command and group by its full name, such as ``jobs list``."""
    return dict(_walk_commands("", typer.main.get_command(app)))


def _walk_commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child_name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _walk_commands(f"{name} {child_name}".strip(), child)


def capture(
    commands: Sequence[Sequence[str]],
    *,
    columns: int = 80,
    rows: int = 24,
    variables: Mapping[str, str] | None = None,
) -> list[Screen]:
    """Run commands one after the other in a terminal, and return the screen of each.

    Args:
        columns, rows: the size of the terminal.
        variables: environment variables of the commands.
    """
    screen = run_in_terminal(
        _PROGRAM,
        json.dumps(commands),
        reply=_ATTRIBUTES,
        columns=columns,
        rows=rows,
        variables=variables,
    )
    assert screen.status == 0, screen.text[-5000:]
    return _split_screens(screen)


def run_command(
    *arguments: str, typed_inputs: Mapping[bytes, bytes] | None = None, **options: Any
) -> Screen:
    """Run one command in a terminal.

    Args:
        typed_inputs: maps a text to the input that is typed when the text appears on the screen.
    """
    program = """
import sys
from moyin.cli.main import run
sys.argv[0] = "moyin"
sys.exit(run(sys.argv[1:]))
"""
    options = {"columns": 80, "rows": 24, **options}
    return run_in_terminal(program, *arguments, typed_inputs=typed_inputs, **options)


def run_in_pipe(
    commands: Sequence[Sequence[str]],
    variables: Mapping[str, str] | None = None,
    *,
    with_errors: bool = True,
) -> list[Screen]:
    """Run commands with a pipe as standard output.

    Args:
        with_errors: True to capture standard error in `Screen.output`, too; otherwise it goes to
            the test's own standard error.
    """
    process = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(commands)],
        env={**os.environ, **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if with_errors else None,
        timeout=_SECONDS,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-5000:].decode()
    return _split_screens(Screen(output=process.stdout, columns=0, rows=0, status=0))


def _split_screens(screen: Screen) -> list[Screen]:
    output_parts = _END.split(screen.output)
    return [
        replace(screen, output=output, status=int(status))
        for output, status in zip(output_parts[::3], output_parts[2::3], strict=False)
    ]


def find_flaws(screen: Screen, *, wide_line_prefixes: Sequence[str] = ()) -> list[str]:
    """Return the flaws of a screen: a traceback, or lines that are cut off or badly broken.

    Args:
        wide_line_prefixes: beginnings of lines that may be wider than the terminal. They are meant
            to be copied, and a terminal copies them as one line, although it shows several.
    """
    flaws = []
    if "Traceback (most recent call last)" in screen.text:
        flaws.append("a traceback")
    flaws += [f"cut: {line}" for line in screen.lines if _CUT.search(line)]
    for line in screen.written_lines if screen.columns else ():
        # A word that is longer than the terminal is wide has to be broken.
        words = line.split()
        may_be_wide = (
            line.strip().startswith(tuple(wide_line_prefixes)) if wide_line_prefixes else False
        )
        if len(line) > screen.columns and not may_be_wide and max(map(len, words)) < screen.columns:
            flaws.append(f"broken by the terminal: {line}")
    return flaws
