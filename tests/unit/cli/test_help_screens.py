"""Captures the help of every command in pseudo-terminals, and looks for cut or missing text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.command_screens import capture, find_flaws, list_commands, run_in_pipe
from tests.terminal import Screen

_FRAME = re.compile(r"[│╭╮╰╯─]+")


def test_help_of_every_command_is_complete() -> None:
    commands = list_commands()
    calls = [[*name.split(), "--help"] for name in commands]
    for columns, variables in ((80, {}), (120, {"NO_COLOR": "1"})):
        screens = capture(calls, columns=columns, rows=columns // 3, variables=variables)
        for name, screen in zip(commands, screens, strict=True):
            assert screen.status == 0, screen.text
            assert find_flaws(screen) == [], f"moyin {name} --help"
            assert find_missing_texts(screen, name, commands[name]) == [], screen.text
            assert screen.has_colours is not bool(variables), name


def test_help_in_a_pipe_has_no_control_sequences() -> None:
    commands = list_commands()
    screens = run_in_pipe([[*name.split(), "--help"] for name in commands])
    for name, screen in zip(commands, screens, strict=True):
        assert (screen.status, b"\x1b" in screen.output) == (0, False)
        assert find_missing_texts(screen, name, commands[name]) == []


@pytest.mark.parametrize("columns", [80, 120])
def test_wrong_usage_names_the_mistake_and_the_help(columns: int) -> None:
    calls = {
        "jobs explode": "No such command 'explode'",
        "chat": "Missing argument 'PROMPT'",
        "prune": "Missing option '--days'",
        "jobs list --limit none": "Invalid value for '--limit'",
        "members role ann king": "'king' is not one of",
        "jobs delete": "name a job's id, or at least one filter",
        "status --memroy": "No such option: --memroy",
    }
    screens = capture([call.split() for call in calls], columns=columns)
    for (call, message), screen in zip(calls.items(), screens, strict=True):
        screen_text = join_words(screen)
        assert screen.status == 2, screen.text
        assert find_flaws(screen) == [], call
        assert message in screen_text, screen_text
        assert "Usage: moyin" in screen_text
        assert "--help" in screen_text


def find_missing_texts(screen: Screen, name: str, command: Any) -> list[str]:
    """Return the help texts of a command that are missing or cut off on its screen."""
    shown_text = join_words(screen)
    help_texts = [f"Usage: moyin {name}".strip(), " ".join((command.help or "").split())]
    for parameter in command.params:
        help_texts += parameter.opts if parameter.param_type_name == "option" else []
        help_texts.append(getattr(parameter, "help", None) or "")
    for child in getattr(command, "commands", {}).values():
        if not child.hidden:
            help_texts.append(" ".join((child.help or "").split("\n\n")[0].split()))
    return [text for text in help_texts if not is_shown(text, shown_text)]


def is_shown(text: str, shown_text: str) -> bool:
    """Return True if the words of ``text`` occur in ``shown_text`` in order, also with others between."""
    words = iter(shown_text.split())
    return all(word in words for word in text.split())


def join_words(screen: Screen) -> str:
    """Return the words of a screen, without the frames around them."""
    return " ".join(_FRAME.sub(" ", screen.text).split())
