"""Answers at the entrance with 503 while Serve's HAProxy, which listens there normally, is gone.

Ray starts Serve's HAProxy some seconds after its own start, and again after the death of its owner.
Without a listener, connections would be refused meanwhile, which clients and load balancers take for a
machine that is down. The stand-in is another HAProxy, so that the same script writes the errors. It
listens with SO_REUSEPORT, so that Serve's HAProxy can open the port beside it, and ends right afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moyin.errors import StackError
from moyin.stack.apps import load_serve_config
from moyin.stack.options import Options
from moyin.stack.ray import build_launcher_environ
from moyin.stack.service import poll_until
from moyin.system.logfile import LogFile
from moyin.system.processes import SERVICE_VARIABLE, STACK_VARIABLE, ChildProcess

_log = logging.getLogger(__name__)
_NAME = "stand-in"
_CHECK_SECONDS = 0.25
_STOP_SECONDS = 2.0
# After a failed start, for example for want of memory.
_PAUSE_SECONDS = 2.0
# The state of a listening socket in /proc/net/tcp.
_LISTENING = "0A"
# Has the lines that haproxy.sh replaces. Each response closes its connection, so that the client's next
# request finds Serve's HAProxy.
_CONFIG = """\
global
    maxconn 2000
    nbthread 1
defaults
    mode http
    option httplog
    option httpclose
    timeout connect 1s
    timeout client 20s
    timeout server 1s
    errorfile 503 none
frontend http_frontend
    bind {address}:{port}
    default_backend default_backend
{grpc}backend default_backend
"""
_GRPC = """\
frontend grpc_frontend
    bind {address}:{port} proto h2
    default_backend default_backend
"""


class StandIn:
    """Runs a HAProxy that refuses every request, whenever nothing listens on the entrance's port.

    Args:
        count_listeners: returns how many sockets listen on a TCP port.
    """

    def __init__(
        self,
        options: Options,
        count_listeners: Callable[[int], int] | None = None,
    ) -> None:
        self._options = options
        self._port = options.ports.door
        self._count_listeners = count_listeners or count_listening_sockets

    async def run(self) -> None:
        """Watch the port until the task is cancelled; a failure is logged, and tried again."""
        log = LogFile(self._options.layout.get_log_path(_NAME))
        logged_reason = ""
        try:
            while True:
                try:
                    await self._wait_until_free()
                    await self._answer(log)
                    logged_reason = ""
                except (OSError, StackError) as error:
                    if str(error) != logged_reason:
                        logged_reason = str(error)
                        _log.warning("nothing answers at port %d: %s", self._port, logged_reason)
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            log.close()

    async def _wait_until_free(self) -> None:
        host = self._read_host()

        async def is_free() -> bool:
            return is_port_free(host, self._port)

        await poll_until(is_free)

    async def _answer(self, log: LogFile) -> None:
        """Run HAProxy until another process listens on the port as well."""
        environ = {
            **self._options.environ,
            **build_launcher_environ(),
            STACK_VARIABLE: self._options.stack_id,
            SERVICE_VARIABLE: _NAME,
        }
        command = (
            str(self._options.layout.haproxy_launcher),
            "-db",
            "-f",
            str(self._write_config()),
        )
        child = await ChildProcess.start(command, environ, log)
        exit_task = asyncio.create_task(child.wait())
        try:
            while self._count_listeners(self._port) < 2:
                await asyncio.wait({exit_task}, timeout=_CHECK_SECONDS)
                if exit_task.done():
                    raise StackError(
                        f"the stand-in of HAProxy ended with status {exit_task.result()}"
                    )
        finally:
            await child.stop(_STOP_SECONDS)
            exit_task.cancel()

    def _write_config(self) -> Path:
        config = self._load_config()
        ports = self._options.ports
        address = _format_address(self._read_host())
        path = self._options.layout.stand_in_config
        grpc = _GRPC.format(address=address, port=ports.grpc) if config.get("grpc_options") else ""
        path.write_text(_CONFIG.format(address=address, port=self._port, grpc=grpc))
        return path

    def _read_host(self) -> str:
        return str(self._load_config()["http_options"].get("host") or "127.0.0.1")

    def _load_config(self) -> Mapping[str, Any]:
        """Return the configuration that was deployed last, or else the one that will be deployed."""
        deployed = self._options.layout.serve_config
        path = deployed if deployed.exists() else self._options.serve_config
        return load_serve_config(path, self._options.ports)


def is_port_free(host: str, port: int) -> bool:
    """Return True if nothing listens on the port; connections that have not ended do not matter."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # With this option, only listening sockets are in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def count_listening_sockets(port: int, proc: Path = Path("/proc")) -> int:
    """Return how many sockets of this machine listen on a TCP port, at any address."""
    return sum(
        int(local.rpartition(":")[2], 16) == port and state == _LISTENING
        for local, state in _list_sockets(proc)
    )


def _list_sockets(proc: Path) -> Iterator[tuple[str, str]]:
    """Yield the local address and the state of each TCP socket, as the kernel writes them."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue  # The kernel has no IPv6.
        for line in lines:
            _, local, _, state, *_ = line.split()
            yield local, state


def _format_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host
