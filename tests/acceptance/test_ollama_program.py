"""Tests `ollama` and other programs that send no key, through ``moyin connect ollama``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.ollama_gateway import SOON
from tests.ollama_server import CHAT, TOOLS, OllamaServer
from tests.waiting import eventually_blocking

pytestmark = pytest.mark.timeout(900)
Program = Callable[..., str]


@pytest.fixture
def ollama_program(ollama_server: OllamaServer, ollama_relay: str) -> Program:
    def run(*arguments: str) -> str:
        return ollama_server.run(*arguments, OLLAMA_HOST=ollama_relay)

    return run


def test_models_are_listed(ollama_program: Program, ollama_server: OllamaServer) -> None:
    server_lines = ollama_server.run("list").splitlines()
    listed_lines = ollama_program("list").splitlines()
    assert {line.split()[0] for line in listed_lines} >= {"NAME", f"{CHAT}:latest", TOOLS}
    # Name, digest and size as on the host.
    assert {tuple(line.split()[:4]) for line in server_lines} <= {
        tuple(line.split()[:4]) for line in listed_lines
    }


def test_model_is_shown(ollama_program: Program, ollama_server: OllamaServer) -> None:
    server_lines = ollama_server.run("show", CHAT).splitlines()
    # The parameters come in another order every time.
    assert sorted(ollama_program("show", CHAT).splitlines()) == sorted(server_lines)
    assert "tools" in ollama_program("show", TOOLS)


def test_a_model_is_run_listed_and_stopped(
    ollama_program: Program, ollama_server: OllamaServer
) -> None:
    for name in (CHAT, f"{CHAT}:latest"):
        assert ollama_program("run", name, "Say hello.").strip()
    eventually_blocking(lambda: f"{CHAT}:latest" in ollama_program("ps"), SOON)
    server_row = ollama_server.run("ps").splitlines()[1].split()
    # The gateway also lists the model that shares its weights, before or after it.
    rows = [line.split() for line in ollama_program("ps").splitlines()]
    [listed_row] = [row for row in rows if row[0] == f"{CHAT}:latest"]
    assert listed_row[:4] == server_row[:4]
    ollama_program("stop", CHAT)
    eventually_blocking(lambda: not ollama_server.run("ps").splitlines()[1:])
    eventually_blocking(lambda: CHAT not in ollama_program("ps"), SOON)


def test_the_alias_auto_is_run(ollama_program: Program) -> None:
    assert ollama_program("run", "auto", "Say hello.").strip()


def test_model_is_pulled(ollama_program: Program) -> None:
    ollama_program("pull", CHAT)
    with pytest.raises(AssertionError, match="a-model-that-nobody-has"):
        ollama_program("run", "a-model-that-nobody-has", "Hi")


def test_models_are_copied_created_and_removed(
    ollama_program: Program, ollama_server: OllamaServer
) -> None:
    ollama_program("cp", CHAT, "copied")
    assert "copied:latest" in ollama_program("list")
    ollama_program("rm", "copied")
    assert "copied:latest" not in ollama_program("list") + ollama_server.run("list")
