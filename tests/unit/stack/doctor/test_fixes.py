"""Tests that `moyin doctor` finds and mends problems, and reports none afterwards.

Fixes that need a server, a sandbox or an installation are in
tests/integration/stack/test_doctor_fixes.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.stack.doctor import checkup, data, databases, services
from moyin.stack.doctor.result import CheckResult, CheckVerdict
from moyin.stack.first_key import create_first_key
from moyin.stack.options import Options
from moyin.stack.ports import Ports, store_ports
from moyin.stack.profile import read_profile
from moyin.stack.state import SupervisorLock
from moyin.store.audit import AuditFilter, AuditLog
from moyin.store.keys import KeyStore
from moyin.store.signing_keys import SigningKeyStore
from moyin.store.sql import Database, get_newest_revision, migrate
from tests.stack import free_port_base
from tests.unit.stack.doctor.results import expect_problem, mend_problem


def test_ports_in_use_are_replaced_by_free_ones() -> None:
    layout = Options.read().layout
    layout.prepare()
    ports = Ports.read({}, base=free_port_base())
    # Like an earlier fix, so that the test does not depend on the default ports.
    store_ports(layout.ports, dict(ports.items()))
    options = Options.read()
    assert options.ports == ports
    with socket.socket() as gcs_socket, socket.socket() as door_socket:
        for server, port in ((gcs_socket, ports.gcs), (door_socket, ports.door)):
            server.bind(("127.0.0.1", port))
            server.listen()
        result = services.check_ports(options)
        finding, _ = expect_problem(result)
        assert finding.startswith(f"port {ports.door} (door) is in use by")
        assert result.fix.startswith("take free ports instead: ")
        result = mend_problem(options, "ports")
        assert (result.verdict, result.fixed) == (CheckVerdict.OK, True)
        moved_options = Options.read()
        assert services.check_ports(moved_options).verdict == CheckVerdict.OK
        changed_names = {
            name for name, port in moved_options.ports.items() if port != getattr(ports, name)
        }
        assert changed_names == {"gcs", "door"}
        assert moved_options.settings.door == f"http://127.0.0.1:{moved_options.ports.door}"
        assert gcs_socket.fileno() != -1, "the other program is spared"


def test_ports_that_the_environment_sets_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    port_base = free_port_base()
    monkeypatch.setenv("MOYIN_PORT_BASE", str(port_base))
    options = Options.read()
    options.layout.prepare()
    with socket.socket() as server:
        server.bind(("127.0.0.1", port_base))
        server.listen()
        result = services.check_ports(options)
    assert (expect_problem(result)[1].startswith("stop that process"), result.fix) == (True, "")
    store_ports(options.layout.ports, {"door": port_base + 1})
    assert Options.read().ports.door == port_base


def test_files_with_secrets_are_made_private(tmp_path: Path) -> None:
    options = Options.read()
    options.layout.prepare()
    options.layout.ray_token.write_text("token")
    options.layout.ray_token.chmod(0o644)
    options.layout.profile.touch(0o600)
    finding, advice = expect_problem(data.check_secret_files(options), CheckVerdict.WARN)
    assert finding == f"{options.layout.ray_token} is open to other users"
    assert advice == f"run `chmod 600 {options.layout.ray_token}`"
    result = mend_problem(options, "secret files")
    assert (result.verdict, result.fixed) == (CheckVerdict.OK, True)
    assert options.layout.ray_token.stat().st_mode & 0o777 == 0o600


def test_revoked_key_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options.read()
    options.layout.prepare()
    assert data.check_api_key(options).found == "`moyin up` makes the first one"
    asyncio.run(create_first_key(options.settings))
    assert data.check_api_key(options).found == "valid"
    profile_before = read_profile(options.layout.profile, {})
    asyncio.run(revoke(options, profile_before.api_key))
    finding, advice = expect_problem(data.check_api_key(options))
    assert finding == f"the key in {options.layout.profile} is unknown, expired or revoked"
    assert "moyin keys create admin" in advice
    result = mend_problem(options, "api key")
    assert (result.found, result.fixed) == ("valid", True)
    profile_after = read_profile(options.layout.profile, {})
    assert (profile_after.url, profile_after.api_key != profile_before.api_key) == (
        profile_before.url,
        True,
    )
    assert options.layout.profile.stat().st_mode & 0o777 == 0o600

    asyncio.run(revoke(options, profile_after.api_key))
    foreign_profile = options.layout.profile.read_text().replace(
        profile_after.url, "https://farm.example"
    )
    options.layout.profile.write_text(foreign_profile)
    result = mend_problem(options, "api key")
    assert (result.verdict, result.fixed) == (CheckVerdict.FAIL, False)
    assert "the key of another gateway" in result.advice
    assert options.layout.profile.read_text() == foreign_profile

    monkeypatch.setenv("MOYIN_API_KEY", profile_before.api_key)
    result = data.check_api_key(options)
    assert expect_problem(result)[0] == "MOYIN_API_KEY is not a valid key of this stack"
    assert not result.fix, "a variable of the shell cannot be mended"


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\xff\xfe", b'url = "http://127'], ids=range(4)
)
def test_damaged_profile_is_set_aside_and_a_key_is_created(content: bytes) -> None:
    options = Options.read()
    options.layout.prepare()
    asyncio.run(create_first_key(options.settings))
    profile = options.layout.profile
    profile.write_bytes(content)
    if not content:
        # As before the first start: `moyin up` makes the key.
        assert data.check_api_key(options).found == "`moyin up` makes the first one"
        return
    finding, advice = expect_problem(data.check_api_key(options))
    assert finding == f"{profile} cannot be read"
    assert "correct or delete the file" in advice
    result = mend_problem(options, "api key")
    assert (result.found, result.fixed) == ("valid", True)
    assert profile.with_name("profile.toml.broken").read_bytes() == content
    assert read_profile(profile, {}).url == options.settings.door
    assert profile.stat().st_mode & 0o777 == 0o600


def test_empty_signing_key_is_replaced() -> None:
    options = Options.read()
    options.layout.prepare()
    path = options.layout.data / "secret"
    path.write_bytes(b"\0" * 64)
    path.chmod(0o600)
    with pytest.raises(StackError, match="is empty: `moyin doctor --fix` makes a new key"):
        options.settings.signing_key()
    finding, _ = expect_problem(data.check_signing_key(options))
    assert finding.startswith(f"{path} is empty")
    lock = SupervisorLock(options.layout.lock)
    lock.acquire()
    try:
        assert not data.check_signing_key(options).fix, (
            "the apps of a running stack have the old key"
        )
    finally:
        lock.release()
    result = mend_problem(options, "signing key")
    assert (result.verdict, result.fixed) == (CheckVerdict.OK, True)
    signing_key = path.read_bytes()
    assert len(signing_key) == 64
    assert signing_key.strip(b"\0") == signing_key == options.settings.signing_key()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("is_missing", [True, False])
async def test_key_pair_of_another_signing_key_is_replaced(is_missing: bool) -> None:
    """The key pair is encrypted with another key if a database was restored without the file `secret`."""
    options = Options.read()
    options.layout.prepare()
    await create_first_key(options.settings)
    assert (await run_check(data.check_signing_key, options)).verdict == CheckVerdict.OK
    database = Database(options.settings.sql_url)
    old_pair = await SigningKeyStore(database, options.settings.signing_key()).get_newest()
    path = options.layout.data / "secret"
    path.unlink()
    if not is_missing:
        options.settings.signing_key()
    finding, _ = expect_problem(await run_check(data.check_signing_key, options))
    assert finding.startswith("people cannot sign in: the database was used with another key")
    assert finding.endswith("which is missing") == is_missing
    result = await asyncio.to_thread(mend_problem, options, "signing key")
    assert (result.verdict, result.fixed) == (CheckVerdict.OK, True)
    new_pair = await SigningKeyStore(database, options.settings.signing_key()).get_newest()
    public_keys = await SigningKeyStore(database).list_public_keys()
    audit_entry = (await AuditLog(database).list_entries(AuditFilter(), limit=1))[0]
    await database.close()
    assert [key.kid for key in public_keys] == [new_pair.kid, old_pair.kid]
    assert (audit_entry.event.action, audit_entry.event.target) == (
        "signing_key.create",
        new_pair.kid,
    )


def run_check(check: Callable[[Options], CheckResult], options: Options) -> Awaitable[CheckResult]:
    """Run a check in a thread, because it starts an event loop of its own."""
    return asyncio.to_thread(check, options)


def test_older_schema_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    migrate(url, "0024")
    with closing(sqlite3.connect(tmp_path / "shared.db")) as connection:
        connection.execute(
            "INSERT INTO users (id, kind, name, profile, created_at) "
            "VALUES ('u1', 'player', 'Ada', '{}', '2026-01-01')"
        )
        connection.commit()
    monkeypatch.setenv("MOYIN_DATABASE_URL", url)
    options = Options.read()
    options.layout.prepare()
    finding, advice = expect_problem(databases.check_database(options))
    assert finding == f"at revision 0024; this Moyin needs revision {get_newest_revision()}"
    assert advice == "stop older Moyins that use it, then run `moyin migrate`"
    result = mend_problem(options, "database")
    assert (result.found, result.fixed) == (f"revision {get_newest_revision()}", True)
    with closing(sqlite3.connect(tmp_path / "shared.db")) as connection:
        assert connection.execute("SELECT name FROM users").fetchall() == [("Ada",)]


def test_database_of_another_program_is_not_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE other (id TEXT)")
        connection.commit()
    monkeypatch.setenv("MOYIN_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    result = databases.check_database(Options.read())
    finding, _ = expect_problem(result)
    assert finding.startswith("has tables, but none of Moyin's")
    assert not result.fix


async def revoke(options: Options, api_key: str) -> None:
    database = Database(options.settings.sql_url)
    try:
        await KeyStore(database).revoke(api_key.split("_")[1])
    finally:
        await database.close()


def test_processes_of_a_killed_supervisor_are_ended() -> None:
    options = Options.read()
    options.layout.prepare()
    assert services.check_processes(options).found == "none runs"
    leftover_process = subprocess.Popen(
        ["sleep", "600"], env={**os.environ, "MOYIN_STACK": options.stack_id}
    )
    try:
        finding, advice = expect_problem(services.check_processes(options), CheckVerdict.WARN)
        assert (
            finding == f"left over by a supervisor that was killed: sleep ({leftover_process.pid})"
        )
        assert "moyin down" in advice
        result = mend_problem(options, "processes")
        assert (result.found, result.fixed) == ("none runs", True)
    finally:
        leftover_process.kill()
        leftover_process.wait()


def test_processes_of_a_supervisor_without_a_state_file_are_spared() -> None:
    """Processes of a supervisor that holds its lock do not count as left over, and are not ended.

    A supervisor has no state file while it starts, and none on a full disk.
    """
    options = Options.read()
    options.layout.prepare()
    lock = SupervisorLock(options.layout.lock)
    lock.acquire()
    child = subprocess.Popen(["sleep", "600"], env={**os.environ, "MOYIN_STACK": options.stack_id})
    try:
        assert services.check_processes(options).found == "the supervisor owns them"
        services.end_leftover_processes(options)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
        lock.release()


def test_replaced_profile_is_backed_up() -> None:
    """The old profile is kept, because its key may be valid in a database that is unknown here."""
    options = Options.read()
    options.layout.prepare()
    asyncio.run(create_first_key(options.settings))
    profile = options.layout.profile
    api_key = read_profile(profile, {}).api_key
    profile_with_unknown_key = profile.read_bytes().replace(
        api_key.encode(), b"moyin_valid_elsewhere"
    )
    profile.write_bytes(profile_with_unknown_key)
    result = mend_problem(options, "api key")
    assert (result.found, result.fixed) == ("valid", True)
    backup = profile.with_name("profile.toml.broken")
    assert backup.read_bytes() == profile_with_unknown_key
    assert backup.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [None, b"\0" * 64])
async def test_signing_key_of_a_shared_database_is_not_replaced(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key pair made with this machine's key would end the sign-ins on machines with the right key."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    migrate(url)
    database = Database(url)
    farm_store = SigningKeyStore(database, b"the key of the farm")
    farm_pair = await farm_store.get_newest()
    monkeypatch.setenv("MOYIN_DATABASE_URL", url)
    options = Options.read()
    options.layout.prepare()
    if content is not None:
        path = options.layout.data / "secret"
        path.write_bytes(content)
        path.chmod(0o600)
    result = await asyncio.to_thread(mend_until, options, "signing key")
    newest_pair = await farm_store.get_newest()
    await database.close()
    assert newest_pair.kid == farm_pair.kid
    _, advice = expect_problem(result)
    assert "set MOYIN_SECRET" in advice
    assert (result.fix, result.fixed) == ("", False)


def mend_until(options: Options, check_name: str) -> CheckResult:
    """Run the checks and fixes up to ``check_name``; the ones after it install programs."""
    return next(
        result
        for result in checkup.mend_problems(options, lambda _: None)
        if result.name == check_name
    )


def test_fix_that_leaves_another_problem_is_not_reported_as_fixed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = Options.read()
    options.layout.prepare()
    options.layout.ray_token.write_text("token")
    options.layout.ray_token.chmod(0o644)
    monkeypatch.setattr(os, "access", lambda *_: False)
    unreadable_result = data.check_secret_files(options)
    monkeypatch.undo()
    monkeypatch.setenv("MOYIN_DATA", str(options.layout.data))
    results = iter([data.check_secret_files(options), unreadable_result])
    monkeypatch.setattr(checkup, "run_checks", lambda _: [next(results)])
    fix = replace(checkup._FIXES["secret files"], check=lambda _: next(results))
    monkeypatch.setattr(checkup, "_FIXES", {"secret files": fix})
    [result] = checkup.mend_problems(options, lambda _: None)
    assert (result.verdict, result.fixed) == (CheckVerdict.FAIL, False)
