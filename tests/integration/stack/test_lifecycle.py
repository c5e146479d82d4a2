"""Tests starting, stopping and killing a whole stack with a minimal app."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import yaml
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from moyin.stack.service import send_request
from moyin.stack.state import PartStatus, Phase, StackState, read_state
from moyin.system.processes import find_processes
from tests.stack import RecordMeasurement, RunningStack
from tests.waiting import eventually_blocking

pytestmark = pytest.mark.timeout(240)


def _create_stack(folder: Path, *, broken: bool = False) -> RunningStack:
    config_path = folder / "serve_config.yaml"
    app_config = {
        "name": "tiny",
        "route_prefix": "/",
        "import_path": "tests.integration.stack.tiny_app:build",
        "args": {"broken": broken},
    }
    http_options = {"host": "127.0.0.1", "port": 8000}
    config_path.write_text(
        yaml.safe_dump(
            {
                "proxy_location": "HeadOnly",
                "http_options": http_options,
                "applications": [app_config],
            }
        )
    )
    return RunningStack(folder, {"MOYIN_SERVE_CONFIG": str(config_path)})


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Run one stack for all tests of the module; only the last tests stop it."""
    with _create_stack(tmp_path_factory.mktemp("stack")).running() as stack:
        yield stack


def _read_state(stack: RunningStack) -> Any:
    return json.loads(stack.run("status", "--json", check=False).stdout)


def _read_published_state(stack: RunningStack) -> StackState | None:
    """Read the state that `moyin status` prints, for polling; the command would take longer."""
    return read_state(stack.layout.state)


def _get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def test_everything_is_up_and_the_gateway_answers(stack: RunningStack) -> None:
    state = _read_state(stack)
    assert state["phase"] == "ready"
    assert {part["status"] for part in state["parts"].values()} == {"up"}
    assert _get_json(f"{stack.url}/hello") == {"path": "/hello"}


def test_a_second_up_does_nothing(stack: RunningStack) -> None:
    pid_before = _read_state(stack)["pid"]
    assert "up already" in stack.run("up").stdout
    assert _read_state(stack)["pid"] == pid_before


def test_public_ports_listen_on_loopback(stack: RunningStack) -> None:
    """All ports listen only on loopback, except for Ray's, to which other nodes connect."""
    ports = stack.ports
    private_ports = {
        ports.door,
        ports.dashboard,
        ports.temporal,
        ports.temporal_ui,
        ports.valkey,
        ports.haproxy_stats,
        ports.haproxy_metrics,
        ports.fallback_proxy,
        *range(ports.replicas, ports.replicas + 10),
    }
    listening_addresses = {
        (connection.laddr.ip, connection.laddr.port)
        for process in find_processes(str(stack.data))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in private_ports
    }
    assert {ip for ip, _ in listening_addresses} == {"127.0.0.1"}
    assert {port for _, port in listening_addresses} >= private_ports - set(
        range(ports.replicas, ports.replicas + 10)
    )


def test_rays_dashboard_requires_the_token(stack: RunningStack) -> None:
    url = f"http://127.0.0.1:{stack.ports.dashboard}/api/serve/applications/"
    with pytest.raises(urllib.error.HTTPError) as exc_info:
        _get_json(url)
    exc_info.value.close()
    assert exc_info.value.code == 401


def test_valkey_requires_the_password_that_the_apps_have(stack: RunningStack) -> None:
    with (
        redis.Redis(port=stack.ports.valkey) as keyless_client,
        pytest.raises(redis.AuthenticationError),
    ):
        keyless_client.ping()
    with redis.Redis.from_url(stack.settings.redis_url) as authenticated_client:
        assert authenticated_client.ping()
    assert _get_json(f"{stack.url}/valkey") == {"path": "/valkey", "valkey": True}


def test_password_of_valkey_is_not_disclosed(stack: RunningStack) -> None:
    """Valkey's password is in no command line, log, state file or output.

    Nor is it in Ray's dashboard.
    """
    token = stack.layout.ray_token.read_text().strip()
    dashboard_url = f"http://127.0.0.1:{stack.ports.dashboard}"
    shown_texts = {
        "command lines": "\n".join(stack.processes()),
        **{
            f"moyin {' '.join(arguments)}": (process := stack.run(*arguments, check=False)).stdout
            + process.stderr
            for arguments in (("status",), ("status", "--json"), ("doctor",), ("ray-env",))
        },
        **{
            path: send_request("GET", dashboard_url + path, bearer_token=token, timeout_seconds=30)[1].decode()
            for path in (
                "/api/serve/applications/", "/api/jobs/", "/api/cluster_status", "/nodes?view=details",
                "/api/v0/actors?detail=1", "/api/v0/workers?detail=1", "/api/v0/runtime_envs?detail=1",
            )
        },
    }  # fmt: skip
    for path in {*stack.layout.logs.rglob("*"), *stack.layout.run.rglob("*")}:
        if path.is_file() and path != stack.layout.valkey_config:
            shown_texts[str(path)] = path.read_text(errors="replace")
    for path in Path(stack.layout.ray_logs).resolve().rglob("*"):
        if path.is_file():
            shown_texts[str(path)] = path.read_text(errors="replace")
    assert "ServeController" in shown_texts["/api/v0/actors?detail=1"]
    assert "tiny" in shown_texts["/api/serve/applications/"]
    password = stack.valkey_password
    assert [name for name, text in shown_texts.items() if password in text] == []


