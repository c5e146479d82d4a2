"""Writes the pages of docs/reference from the code; with ``--check``, only compares them.

Run it with `make docs`. A test fails if the pages differ from what the code generates.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import typer.main
from pydantic.fields import FieldInfo

from moyin.cli.main import app
from moyin.settings import Settings
from moyin.stack.options import VARIABLE_DESCRIPTIONS
from moyin.stack.ports import Ports
from scripts.api_pages import build_errors_page, build_events_page
from scripts.asyncapi import build_asyncapi_document

# Typer holds click inside itself, under a private name.
Command: TypeAlias = Any
FOLDER = Path(__file__).parents[1] / "docs" / "reference"
# The commands that have no --json, and why.
WITHOUT_JSON = {
    "completion": "prints a script for a shell",
    "demo": "shows people around; `moyin chat` and `moyin render` do the same for programs",
}
_WRITTEN = "<!-- Written by `make docs`; edit the code instead. -->\n"


def build_settings_page() -> str:
    """Return the text of the page that lists all environment variables."""
    lines = [
        "# Settings",
        "",
        _WRITTEN,
        *_build_settings_rows(),
        *_build_port_rows(),
        *_build_other_variable_rows(),
    ]
    return "\n".join(lines) + "\n"


def build_cli_page() -> str:
    """Return the text of the page that lists all commands with their arguments and options."""
    lines = ["# Command line", "", _WRITTEN]
    lines += [
        "Piped output is plain: tab-separated columns, no colours, no pictures.",
        "`moyin --profile NAME COMMAND` calls another gateway (`moyin profiles add`).",
        "How some commands look in a terminal: [screens](screens.md).",
        "",
        "`--json` prints one JSON document to standard output, and nothing else there: what the API",
        "returned, or what the command did. `chat`, `logs`, `jobs watch`, `batches submit`, `watch`",
        "and `results`, and `audit export` print a JSON object per line instead, as each arrives.",
        "Notes, progress, questions and errors are text on standard error, and the exit status is the",
        "same as without `--json`. Every command has it, except:",
        "",
        *(f"- `moyin {name}`, which {reason}." for name, reason in WITHOUT_JSON.items()),
        "",
        "| exit status | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | an error, or not running; the reason is on standard error |",
        "| 2 | wrong usage |",
        "| 3 | the job or batch did not succeed, or some of the matching jobs were skipped |",
        "| 130 | interrupted by Ctrl+C |",
        "",
        "`MOYIN_DEBUG=1` shows where an error came from.",
        "",
    ]
    for name, command in _list_commands("moyin", typer.main.get_command(app)):
        lines += _build_command_section(name, command)
    return "\n".join(lines).rstrip() + "\n"


def list_stale_pages() -> list[str]:
    """Return the names of the pages that differ from what the code generates."""
    return [name for name, page_text in _generate_pages() if _read_page(FOLDER / name) != page_text]


def _generate_pages() -> Iterator[tuple[str, str]]:
    yield "cli.md", build_cli_page()
    yield "settings.md", build_settings_page()
    yield "errors.md", build_errors_page(_WRITTEN)
    yield "events.md", build_events_page(_WRITTEN)
    yield "asyncapi.json", build_asyncapi_document()


def _read_page(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _build_settings_rows() -> Iterator[str]:
    yield "Read once per process from the environment. `moyin up` passes them to every process."
    yield ""
    yield "| variable | default | meaning |"
    yield "|---|---|---|"
    for name, field in Settings.model_fields.items():
        yield f"| `MOYIN_{name.upper()}` | {_format_default(field)} | {field.description} |"
    yield ""


def _build_port_rows() -> Iterator[str]:
    yield "## Ports of `moyin up`"
    yield ""
    yield "`MOYIN_PORT_BASE` (or `--port-base`) moves them all: the gateway takes it, the others follow."
    yield "Where no variable sets a port, `ports.toml` in the data folder counts, which `moyin doctor --fix` writes."
    yield ""
    yield "| variable | default | meaning |"
    yield "|---|---|---|"
    for variable, default, description in Ports.describe_ports():
        yield f"| `{variable}` | `{default}` | {description} |"
    yield ""


def _build_other_variable_rows() -> Iterator[str]:
    yield "## The command line and the stack"
    yield ""
    yield "| variable | meaning |"
    yield "|---|---|"
    for variable, meaning in VARIABLE_DESCRIPTIONS.items():
        yield f"| `{variable}` | {meaning} |"


def _format_default(field: FieldInfo) -> str:
    default = field.get_default()
    return "" if default in ("", None) else f"`{default}`"


def _list_commands(name: str, command: Command) -> Iterator[tuple[str, Command]]:
    children: dict[str, Command] = getattr(command, "commands", {})
    if not children:
        yield name, command
    for child_name, child in children.items():
        if child.hidden:
            continue
        yield from _list_commands(f"{name} {child_name}", child)


def _build_command_section(name: str, command: Command) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage_words = [name, *(_format_metavar(argument) for argument in arguments)]
    yield f"## `{' '.join([*usage_words, '[OPTIONS]'] if options else usage_words)}`"
    yield ""
    yield inspect.cleandoc(command.help or "")
    yield ""
    for parameter in (*arguments, *options):
        help_text = getattr(parameter, "help", "") or ""
        yield f"- {_format_option_names(parameter)}: {help_text}{_format_parameter_default(parameter)}"
    if arguments or options:
        yield ""


def _format_metavar(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    if parameter.nargs == -1:
        name += "…"
    return name if parameter.required else f"[{name}]"


def _format_option_names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_format_metavar(parameter)}`"
    return ", ".join(f"`{name}`" for name in parameter.opts)


def _format_parameter_default(parameter: Any) -> str:
    default = parameter.default
    if parameter.required or default in (None, False, "") or callable(default):
        return ""
    return f" Default: `{default}`."


def main() -> int:
    """Write the pages, or with ``--check`` name the stale ones; return the exit status.

    The status is 1 if ``--check`` finds a stale page, otherwise 0.
    """
    if "--check" in sys.argv:
        names = list_stale_pages()
        for name in names:
            print(f"docs/reference/{name} is stale: run `make docs`")
        return 1 if names else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page_text in _generate_pages():
        (FOLDER / name).write_text(page_text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
