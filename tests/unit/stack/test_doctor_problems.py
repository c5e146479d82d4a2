"""Makes the likeliest problems of a machine, and tests that `moyin doctor` names them with advice."""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from moyin.cli.main import run
from moyin.errors import StackError
from moyin.stack import apps, doctor
from moyin.stack.doctor import CheckResult, CheckVerdict
from moyin.stack.layout import Layout
from moyin.stack.options import Options
from tests.stack import free_port_base

CONFIG = """
applications:
  - name: models
    import_path: deployments.models.builder:build
    deployments:
      - name: Models
        user_config:
          backends:
            - {{name: local, type: llamacpp, server: {{gguf: {gguf}}}}}
            - {{name: claude, type: anthropic}}
            - {{name: other, type: openai, api_key_env: OTHER_KEY}}
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "serve_config.yaml"
    path.write_text(CONFIG.format(gguf=tmp_path / "model.gguf"))
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MOYIN_SERVE_CONFIG", str(path))
    for name in ("MOYIN_DATABASE_URL", "MOYIN_COMFYUI_HOME", "MOYIN_ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield path
    Layout(tmp_path / "data").remove_runtime_files()


def problem(check: CheckResult, verdict: CheckVerdict = CheckVerdict.FAIL) -> tuple[str, str]:
    assert check.verdict == verdict
    return check.found, check.advice


def test_taken_port() -> None:
    base = free_port_base()
    with socket.socket() as server:
        server.bind(("127.0.0.1", base))
        server.listen()
        options = Options.read({**os.environ, "MOYIN_PORT_BASE": str(base)})
        found, advice = problem(doctor._check_ports(options))
    assert found.startswith(f"port {base} (door) is in use by")
    assert advice == "stop it, set MOYIN_PORT_DOOR, or move all ports with MOYIN_PORT_BASE"


def test_data_folder_in_the_place_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "file"))
    _, advice = problem(doctor._check_folder(Options.read()))
    assert "set MOYIN_DATA" in advice


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100 * 2**20))
    options = Options.read()
    found, advice = problem(doctor._check_folder(options))
    assert "free some space" in f"{found} {advice}"
    assert "free some space" in problem(doctor._check_disk(options), CheckVerdict.WARN)[1]


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=2**30, total=2 * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    found, advice = problem(doctor._check_memory(), CheckVerdict.WARN)
    assert found == "1.0 GiB of 2.0 GiB available"
    assert "stop other programs" in advice


def test_missing_comfyui() -> None:
    _, advice = problem(doctor._check_comfyui(Options.read()), CheckVerdict.WARN)
    assert "run `moyin comfyui install`" in advice


def test_broken_app_configuration(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("applications: [")
    found, advice = problem(doctor._check_serve_config(Options.read()))
    assert found == f"{config} is not valid"
    assert advice


def test_missing_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    found, advice = problem(doctor._check_model_keys(Options.read()), CheckVerdict.WARN)
    assert found == "missing for claude (ANTHROPIC_API_KEY), other (OTHER_KEY)"
    assert "set the variable before `moyin up`" in advice
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("OTHER_KEY", "k")
    assert doctor._check_model_keys(Options.read()).verdict == CheckVerdict.OK


def test_missing_model_file(tmp_path: Path) -> None:
    found, advice = problem(doctor._check_model_files(Options.read()))
    assert found == f"{tmp_path / 'model.gguf'} is missing"
    assert "put the file there" in advice
    (tmp_path / "model.gguf").touch()
    assert doctor._check_model_files(Options.read()).verdict == CheckVerdict.OK


def test_other_version_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._check_ray().verdict == CheckVerdict.OK
    monkeypatch.setattr(metadata, "version", lambda _: "2.9.3")
    found, advice = problem(doctor._check_ray())
    assert found == "2.9.3, but Moyin needs 2.60"
    assert "install requirements.lock" in advice


def test_ray_of_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").write_text("#!/bin/sh")
    (tmp_path / "ray").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/elsewhere/bin/python")
    found, advice = problem(doctor._check_ray(), CheckVerdict.WARN)
    assert str(tmp_path / "ray") in found
    assert "in one environment" in advice


def test_clock_that_went_back() -> None:
    options = Options.read()
    options.layout.prepare()
    assert doctor._check_clock(options).verdict == CheckVerdict.OK
    log = options.layout.get_log_path("ray")
    log.touch()
    os.utime(log, (time.time() + 7200,) * 2)
    found, advice = problem(doctor._check_clock(options))
    assert "s behind the files of the last run" in found
    assert "timedatectl set-ntp true" in advice


def test_database_of_a_newer_version() -> None:
    options = Options.read()
    options.layout.prepare()
    assert doctor._check_database(options).found == "`moyin up` migrates it"
    with closing(sqlite3.connect(options.layout.data / "moyin.db")) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
        connection.commit()
    found, advice = problem(doctor._check_database(options))
    assert found.startswith("revision 9999 is newer")
    assert "update Moyin" in advice


def test_shared_database_that_is_not_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite3.connect(tmp_path / "shared.db").close()
    (tmp_path / "shared.db").touch()
    monkeypatch.setenv("MOYIN_DATABASE_URL", f"sqlite:///{tmp_path / 'shared.db'}")
    assert problem(doctor._check_database(Options.read()))[1] == "run `moyin migrate`"


def test_unreachable_database(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql+asyncpg://moyin@127.0.0.1:{free_port_base()}/moyin"
    monkeypatch.setenv("MOYIN_DATABASE_URL", url)
    found, advice = problem(doctor._check_database(Options.read()))
    assert found.startswith("cannot be read")
    assert "MOYIN_DATABASE_URL" in advice


def test_command_prints_the_advice_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> Path:
        raise StackError("allow user namespaces")

    monkeypatch.setattr(doctor, "require_confinement", refuse)
    # Another test checks the configuration in a process of its own, which imports Ray.
    monkeypatch.setattr(apps, "find_config_problems", lambda _: [])
    assert run(["doctor"]) == 1
    rows = {line.split("\t")[1]: line.split("\t") for line in capsys.readouterr().out.splitlines()}
    assert rows["model files"][0] == "fail"
    assert "put the file there" in rows["model files"][3]
    assert rows["isolation"][3] == "allow user namespaces"
