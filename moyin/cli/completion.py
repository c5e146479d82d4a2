"""Implements ``moyin completion``, which prints the script that completes commands in a shell."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

_PROGRAM = "moyin"
_VARIABLE = "_MOYIN_COMPLETE"


class Shell(StrEnum):
    """A shell for which this command prints a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print the script that completes `moyin` in a shell.

    bash, in ~/.bashrc: `eval "$(moyin completion bash)"`; zsh, in ~/.zshrc after compinit:
    `eval "$(moyin completion zsh)"`; fish: `moyin completion fish > ~/.config/fish/completions/moyin.fish`.
    """
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name=_PROGRAM, complete_var=_VARIABLE, shell=shell)
    sys.stdout.write(f"{script}\n")


def prepare_completion() -> None:
    """Register Typer's completion classes, but only if a shell's script requests completions.

    Typer registers them itself only if the app offers Typer's own completion options, one of which
    would change the shell's configuration files.
    """
    if _VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
