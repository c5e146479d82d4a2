"""Defines the TCP ports that the stack opens, and checks that they are free."""

from __future__ import annotations

import errno
import socket
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import psutil

from moyin.errors import StackError
from moyin.stack.layout import explain_os_errors, replace_file

# The number of ports for replicas of ingress deployments, half for HTTP and half for gRPC.
REPLICA_PORTS = 200
_PREFIX = "MOYIN_PORT_"
# Ray reserves these ports for its workers, and does not start if one of its servers uses them.
_WORKER_PORTS = range(10002, 20000)
# First ports to try: above Ray's workers, and below the ports that the kernel gives to clients.
_BASES = range(20_000, 32_000, 250)


def _port(default: int, offset: int, description: str) -> int:
    value: int = field(default=default, metadata={"offset": offset, "about": description})
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Ports:
    """The ports of a stack.

    The variable ``MOYIN_PORT_<NAME>`` sets one port. ``MOYIN_PORT_BASE`` sets the first port; each
    other port is at a fixed distance from it.
    """

    door: int = _port(8000, 0, "the gateway: HAProxy in front of every app")
    dashboard: int = _port(8265, 1, "Ray's dashboard and REST API")
    temporal: int = _port(7233, 2, "Temporal")
    temporal_ui: int = _port(8233, 3, "Temporal's web interface")
    valkey: int = _port(6380, 4, "Valkey")
    gcs: int = _port(6379, 5, "Ray's control store, where other nodes join")
    ray_client: int = _port(10001, 6, "Ray client")
    ray_agent: int = _port(52365, 7, "Ray's agent on this node")
    ray_metrics: int = _port(8090, 8, "Prometheus metrics of Ray and of our apps")
    dashboard_metrics: int = _port(44227, 9, "Prometheus metrics of the dashboard itself")
    autoscaler_metrics: int = _port(44217, 10, "Prometheus metrics of Ray's autoscaler")
    fallback_proxy: int = _port(8500, 11, "Serve's proxy behind HAProxy")
    haproxy_stats: int = _port(8404, 12, "HAProxy's statistics page")
    haproxy_metrics: int = _port(9101, 13, "Prometheus metrics of HAProxy")
    grpc: int = _port(9000, 14, "the gateway for gRPC")
    fallback_grpc: int = _port(9500, 15, "gRPC of Serve's proxy behind HAProxy")
    replicas: int = _port(30000, 20, f"first of {REPLICA_PORTS} ports of app replicas")

    @classmethod
    def read(cls, environ: Mapping[str, str], *, base: int | None = None) -> Ports:
        """Read the ports from the environment, or raise `StackError` if one is not valid.

        The first port ``base`` overrides ``MOYIN_PORT_BASE``.
        """
        if base is None and environ.get(f"{_PREFIX}BASE"):
            base = _parse_port(environ, f"{_PREFIX}BASE")
        values: dict[str, int] = {}
        for port_field in fields(cls):
            name = f"{_PREFIX}{port_field.name.upper()}"
            if environ.get(name):
                values[port_field.name] = _parse_port(environ, name)
            elif base is not None:
                values[port_field.name] = base + port_field.metadata["offset"]
        ports = cls(**values)
        ports._validate()
        return ports

    def items(self) -> Iterator[tuple[str, int]]:
        for port_field in fields(self):
            yield port_field.name, getattr(self, port_field.name)

    def to_environ(self) -> dict[str, str]:
        """Return the environment variables from which `read` would read these ports."""
        return {f"{_PREFIX}{name.upper()}": str(port) for name, port in self.items()}

    @classmethod
    def describe_ports(cls) -> Iterator[tuple[str, int, str]]:
        """Yield the variable, default and description of each port."""
        for port_field in fields(cls):
            yield (
                f"{_PREFIX}{port_field.name.upper()}",
                int(str(port_field.default)),
                port_field.metadata["about"],
            )

    def _validate(self) -> None:
        names_by_port: dict[int, str] = {}
        for name, port in self.items():
            if not 0 < port < 65536 - REPLICA_PORTS:
                raise StackError(
                    f"port {port} ({name}) is out of range: set {_PREFIX}{name.upper()} to a "
                    f"number from 1 to {65535 - REPLICA_PORTS}"
                )
            last_port = port + REPLICA_PORTS - 1 if name == "replicas" else port
            if port < _WORKER_PORTS.stop and last_port >= _WORKER_PORTS.start:
                raise StackError(
                    f"port {port} ({name}) conflicts with the ports of Ray's workers, "
                    f"{_WORKER_PORTS[0]} to {_WORKER_PORTS[-1]}: set {_PREFIX}{name.upper()} to "
                    "another port"
                )
            if port in names_by_port:
                raise StackError(
                    f"port {port} is set for both {names_by_port[port]} and {name}: set "
                    f"{_PREFIX}{name.upper()} to another port"
                )
            names_by_port[port] = name


