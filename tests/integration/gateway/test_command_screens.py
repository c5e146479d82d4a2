"""Captures the screens of all `moyin` commands against a real farm, in terminals and in pipes.

The captures are kept in build/screens, to be looked at. `MOYIN_SCREENSHOTS=1` writes the page
docs/reference/screens.md anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moyin.stack.named_profiles import (
    find_profiles_file,
    read_named_profiles,
    write_named_profiles,
)
from moyin.stack.profile import Profile
from tests.command_screens import capture, find_flaws, list_commands, run_command, run_in_pipe
from tests.integration.gateway.screen_commands import (
    COMMANDS,
    ELSEWHERE,
    EMPTY,
    FAILING,
    LINES,
    NOT_RUNNING,
    TABLES,
    fill_placeholders,
    find_command_name,
)
from tests.integration.gateway.screen_content import OWNER, make_content
from tests.screens_page import PAGE, SHOWN, build_page, find_differences
from tests.stack import ROOT, RunningStack, free_port_base
from tests.terminal import Screen

pytestmark = pytest.mark.timeout(600)
FOLDER = ROOT / "build" / "screens"
Screens = Mapping[str, Screen]
# Beginnings of lines that people copy, so that the terminal may break them.
_COPIED = ("export ", "http://", "https://", "moyin")
# Moyin does not wrap what these print: answers of models, logs, scripts, JSON, CSV.
_RAW = ("chat", "demo", "logs gateway", "ray-env", "completion", "audit export", "batches results",
        "quality export")  # fmt: skip


@pytest.fixture(scope="module")
def environ(gateway: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yield the environment of the commands, with profiles of two tenants of their own."""
    variables = {
        **gateway.env,
        "XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("config")),
        "TZ": "UTC",
    }
    keys = [
        json.loads(screen.output)
        for screen in run_in_pipe(
            [["keys", "create", OWNER, "--scope", "*", "--name", "For the screens", "--json"],
             ["keys", "create", "newcomer", "--json"]],
            variables,
        )
    ]  # fmt: skip
    screen = run_command(
        "profiles", "add", OWNER, gateway.url,
        typed_inputs={b"API key: ": keys[0]["key"].encode() + b"\n"}, variables=variables,
    )  # fmt: skip
    assert screen.status == 0, screen.text
    assert f"{OWNER} is stored" in screen.text
    assert keys[0]["key"] not in screen.text, "the key is shown as it is typed"
    assert find_flaws(screen) == []
    path = find_profiles_file(variables)
    named_profiles = read_named_profiles(path)
    newcomer_profile = Profile(url=gateway.url, api_key=keys[1]["key"])
    profile_names = ("newcomer", "spare-first", "spare-second")
    profiles = {**named_profiles.profiles, **dict.fromkeys(profile_names, newcomer_profile)}
    write_named_profiles(path, replace(named_profiles, profiles=profiles))
    yield {**variables, "MOYIN_PROFILE": OWNER}
    run_in_pipe([["keys", "revoke", key["id"]] for key in keys], variables)


