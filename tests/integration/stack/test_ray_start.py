"""Tests `ray start`, `moyin ray-env` and `serve deploy` without `moyin up`."""

from __future__ import annotations

import http.client
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import psutil
import pytest
import yaml

from moyin.jobs.grpc import moyin_pb2, moyin_pb2_grpc
from moyin.stack.ports import REPLICA_PORTS, Ports
from tests.chaos.watch import Probe, build_probes, judge_response
from tests.stack import ROOT, free_port_base

_BIN = Path(sys.executable).parent
# Without a pause, the calls take the core that the starting apps need.
_PAUSE = 0.1
_TINY = Probe(service="tiny", method="GET", path="/tiny/a", normal=200)
_SERVICER = "moyin.jobs.grpc.moyin_pb2_grpc.add_MoyinServicer_to_server"


class HeadNode:
    """A head node that the test started with `ray start`."""

    def __init__(self, folder: Path) -> None:
        # Short: sockets lie below it.
        self.folder = folder
        self.ports = Ports.read({}, base=free_port_base())
        token_path = folder / "token"
        token_path.write_text(secrets.token_hex(32))
        ports = self.ports
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **_read_ray_env(),
            "PYTHONPATH": str(ROOT),
            "MOYIN_DATA": str(folder / "data"),
            "RAY_AUTH_TOKEN_PATH": str(token_path),
            # `_belongs_to_stack` reads the environment, which Ray otherwise overwrites with titles.
            "SPT_NOENV": "1",
            # Beside other farms on this machine; a node has Serve's own ports and folder.
            "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "h" / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "h" / "s"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "h" / "m"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "h"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "h" / "server-state"),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_proxy),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replicas + REPLICA_PORTS // 2 - 1),
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports.replicas + REPLICA_PORTS // 2),
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports.replicas + REPLICA_PORTS - 1),
        }

    def start_ray(self) -> subprocess.Popen[bytes]:
        ports = self.ports
        return subprocess.Popen(
            [
                _BIN / "ray", "start", "--head", "--block", f"--port={ports.gcs}",
                f"--dashboard-port={ports.dashboard}",
                f"--dashboard-agent-listen-port={ports.ray_agent}",
                f"--ray-client-server-port={ports.ray_client}",
                f"--metrics-export-port={ports.ray_metrics}",
                f"--temp-dir={self.folder / 'r'}", "--num-cpus=4",
                f"--object-store-memory={128 * 1024 * 1024}", "--include-log-monitor=false",
            ],
            env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run_serve(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        dashboard_url = f"http://127.0.0.1:{self.ports.dashboard}"
        return subprocess.Popen(
            [_BIN / "serve", command, "--address", dashboard_url, *arguments],
            env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def deploy_tiny_app(self) -> subprocess.Popen[bytes]:
        tiny_app = {
            "name": "tiny",
            "route_prefix": "/tiny",
            "import_path": "tests.integration.stack.tiny_app:build",
            "args": {"broken": False},
        }
        config_path = self.folder / "serve_config.yaml"
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.ports.door},
            "grpc_options": {"port": self.ports.grpc, "grpc_servicer_functions": [_SERVICER]},
            "applications": [tiny_app],
        }
        config_path.write_text(yaml.safe_dump(config))
        return self.run_serve("deploy", str(config_path))


@pytest.fixture
def head() -> Iterator[HeadNode]:
    folder = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    head = HeadNode(folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        process = head.start_ray()
        stack.callback(_end_processes, process, folder)
        yield head


@pytest.mark.timeout(300)
def test_no_response_is_404_while_apps_start(head: HeadNode) -> None:
    """No response is 404 before the first `serve deploy`, during it, and after `serve shutdown`."""
    # Refused until Ray's dashboard listens.
    deploy_process = head.deploy_tiny_app()
    seen_outcomes: set[str] = set()
    while "ok" not in seen_outcomes:
        time.sleep(_PAUSE)
        seen_outcomes |= _check_responses(head)
        if deploy_process.poll() not in (None, 0):
            deploy_process = head.deploy_tiny_app()
    assert "503" in seen_outcomes, "HAProxy was there before the app"
    # Other paths have no app; no app but ours is called over gRPC.
    assert _check_responses(head) == {"ok", "503", "UNAVAILABLE"}

    stop_process = head.run_serve("shutdown", "-y")
    while stop_process.poll() is None or seen_outcomes & {"ok", "cut"}:
        time.sleep(_PAUSE)
        seen_outcomes = _check_responses(head)
    assert stop_process.returncode == 0
    assert seen_outcomes <= {"503", "refused", "UNAVAILABLE"}


def _check_responses(head: HeadNode) -> set[str]:
    """Request a path of every kind, check each response, and return the different responses."""
    outcomes = {_probe_path(head.ports.door, probe) for probe in (_TINY, *build_probes("7"))}
    with grpc.insecure_channel(f"127.0.0.1:{head.ports.grpc}") as channel:
        stub = moyin_pb2_grpc.MoyinStub(channel)
        with pytest.raises(grpc.RpcError) as exc_info:
            metadata = (("application", "gateway"),)
            stub.GetJob(moyin_pb2.GetJobRequest(id="7"), metadata=metadata, timeout=30)
    outcomes.add(exc_info.value.code().name)
    return outcomes


def _probe_path(port: int, probe: Probe) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{probe.path}", method=probe.method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            outcome, problem = judge_response(
                probe, response.status, response.headers, response.read()
            )
    except urllib.error.HTTPError as error:
        with error:
            outcome, problem = judge_response(probe, error.code, dict(error.headers), error.read())
    except OSError:
        time.sleep(0.05)
        return "refused"
    except http.client.HTTPException:
        # A connection that ends in the middle of an answer, as HAProxy does.
        return "cut"
    assert problem is None, problem
    return outcome


def _read_ray_env() -> Mapping[str, str]:
    """Return the variables that `eval "$(moyin ray-env)"` exports."""
    output = subprocess.run(
        [_BIN / "moyin", "ray-env"], capture_output=True, text=True, check=True
    ).stdout
    assignments = [shlex.split(line)[1] for line in output.splitlines()]
    return dict(assignment.split("=", 1) for assignment in assignments)


def _end_processes(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End Ray and its remaining processes, such as HAProxy."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    remaining_processes = [
        remaining_process
        for remaining_process in psutil.process_iter()
        if _belongs_to_stack(remaining_process, folder)
    ]
    for remaining_process in remaining_processes:
        # One that ended by itself meanwhile.
        with suppress(psutil.NoSuchProcess):
            remaining_process.kill()
    psutil.wait_procs(remaining_processes, timeout=10)


def _belongs_to_stack(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("MOYIN_DATA") == str(folder / "data")
    except psutil.Error:
        return False
