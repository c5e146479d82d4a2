"""Tests that the commands in the documents exist and accept the arguments shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from moyin.cli.main import app
from tests.examples import ROOT, list_blocks, list_pages

_MOYIN = typer.main.get_command(app)
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def list_commands() -> list[tuple[str, str, list[str]]]:
    """Return page, program and arguments of each command in the shell examples."""
    return [
        (block.page, words[0], words[1:])
        for page in list_pages()
        for block in list_blocks(page)
        if block.language == "sh"
        for line in re.split(r"\n|; |&& | \| ", block.text.replace("\\\n", ""))
        if line.startswith(("moyin ", "make "))
        for words in [shlex.split(line.partition(" >")[0], comments=True)]
    ]


COMMANDS = list_commands()
# Typer does not export its class.
USAGE_ERROR = typer.BadParameter.__base__ or Exception


def parse_command_line(arguments: list[str]) -> None:
    """Parse a moyin command line with its own parser, without running the command."""
    command: Any = _MOYIN
    context: Any = None
    name: str | None = "moyin"
    while True:
        context = command.make_context(name, list(arguments), parent=context)
        if not isinstance(command, TyperGroup):
            return
        words = [*context._protected_args, *context.args]
        name, command, arguments = command.resolve_command(context, words)


def test_all_examples_of_commands_are_found() -> None:
    pages_with_commands = {
        block.page for page in list_pages() for block in list_blocks(page)
        if block.mark == "tested" and (block.name or "").startswith("command-")
    }  # fmt: skip
    assert len(COMMANDS) > 30
    assert pages_with_commands == {page for page, _, _ in COMMANDS} & pages_with_commands


@pytest.mark.parametrize(
    ("page", "program", "arguments"), COMMANDS,
    ids=[f"{page}: {shlex.join([program, *words])}" for page, program, words in COMMANDS],
)  # fmt: skip
def test_a_command_of_the_examples_exists(
    page: str,
    program: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The files that the examples name.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "requests.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    if program == "make":
        assert set(arguments) <= _TARGETS, page
    else:
        parse_command_line(arguments)


@pytest.mark.parametrize(
    "command_line", ["jobs lst", "render --templat swatch", "logs ray -n fifty"]
)
def test_a_wrong_command_is_refused(command_line: str) -> None:
    with pytest.raises(USAGE_ERROR):
        parse_command_line(command_line.split())
