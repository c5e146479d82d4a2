"""Tests that `moyin doctor` finds problems that need a server, a sandbox or an installation."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import redis

from moyin.render.comfyui.bubblewrap import find_bubblewraps
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.integration.stack.doctor_command import run_doctor

pytestmark = pytest.mark.timeout(240)
_NOBODY = 65534


def test_doctor_reports_a_full_disk_little_memory_and_missing_rights(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """In a sandbox like a small container, the doctor must report each of these problems.

    The sandbox allows no namespaces, and a configuration file belongs to another user.
    """
    data_folder, config_folder = tmp_path / "data", tmp_path / "config" / "moyin"
    data_folder.mkdir()
    config_folder.mkdir(parents=True)
    (config_folder / "profiles.toml").touch(0o600)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal: 2097152 kB\nMemFree: 524288 kB\nMemAvailable: 1048576 kB\nBuffers: 0 kB\nCached: 0 kB\n"
    )
    if os.geteuid() == 0:
        os.chown(config_folder / "profiles.toml", _NOBODY, _NOBODY)
    else:
        (config_folder / "profiles.toml").chmod(0)
    sandbox_command = [
        str(find_bubblewraps()[0]), "--bind", "/", "/", "--dev-bind", "/dev", "/dev",
        "--size", str(100 * 2**20), "--tmpfs", str(data_folder),
        "--ro-bind", str(meminfo), "/proc/meminfo", "--cap-drop", "ALL",
        *(() if os.geteuid() == 0 else ("--unshare-user", "--disable-userns")), "--",
    ]  # fmt: skip
    status, checks = run_doctor(environ, sandbox_command=sandbox_command)
    assert status == 1
    findings = {name: (check["verdict"], check["found"]) for name, check in checks.items()}
    advice_by_name = {name: check["advice"] for name, check in checks.items()}

    assert findings["data folder"][0] == "fail"
    assert (
        "MB are free, but 512 MB are needed"
        in f"{findings['data folder']} {advice_by_name['data folder']}"
    )
    assert "free some space" in advice_by_name["data folder"]
    assert findings["disk"] == ("warn", "0.1 GiB free")
    assert findings["memory"] == ("warn", "1.0 GiB of 2.0 GiB available")
    assert findings["secret files"][0] == "fail"
    assert findings["secret files"][1].endswith("profiles.toml cannot be read")
    assert "sudo chown -R" in advice_by_name["secret files"]
    assert findings["isolation"] == ("fail", "pools default will not start")
    assert "namespaces" in advice_by_name["isolation"]
    assert "isolation: files" in advice_by_name["isolation"]


def test_doctor_checks_servers_and_reports_a_wrong_password(
    environ: dict[str, str], valkey_server: ValkeyServer, temporal_server: TemporalServer
) -> None:
    environ["MOYIN_TEMPORAL_ADDRESS"] = temporal_server.address
    environ["MOYIN_REDIS_URL"] = valkey_server.url
    _, checks = run_doctor(environ)
    assert checks["temporal server"]["verdict"] == checks["valkey server"]["verdict"] == "ok"
    with redis.Redis.from_url(valkey_server.url) as client:
        client.config_set("requirepass", "right")
    try:
        environ["MOYIN_REDIS_URL"] = valkey_server.url.replace("//", "//:wrong-one@")
        status, checks = run_doctor(environ)
    finally:
        with redis.Redis.from_url(valkey_server.url, password="right") as client:
            client.config_set("requirepass", "")
    assert (status, checks["valkey server"]["verdict"]) == (1, "fail")
    assert "refuses the password" in checks["valkey server"]["found"]
    assert "wrong-one" not in json.dumps(checks)


def test_fix_that_fails_is_reported(environ: dict[str, str], tmp_path: Path) -> None:
    environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "UV_NO_INDEX": "1"}
    _, checks = run_doctor(environ, "--fix")
    assert (checks["comfyui"]["verdict"], checks["comfyui"]["fixed"]) == ("warn", False)
    assert "--fix failed: installing ComfyUI failed" in checks["comfyui"]["advice"]
