"""Runs the real HAProxy through our launcher, with the configuration that Ray Serve writes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ray.serve._private.common import RequestProtocol
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions

from moyin.stack import ray
from tests.integration.servers import free_port, listens
from tests.waiting import eventually

_SERVICER = "moyin.jobs.grpc.moyin_pb2_grpc.add_MoyinServicer_to_server"


@dataclass(frozen=True, kw_only=True)
class HAProxyPorts:
    """The ports on which HAProxy listens."""

    http: int
    grpc: int


@dataclass(frozen=True, kw_only=True)
class ServedApp:
    """An app with one replica, as Serve describes it to HAProxy.

    Attributes:
        fallback: the port of Serve's own proxy, to which HAProxy sends requests if no replica
            exists.
    """

    prefix: str
    http: int
    grpc: int
    fallback: int | None = None


def write_config(folder: Path, apps: Mapping[str, ServedApp], ports: HAProxyPorts) -> Path:
    """Make Serve write its configuration of HAProxy for ``apps``, and return the file's path."""
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=ports.http),
        grpc_options=gRPCOptions(port=ports.grpc, grpc_servicer_functions=[_SERVICER]),
        is_head=True,
        nbthread=2,
        stats_port=free_port(),
        metrics_port=free_port(),
        # What `moyin up` sets: HAProxy logs for metrics otherwise.
        metrics_enabled=False,
        socket_path=str(folder / "s"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
    )
    api = HAProxyApi(cfg=config, config_file_path=str(folder / "haproxy.cfg"))
    backends = [
        _build_backend(name, app, protocol)
        for name, app in apps.items()
        for protocol in (RequestProtocol.HTTP, RequestProtocol.GRPC)
    ]
    api.set_backend_configs({backend.name: backend for backend in backends})
    api._generate_config_file_internal()
    return folder / "haproxy.cfg"


def _build_backend(name: str, app: ServedApp, protocol: RequestProtocol) -> BackendConfig:
    fallback_server = None
    if app.fallback is not None:
        fallback_server = ServerConfig(
            name="SERVE_PROXY_ACTOR-1", host="127.0.0.1", port=app.fallback
        )
    port = app.http if protocol == RequestProtocol.HTTP else app.grpc
    return BackendConfig(
        name=f"{protocol.value.lower()}-{name}",
        path_prefix=app.prefix,
        app_name=name,
        protocol=protocol,
        servers=[ServerConfig(name=f"SERVE_REPLICA-{name}", host="127.0.0.1", port=port)],
        fallback_server=fallback_server,
    )


@asynccontextmanager
async def run_haproxy(folder: Path, apps: Mapping[str, ServedApp]) -> AsyncIterator[HAProxyPorts]:
    """Run HAProxy with these apps during the block, and yield its ports."""
    ports = HAProxyPorts(http=free_port(), grpc=free_port())
    config_path = write_config(folder, apps, ports)
    # As Serve's child finds them.
    environ = ray.build_ray_environ()
    process = await asyncio.create_subprocess_exec(
        "sh", environ["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", config_path,
        env={**os.environ, **environ},
    )  # fmt: skip
    try:
        await eventually(lambda: listens(ports.http) and listens(ports.grpc))
        yield ports
    finally:
        process.kill()
        await process.wait()