@pytest.fixture(scope="module")
def content(
    gateway: RunningStack, environ: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Sequence[Mapping[str, str]]:
    """Return the placeholders' values: first for commands in a terminal, then for those in pipes."""
    folder = tmp_path_factory.mktemp("content")
    profile = read_named_profiles(find_profiles_file(environ)).get(OWNER)
    return asyncio.run(make_content(gateway.url, profile.api_key, folder))


@pytest.fixture(scope="module")
def screens(content: Sequence[Mapping[str, str]], environ: Mapping[str, str]) -> Screens:
    """Return the screens of all commands in a terminal of eighty columns."""
    return run_commands("80", [line for line, _ in COMMANDS], content[0], environ, columns=80)


def test_every_command_has_a_screen() -> None:
    leaf_commands = {
        name for name, command in list_commands().items() if not hasattr(command, "commands")
    }
    assert leaf_commands - {find_command_name(line) for line, _ in COMMANDS} == ELSEWHERE


def test_screens_have_no_flaws(screens: Screens) -> None:
    problems = {
        line: screen_problems
        for line, status in COMMANDS
        if (screen_problems := find_problems(screens, line, status))
    }
    assert problems == {}, json.dumps(problems, indent=1)
    assert screens["status --memory"].has_colours


def test_empty_lists_say_so(environ: Mapping[str, str]) -> None:
    screens = run_commands("empty", list(EMPTY), {}, environ, columns=80)
    for line, expected_text in EMPTY.items():
        assert find_problems(screens, line, 1 if expected_text.startswith("error: ") else 0) == []
        assert expected_text in " ".join(screens[line].lines), screens[line].text


def test_commands_report_that_no_stack_runs(tmp_path: Path, gateway: RunningStack) -> None:
    port_base = free_port_base()
    variables = {
        **gateway.env,
        "MOYIN_DATA": str(tmp_path / "data"),
        "MOYIN_PORT_BASE": str(port_base),
        "MOYIN_URL": f"http://127.0.0.1:{port_base}",
        "MOYIN_API_KEY": "unused",
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    screens = run_commands("not-running", list(NOT_RUNNING), {}, variables, columns=80)
    for line, (status, expected_text) in NOT_RUNNING.items():
        assert find_problems(screens, line, status) == []
        assert expected_text in " ".join(screens[line].lines), screens[line].text


def test_json_option_prints_valid_json(
    content: Sequence[Mapping[str, str]], environ: Mapping[str, str]
) -> None:
    json_commands = {
        name
        for name, command in list_commands().items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    lines = [
        line
        for line, status in COMMANDS
        if status == 0 and find_command_name(line) in json_commands
    ]
    assert {find_command_name(line) for line in lines} == json_commands - FAILING - ELSEWHERE
    screens = run_commands(
        "json", [f"{line} --json" for line in lines], content[1], environ, with_errors=False
    )
    for line, screen in screens.items():
        assert screen.status == 0, (line, screen.text)
        output = screen.output.decode()
        documents = output.splitlines() if find_command_name(line) in LINES else [output]
        assert documents, line
        for document in documents:
            assert isinstance(json.loads(document), dict | list), line


def test_piped_tables_have_tabs_and_no_heading(
    content: Sequence[Mapping[str, str]], environ: Mapping[str, str]
) -> None:
    screens = run_commands("pipe", list(TABLES), content[1], environ)
    for line, column_count in TABLES.items():
        rows = screens[line].output.decode().splitlines()
        assert screens[line].status == 0, screens[line].text
        assert rows, line
        assert {row.count("\t") for row in rows} == {column_count - 1}, (line, rows)
        assert "\x1b" not in screens[line].text


def test_no_color_and_wide_terminals_are_honoured(
    content: Sequence[Mapping[str, str]], environ: Mapping[str, str]
) -> None:
    variables = {**environ, "NO_COLOR": "1"}
    lines = ["status", "models list", "jobs list", "artifacts list", "keys list"]
    screens = run_commands("120", lines, content[1], variables, columns=120)
    for line in lines:
        assert find_problems(screens, line, 0) == []
        assert not screens[line].has_colours, line
    assert "created (UTC)" in screens["artifacts list"].lines[0]


def test_a_render_shows_its_progress_to_the_end(screens: Screens) -> None:
    screen = screens["render {graph} -o {pictures}"]
    assert b"queued" in screen.output
    [progress_line] = [line for line in screen.lines if "100 %" in line]
    assert progress_line.split()[0] == "done"
    assert screen.lines[-1].strip().endswith(".png")


def test_deploy_shows_what_it_waits_for(environ: Mapping[str, str]) -> None:
    screen = run_command("deploy", variables=environ)
    assert screen.status == 0, screen.text
    assert b"deploying" in screen.output
    assert screen.lines[-1] == "serve_config.yaml is deployed"
    assert find_flaws(screen) == []
    [piped_screen] = run_in_pipe([["deploy", "--json"]], environ, with_errors=False)
    assert piped_screen.status == 0
    assert Path(json.loads(piped_screen.output)["deployed"]).name == "serve_config.yaml"


@pytest.mark.parametrize("command", ["comfyui connect", "connect ollama"])
def test_a_connector_ends_by_ctrl_c(command: str, environ: Mapping[str, str]) -> None:
    screen = run_command(
        *command.split(), "--port", "0", typed_inputs={b"stops it)": b"\x03"}, variables=environ
    )
    assert screen.status == 0, screen.text
    assert re.search(r"http://127\.0\.0\.1:\d+", " ".join(screen.lines))
    assert find_flaws(screen) == []


def test_following_a_log_ends_by_ctrl_c(environ: Mapping[str, str]) -> None:
    screen = run_command(
        "logs", "ray", "-n", "1", "--follow", typed_inputs={b"\n": b"\x03"}, variables=environ
    )
    assert screen.status == 130
    assert "Traceback" not in screen.text


def test_declined_deletion_keeps_all_jobs(
    content: Sequence[Mapping[str, str]], environ: Mapping[str, str]
) -> None:
    screen = run_command(
        "jobs", "delete", "--status", "succeeded",
        typed_inputs={b"[y/N]: ": b"n\n"}, variables=environ,
    )  # fmt: skip
    assert screen.status == 1
    assert re.search(r"\d+ jobs match\. Delete them\? \[y/N\]: n", screen.text)
    assert screen.lines[-1] == "Aborted."
    [job_screen] = run_in_pipe([["jobs", "show", content[1]["chat"]]], environ)
    assert job_screen.status == 0, job_screen.text


def test_screens_page_is_up_to_date(screens: Screens) -> None:
    page_screens = {line: screens[line] for line in SHOWN}
    if os.environ.get("MOYIN_SCREENSHOTS") == "1":
        PAGE.write_text(build_page(page_screens))
    assert find_differences(page_screens) == [], "MOYIN_SCREENSHOTS=1 writes the page anew"


def run_commands(
    name: str,
    lines: Sequence[str],
    placeholder_values: Mapping[str, str],
    environ: Mapping[str, str],
    *,
    columns: int = 0,
    with_errors: bool = True,
) -> dict[str, Screen]:
    """Run commands, and return their screens, by command line.

    Args:
        name: the name of the file in build/screens to which the screens are written.
        columns: the width of the terminal; 0 runs the commands in a pipe.
        with_errors: True if the screen of a command in a pipe contains its stderr.
    """
    argument_lists = [fill_placeholders(line, placeholder_values) for line in lines]
    if columns:
        screens = capture(argument_lists, columns=columns, variables=environ)
    else:
        screens = run_in_pipe(argument_lists, environ, with_errors=with_errors)
    assert len(screens) == len(lines)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.txt").write_text(
        "".join(
            f"{'=' * (columns or 80)}\n$ moyin {line}   # status {screen.status}\n{screen.text}\n"
            for line, screen in zip(lines, screens, strict=True)
        )
    )
    return dict(zip(lines, screens, strict=True))


def find_problems(screens: Screens, line: str, status: int) -> list[str]:
    """Return what is wrong with the screen of a command that should exit with this status."""
    screen = screens[line]
    problems = (
        []
        if find_command_name(line) in _RAW or line.startswith(_RAW)
        else find_flaws(screen, wide_line_prefixes=_COPIED)
    )
    if screen.status != status:
        problems.append(f"status {screen.status}: {screen.text[-1000:]}")
    if "unexpected " in screen.text:
        problems.append(screen.text)
    if not screen.text.strip():
        problems.append("nothing is shown")
    return problems