def are_ports_set(environ: Mapping[str, str]) -> bool:
    """Return True if a variable of the environment sets a port."""
    names = ("BASE", *(port_field.name.upper() for port_field in fields(Ports)))
    return any(environ.get(f"{_PREFIX}{name}") for name in names)


def read_stored_ports(path: Path) -> dict[str, str]:
    """Return the ports that `store_ports` has written, as the environment variables that set them.

    Raises:
        StackError: the file is not valid.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}  # `moyin doctor` reports a data folder that cannot be read.
    except (OSError, ValueError) as error:
        raise StackError(f"{path} cannot be read: {error}: correct or delete it") from None
    known_names = {port_field.name for port_field in fields(Ports)}
    for name, port in values.items():
        if name not in known_names or type(port) is not int:
            raise StackError(
                f"{path}: {name} = {port!r} does not set a port of Moyin to a number: correct or "
                "delete the line"
            )
    return {f"{_PREFIX}{name.upper()}": str(port) for name, port in values.items()}


def store_ports(path: Path, ports: Mapping[str, int]) -> None:
    """Write ports by name to a file, which applies if the environment sets no port.

    Raises:
        StackError: the file cannot be written.
    """
    port_lines = "".join(f"{name} = {port}\n" for name, port in sorted(ports.items()))
    with explain_os_errors(path):
        replace_file(path, f"# Written by `moyin doctor --fix`.\n{port_lines}".encode())


def require_free_ports(ports: Ports, *, ignored_ports: frozenset[str] = frozenset()) -> None:
    """Raise `StackError` if a port of the stack, except those in ``ignored_ports``, is in use."""
    for name, port in ports.items():
        if name not in ignored_ports and not _is_port_free(port):
            raise StackError(
                f"port {port} ({name}) is in use by {_describe_owner(port)}: "
                f"stop that process, set {_PREFIX}{name.upper()}, or move all ports with {_PREFIX}BASE"
            )


def choose_free_ports(
    ports: Ports, *, ignored_ports: frozenset[str] = frozenset()
) -> dict[str, int]:
    """Return a free port for each of the stack's ports that is in use, by name.

    Returns an empty dictionary if there are not enough free ports.
    """
    base = find_free_base()
    if base is None:
        return {}
    return {
        port_field.name: base + port_field.metadata["offset"]
        for port_field in fields(ports)
        if port_field.name not in ignored_ports
        and not _is_port_free(getattr(ports, port_field.name))
    }


def find_free_base() -> int | None:
    """Return a value for ``MOYIN_PORT_BASE`` with which all ports are free, or None."""
    for base in _BASES:
        offsets = [port_field.metadata["offset"] for port_field in fields(Ports)]
        if all(_is_port_free(base + offset) for offset in offsets):
            return base
    return None


def _is_port_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                # Old connections of a stopped server prevent this bind for a minute, but not those
                # of the stack's servers.
                return not _accepts_connections(port)
            raise StackError(
                f"port {port} cannot be opened: {error.strerror}: choose another {_PREFIX}<NAME>"
            ) from error
    return True


def _accepts_connections(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _describe_owner(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                # Another stack's processes have the path of its data folder in their environment.
                data_folder = process.environ().get("MOYIN_DATA")
                stack_suffix = f" of the stack in {data_folder}" if data_folder else ""
                return f"{process.name()} (pid {connection.pid}{stack_suffix})"
    except psutil.Error:
        return "another process"  # the processes of other users cannot be inspected
    return "another process"


def _parse_port(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise StackError(f"{name} must be a port number, not {environ[name]!r}") from None
