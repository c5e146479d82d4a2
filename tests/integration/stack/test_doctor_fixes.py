"""Tests that `moyin doctor --fix` mends real problems, and then finds none."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from moyin.domain.stored_file import BATCH_INPUT, StoredFile
from moyin.render.comfyui.bubblewrap import find_bubblewraps
from moyin.render.comfyui.install import ComfyUI
from moyin.settings import Settings
from moyin.stack.doctor import databases
from moyin.stack.doctor.result import CheckVerdict
from moyin.stack.layout import Layout
from moyin.stack.options import Options
from moyin.stack.ports import Ports, store_ports
from moyin.stack.profile import read_profile
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.sql import Database, get_newest_revision, migrate, now
from tests.integration.access.fixtures import Postgres, postgres
from tests.integration.servers import ValkeyServer
from tests.integration.stack.doctor_command import (
    list_fixed_checks,
    list_problem_checks,
    run_doctor,
)
from tests.stack import ROOT

__all__ = ["postgres"]

pytestmark = pytest.mark.timeout(300)
_MIB = 2**20


@pytest.fixture
def doctor_environ(environ: dict[str, str], comfyui: ComfyUI) -> dict[str, str]:
    """Return environment variables that name the installed ComfyUI, so that no fix installs one.

    They also keep uv from changing the Python environment that runs the tests.
    """
    environ["MOYIN_COMFYUI_HOME"] = str(comfyui.home)
    environ["MOYIN_COMFYUI_PYTHON"] = str(comfyui.python)
    environ["UV_NO_INDEX"] = "1"
    return environ


def test_damage_by_a_power_failure_is_mended_in_one_run(
    doctor_environ: dict[str, str], tmp_path: Path
) -> None:
    environ = doctor_environ
    layout = Layout(tmp_path / "data")
    layout.prepare()
    # The ports of an earlier fix, since others may use the default ports.
    ports = Ports.read({}, base=int(environ.pop("MOYIN_PORT_BASE")))
    store_ports(layout.ports, dict(ports.items()))
    first_key_command = [sys.executable, "-m", "moyin.stack.first_key"]
    subprocess.run(first_key_command, env=environ, cwd=ROOT, check=True, timeout=100)
    layout.profile.write_bytes(b"\0" * 100)
    (layout.data / "secret").write_bytes(b"")
    layout.ray_token.write_text("token")
    layout.ray_token.chmod(0o644)
    damaged_file = write_damaged_valkey_data(layout.valkey)
    damaged_bytes = damaged_file.read_bytes()
    server_command = [sys.executable, "-c", SERVER.format(port=ports.valkey)]
    stack_environ = {**environ, "MOYIN_STACK": str(layout.data)}
    leftover_process = subprocess.Popen(server_command, env=stack_environ, stdout=subprocess.PIPE)
    assert leftover_process.stdout is not None
    assert leftover_process.stdout.readline() == b"listens\n"
    try:
        with socket.socket() as foreign_server:
            foreign_server.bind(("127.0.0.1", ports.door))
            foreign_server.listen()
            status, checks = run_doctor(environ)
            problem_names = {
                "api key", "signing key", "secret files", "valkey data", "processes", "ports"
            }  # fmt: skip
            assert (status, list_problem_checks(checks, mendable=True)) == (1, problem_names)
            assert f"{ports.door} (door) is in use by" in checks["ports"]["found"]
            assert f"python ({leftover_process.pid})" in checks["processes"]["found"].replace(
                "python3", "python"
            )
            assert leftover_process.poll() is None, "only --fix changes anything"
            status, checks = run_doctor(environ, "--fix")
            assert list_fixed_checks(checks) == problem_names
            assert (status, list_failed_checks(checks)) == (0, set())
            status, checks = run_doctor(environ)
            assert (status, list_problem_checks(checks) & problem_names) == (0, set())
        assert leftover_process.wait(10) == -signal.SIGTERM
    finally:
        leftover_process.kill()
        leftover_process.wait()
        leftover_process.stdout.close()
    assert layout.ray_token.stat().st_mode & 0o777 == 0o600
    assert read_profile(layout.profile, {}).api_key.startswith("moyin_")
    stored_ports = layout.ports.read_text()
    assert f"door = {ports.door}\n" not in stored_ports
    # The left-over process has ended, so that its port is free.
    assert f"valkey = {ports.valkey}\n" in stored_ports
    copied_file = layout.valkey / "appendonlydir.broken" / damaged_file.name
    assert copied_file.read_bytes() == damaged_bytes
    valkey = ValkeyServer(layout.valkey, durable=True)
    try:
        with redis.Redis.from_url(valkey.url) as client:
            assert client.get("before") == b"kept"
    finally:
        valkey.kill()


SERVER = """
import socket, time
server = socket.create_server(("127.0.0.1", {port}))
print("listens", flush=True)
time.sleep(600)
"""


def write_damaged_valkey_data(folder: Path) -> Path:
    """Write data with a real Valkey, then append zeros as a power failure may leave them.

    Returns:
        The path of the damaged file.
    """
    server = ValkeyServer(folder, durable=True)
    with redis.Redis.from_url(server.url) as client:
        client.set("before", "kept")
        client.shutdown(save=False)
    server.kill()
    [path] = (folder / "appendonlydir").glob("*.incr.aof")
    with path.open("ab") as file:
        file.write(b"\0" * 4096)
    return path


def test_files_that_their_owner_may_not_write_are_mended(
    doctor_environ: dict[str, str], tmp_path: Path
) -> None:
    """Without root's rights, the doctor restores the owner's access to files whose mode denies it."""
    environ = doctor_environ
    layout = Layout(tmp_path / "data")
    layout.prepare()
    first_key_command = [sys.executable, "-m", "moyin.stack.first_key"]
    subprocess.run(first_key_command, env=environ, cwd=ROOT, check=True, timeout=100)
    # As after `cp -r` of a backup that is read-only.
    (layout.data / "moyin.db").chmod(0o400)
    layout.temporal_db.touch(0o400)
    layout.temporal_db.parent.chmod(0)
    layout.run.chmod(0o500)
    sandbox_command = [*list_sandbox_options(), "--"]
    status, checks = run_doctor(environ, sandbox_command=sandbox_command)
    assert (status, checks["data folder"]["verdict"]) == (1, "fail")
    finding = checks["data folder"]["found"]
    for path in (layout.data / "moyin.db", layout.run, layout.temporal_db.parent):
        assert str(path) in finding
    assert "the mode denies its owner" in finding
    status, checks = run_doctor(environ, "--fix", sandbox_command=sandbox_command)
    assert list_fixed_checks(checks) == {"data folder"}
    assert checks["database"]["verdict"] == "ok", "the other checks follow"
    status, checks = run_doctor(environ, sandbox_command=sandbox_command)
    assert checks["data folder"]["verdict"] == "ok"
    assert layout.temporal_db.stat().st_mode & 0o777 == 0o600
    assert (layout.data / "moyin.db").stat().st_mode & 0o777 == 0o600


async def test_full_disk_is_relieved_of_old_logs_and_expired_files(
    doctor_environ: dict[str, str], tmp_path: Path
) -> None:
    environ = doctor_environ
    prepared_folder = tmp_path / "prepared"
    settings = Settings(data=prepared_folder)
    kept_digest, expired_digest = await asyncio.to_thread(prepare_files, settings)
    for path in ("ray/session.log", "valkey.log.1", "valkey.log"):
        (prepared_folder / "logs" / path).parent.mkdir(parents=True, exist_ok=True)
        (prepared_folder / "logs" / path).write_bytes(os.urandom(16 * _MIB))
    data_folder = tmp_path / "data"
    data_folder.mkdir()
    size_bytes = 5 * 1024 * _MIB + 40 * _MIB
    doctor_command = f"{shlex.quote(sys.executable)} -m moyin.cli.main doctor --json"
    script = f"cp -a {prepared_folder}/. {data_folder}; " + "; ".join(
        f"{doctor_command} {option} > {tmp_path}/{name}"
        for name, option in (("before", ""), ("fix", "--fix"), ("after", ""))
    )
    script += f"; cd {data_folder} && find . -type f > {tmp_path}/files"
    command = [
        *list_sandbox_options(), "--size", str(size_bytes), "--tmpfs", str(data_folder), "--", "sh", "-c", script
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command, env=environ, cwd=ROOT)
    assert await process.wait() == 0
    checks_before, fix_checks, checks_after = (
        {check["name"]: check for check in json.loads((tmp_path / name).read_text())}
        for name in ("before", "fix", "after")
    )
    assert (checks_before["disk"]["verdict"], checks_before["disk"]["found"]) == (
        "warn",
        "5.0 GiB free",
    )
    assert "delete logs of earlier runs (33.6 MB)" in checks_before["disk"]["fix"]
    assert list_fixed_checks(fix_checks) == {"disk"}
    assert checks_after["disk"]["verdict"] == "ok"
    file_list = (tmp_path / "files").read_text()
    assert "./logs/valkey.log\n" in file_list
    assert "./logs/valkey.log.1\n" not in file_list
    assert "session.log" not in file_list
    assert (kept_digest in file_list, expired_digest in file_list) == (True, False)


def prepare_files(settings: Settings) -> tuple[str, str]:
    """Store two files of a tenant, and return the hash of each; the second expired long ago."""

    async def store_files() -> list[str]:
        database, blobs = Database(settings.sql_url), BlobStore(settings.blobs_url)
        await database.ensure_schema()
        three_days_ago = now() - timedelta(days=3)
        digests = []
        for name, expires_at in (("kept", None), ("expired", three_days_ago)):
            digest = await blobs.put(name.encode())
            file = StoredFile(
                id=name,
                owner="ada",
                purpose=BATCH_INPUT,
                filename=name,
                media_type="text/plain",
                size=len(name),
                sha256=digest,
                created_at=three_days_ago,
                expires_at=expires_at,
            )
            await FileStore(database).add(file)
            digests.append(digest)
        await database.close()
        for path in (settings.data / "artifacts").rglob("*"):
            os.utime(path, (three_days_ago.timestamp(),) * 2)
        return digests

    kept_digest, expired_digest = asyncio.run(store_files())
    return kept_digest, expired_digest


def test_postgresql_of_an_older_version_is_migrated(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = postgres.url(postgres.create_database())
    monkeypatch.setenv("MOYIN_DATABASE_URL", url)
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path))
    options = Options.read()
    check = databases.check_database(options)
    assert (check.verdict, bool(check.fix)) == (CheckVerdict.FAIL, True)
    assert check.found.startswith("has no tables yet")
    migrate(url, "0024")
    check = databases.check_database(options)
    assert check.found.startswith("at revision 0024; this Moyin needs")
    databases.migrate_database(options)
    check = databases.check_database(options)
    assert (check.verdict, check.found) == (CheckVerdict.OK, f"revision {get_newest_revision()}")


def list_failed_checks(checks: Mapping[str, Any]) -> set[str]:
    return {name for name, check in checks.items() if check["verdict"] == "fail"}


def list_sandbox_options() -> list[str]:
    """Return the beginning of a command line that runs a command without root's rights."""
    assert shutil.which("sh")
    return [
        str(find_bubblewraps()[0]), "--bind", "/", "/", "--dev-bind", "/dev", "/dev",
        "--cap-drop", "ALL", *(() if os.geteuid() == 0 else ("--unshare-user",)),
    ]  # fmt: skip
