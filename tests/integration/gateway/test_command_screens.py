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
# What these print is not ours to wrap: answers of models, logs, scripts, JSON, CSV.
_RAW = ("chat", "demo", "logs gateway", "ray-env", "completion", "audit export", "batches results",
        "quality export")  # fmt: skip


@pytest.fixture(scope="module")
def environ(gateway: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The environment of the commands, whose profiles are of two tenants that only they use."""
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
        typed={b"API key: ": keys[0]["key"].encode() + b"\n"}, variables=variables,
    )  # fmt: skip
    assert screen.status == 0, screen.text
    assert f"{OWNER} is stored" in screen.text
    assert keys[0]["key"] not in screen.text, "the key is shown as it is typed"
    assert find_flaws(screen) == []
    path = find_profiles_file(variables)
    named = read_named_profiles(path)
    newcomer = Profile(url=gateway.url, api_key=keys[1]["key"])
    names = ("newcomer", "spare-first", "spare-second")
    profiles = {**named.profiles, **dict.fromkeys(names, newcomer)}
    write_named_profiles(path, replace(named, profiles=profiles))
    yield {**variables, "MOYIN_PROFILE": OWNER}
    run_in_pipe([["keys", "revoke", key["id"]] for key in keys], variables)


@pytest.fixture(scope="module")
def content(
    gateway: RunningStack, environ: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Sequence[Mapping[str, str]]:
    """The values of the placeholders of the commands for the terminal, and for JSON."""
    folder = tmp_path_factory.mktemp("content")
    profile = read_named_profiles(find_profiles_file(environ)).get(OWNER)
    return asyncio.run(make_content(gateway.url, profile.api_key, folder))


@pytest.fixture(scope="module")
def screens(content: Sequence[Mapping[str, str]], environ: Mapping[str, str]) -> Screens:
    """The screens of all commands in a terminal of eighty columns."""
    return run_all("80", [line for line, _ in COMMANDS], content[0], environ, columns=80)


def test_every_command_has_a_screen() -> None:
    leaves = {name for name, command in list_commands().items() if not hasattr(command, "commands")}
    assert leaves - {find_command_name(line) for line, _ in COMMANDS} == ELSEWHERE


def test_screens_are_whole(screens: Screens) -> None:
    problems = {
        line: found for line, status in COMMANDS if (found := find_problems(screens, line, status))
    }
    assert problems == {}, json.dumps(problems, indent=1)
    assert screens["status --memory"].has_colours


def test_empty_lists_say_so(environ: Mapping[str, str]) -> None:
    empty = run_all("empty", list(EMPTY), {}, environ, columns=80)
    for line, words in EMPTY.items():
        assert find_problems(empty, line, 1 if words.startswith("error: ") else 0) == []
        assert words in " ".join(empty[line].lines), empty[line].text


def test_a_stack_that_does_not_run(tmp_path: Path, gateway: RunningStack) -> None:
    base = free_port_base()
    variables = {
        **gateway.env,
        "MOYIN_DATA": str(tmp_path / "data"),
        "MOYIN_PORT_BASE": str(base),
        "MOYIN_URL": f"http://127.0.0.1:{base}",
        "MOYIN_API_KEY": "unused",
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    found = run_all("not-running", list(NOT_RUNNING), {}, variables, columns=80)
    for line, (status, words) in NOT_RUNNING.items():
        assert find_problems(found, line, status) == []
        assert words in " ".join(found[line].lines), found[line].text


def test_json_is_json(content: Sequence[Mapping[str, str]], environ: Mapping[str, str]) -> None:
    with_json = {
        name
        for name, command in list_commands().items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    lines = [
        line for line, status in COMMANDS if status == 0 and find_command_name(line) in with_json
    ]
    assert {find_command_name(line) for line in lines} == with_json - FAILING - ELSEWHERE
    found = run_all(
        "json", [f"{line} --json" for line in lines], content[1], environ, with_errors=False
    )
    for line, screen in found.items():
        assert screen.status == 0, (line, screen.text)
        output = screen.output.decode()
        documents = output.splitlines() if find_command_name(line) in LINES else [output]
        assert documents, line
        for document in documents:
            assert isinstance(json.loads(document), dict | list), line


def test_piped_tables_have_tabs_and_no_heading(
    content: Sequence[Mapping[str, str]], environ: Mapping[str, str]
) -> None:
    found = run_all("pipe", list(TABLES), content[1], environ)
    for line, columns in TABLES.items():
        rows = found[line].output.decode().splitlines()
        assert found[line].status == 0, found[line].text
        assert rows, line
        assert {row.count("\t") for row in rows} == {columns - 1}, (line, rows)
        assert "\x1b" not in found[line].text


def test_no_colours_and_a_wider_terminal(
    content: Sequence[Mapping[str, str]], environ: Mapping[str, str]
) -> None:
    variables = {**environ, "NO_COLOR": "1"}
    lines = ["status", "models list", "jobs list", "artifacts list", "keys list"]
    found = run_all("120", lines, content[1], variables, columns=120)
    for line in lines:
        assert find_problems(found, line, 0) == []
        assert not found[line].has_colours, line
    assert "created (UTC)" in found["artifacts list"].lines[0]


def test_a_render_shows_its_progress_to_the_end(screens: Screens) -> None:
    screen = screens["render {graph} -o {pictures}"]
    assert b"queued" in screen.output
    [bar] = [line for line in screen.lines if "100 %" in line]
    assert bar.split()[0] == "done"
    assert screen.lines[-1].strip().endswith(".png")


def test_deploy_shows_what_it_waits_for(environ: Mapping[str, str]) -> None:
    screen = run_command("deploy", variables=environ)
    assert screen.status == 0, screen.text
    assert b"deploying" in screen.output
    assert screen.lines[-1] == "serve_config.yaml is deployed"
    assert find_flaws(screen) == []
    [piped] = run_in_pipe([["deploy", "--json"]], environ, with_errors=False)
    assert piped.status == 0
    assert Path(json.loads(piped.output)["deployed"]).name == "serve_config.yaml"


@pytest.mark.parametrize("command", ["comfyui connect", "connect ollama"])
def test_a_connector_ends_by_ctrl_c(command: str, environ: Mapping[str, str]) -> None:
    screen = run_command(
        *command.split(), "--port", "0", typed={b"stops it)": b"\x03"}, variables=environ
    )
    assert screen.status == 0, screen.text
    assert re.search(r"http://127\.0\.0\.1:\d+", " ".join(screen.lines))
    assert find_flaws(screen) == []


def test_following_a_log_ends_by_ctrl_c(environ: Mapping[str, str]) -> None:
    screen = run_command(
        "logs", "ray", "-n", "1", "--follow", typed={b"\n": b"\x03"}, variables=environ
    )
    assert screen.status == 130
    assert "Traceback" not in screen.text


def test_deletion_asks_and_no_keeps_everything(
    content: Sequence[Mapping[str, str]], environ: Mapping[str, str]
) -> None:
    screen = run_command(
        "jobs", "delete", "--status", "succeeded",
        typed={b"[y/N]: ": b"n\n"}, variables=environ,
    )  # fmt: skip
    assert screen.status == 1
    assert re.search(r"\d+ jobs match\. Delete them\? \[y/N\]: n", screen.text)
    assert screen.lines[-1] == "Aborted."
    [kept] = run_in_pipe([["jobs", "show", content[1]["chat"]]], environ)
    assert kept.status == 0, kept.text


def test_the_page_shows_the_screens_of_today(screens: Screens) -> None:
    shown = {line: screens[line] for line in SHOWN}
    if os.environ.get("MOYIN_SCREENSHOTS") == "1":
        PAGE.write_text(build_page(shown))
    assert find_differences(shown) == [], "MOYIN_SCREENSHOTS=1 writes the page anew"


def run_all(
    name: str,
    lines: Sequence[str],
    known: Mapping[str, str],
    environ: Mapping[str, str],
    *,
    columns: int = 0,
    with_errors: bool = True,
) -> dict[str, Screen]:
    """Run commands in a terminal, or without columns in a pipe, and keep their screens."""
    calls = [fill_placeholders(line, known) for line in lines]
    if columns:
        found = capture(calls, columns=columns, variables=environ)
    else:
        found = run_in_pipe(calls, environ, with_errors=with_errors)
    assert len(found) == len(lines)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.txt").write_text(
        "".join(
            f"{'=' * (columns or 80)}\n$ moyin {line}   # status {screen.status}\n{screen.text}\n"
            for line, screen in zip(lines, found, strict=True)
        )
    )
    return dict(zip(lines, found, strict=True))


def find_problems(screens: Screens, line: str, status: int) -> list[str]:
    """Return what is wrong with the screen of a command that should exit with this status."""
    screen = screens[line]
    problems = (
        []
        if find_command_name(line) in _RAW or line.startswith(_RAW)
        else find_flaws(screen, copied=_COPIED)
    )
    if screen.status != status:
        problems.append(f"status {screen.status}: {screen.text[-1000:]}")
    if "unexpected " in screen.text:
        problems.append(screen.text)
    if not screen.text.strip():
        problems.append("nothing is shown")
    return problems