async def test_the_namespace_keeps_jobs_for_the_configured_time(stack: RunningStack) -> None:
    client = await Client.connect(stack.settings.temporal_address, namespace="moyin")
    namespace_description = await client.workflow_service.describe_namespace(
        DescribeNamespaceRequest(namespace="moyin")
    )
    assert namespace_description.config.workflow_execution_retention_ttl.ToTimedelta().days == 30


def test_the_first_key_is_kept_private_and_only_a_digest_is_stored(stack: RunningStack) -> None:
    assert stack.layout.profile.stat().st_mode & 0o777 == 0o600
    assert stack.api_key.encode() not in (stack.data / "moyin.db").read_bytes()
    log_text = stack.layout.get_log_path("supervisor").read_text()
    assert stack.api_key not in log_text


@pytest.mark.parametrize("name", ["valkey", "temporal"])
def test_killed_server_is_restarted(
    stack: RunningStack, name: str, record_measurement: RecordMeasurement
) -> None:
    killed_pid = _read_state(stack)["parts"][name]["pid"]
    os.kill(killed_pid, signal.SIGKILL)

    def is_restarted() -> bool:
        state = _read_published_state(stack)
        assert state is not None
        part = state.parts[name]
        return part.status == PartStatus.UP and part.pid != killed_pid

    started_at = time.monotonic()
    eventually_blocking(is_restarted, 180)
    record_measurement(f"{name} back after {time.monotonic() - started_at:.1f} s")
    assert _read_state(stack)["parts"][name]["restarts"] == 1
    assert _get_json(f"{stack.url}/")


def test_killing_the_supervisor_ends_all_and_up_starts_again(
    stack: RunningStack, record_measurement: RecordMeasurement
) -> None:
    """All processes end with the supervisor, and the next `moyin up` finds Valkey's data.

    The data folder has no password for Valkey, like one of an older version.
    """
    key_before, password_before = stack.api_key, stack.valkey_password
    with redis.Redis.from_url(stack.settings.redis_url) as valkey_client:
        valkey_client.set("kept", "1")
        valkey_client.execute_command("WAITAOF", 1, 0, 5_000)
    stack.kill_supervisor()
    eventually_blocking(lambda: stack.processes() == [], 20)
    assert stack.run("status", check=False).returncode == 1
    stack.layout.valkey_password.unlink()
    stack.layout.valkey_config.unlink()
    started_at = time.monotonic()
    stack.run("up")
    elapsed_seconds = time.monotonic() - started_at
    record_measurement(f"up again after {elapsed_seconds:.1f} s")
    assert stack.api_key == key_before
    assert stack.valkey_password != password_before
    with redis.Redis.from_url(stack.settings.redis_url) as valkey_client:
        assert valkey_client.get("kept") == b"1"
    assert _get_json(f"{stack.url}/valkey")["valkey"]


def test_up_right_after_a_kill_ends_the_remaining_processes(stack: RunningStack) -> None:
    stack.kill_supervisor()
    stack.run("up")
    assert _get_json(f"{stack.url}/")


def test_a_second_stack_in_the_foreground_runs_beside_the_first_and_stops_in_order(
    stack: RunningStack, tmp_path: Path
) -> None:
    second_stack = _create_stack(tmp_path)
    command = [sys.executable, "-m", "moyin.cli.main", "up", "--foreground"]
    try:
        process = subprocess.Popen(
            command, env=second_stack.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually_blocking(
            lambda: (
                (state := _read_published_state(second_stack)) is not None
                and state.phase == Phase.READY
            ),
            240,
        )
        assert _read_state(second_stack)["phase"] == "ready"
        assert _get_json(f"{second_stack.url}/other") == {"path": "/other"}
        assert _get_json(f"{stack.url}/first") == {"path": "/first"}
        assert second_stack.url != stack.url
        process.terminate()
        assert process.wait(60) == 0
        assert second_stack.processes() == []
    finally:
        second_stack.run("down", check=False)
    assert _get_json(f"{stack.url}/still") == {"path": "/still"}


def test_down_stops_all_processes(
    stack: RunningStack, record_measurement: RecordMeasurement
) -> None:
    started_at = time.monotonic()
    stack.run("down")
    record_measurement(f"down: {time.monotonic() - started_at:.1f} s")
    assert stack.processes() == []
    assert "not running" in stack.run("down").stdout


def test_used_port_is_reported_in_one_line(tmp_path: Path) -> None:
    second_stack = _create_stack(tmp_path)
    with socket.socket() as server:
        # An earlier stack may have had it a moment ago.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", second_stack.ports.door))
        server.listen()
        refused_process = second_stack.run("up", check=False)
    assert refused_process.returncode == 1
    assert refused_process.stderr.count("\n") == 1
    assert f"port {second_stack.ports.door} (door) is in use by" in refused_process.stderr
    assert f"(pid {os.getpid()})" in refused_process.stderr
    assert second_stack.processes() == []


def test_failing_app_is_reported_in_one_line_and_stopped(tmp_path: Path) -> None:
    broken_stack = _create_stack(tmp_path, broken=True)
    refused_process = broken_stack.run("up", check=False)
    assert refused_process.returncode == 1
    error_line = refused_process.stderr.strip().splitlines()[-1]
    assert error_line.startswith("error: app tiny cannot start: ")
    assert "this app is broken on purpose" in error_line
    assert broken_stack.processes() == []
    assert broken_stack.run("status", check=False).returncode == 1
