from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from moyin.errors import StackError
from moyin.stack.ports import Ports, require_free_ports
from tests.stack import free_port_base


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_the_default_ports_are_the_documented_ones() -> None:
    ports = Ports.read({})
    assert (ports.door, ports.dashboard, ports.temporal, ports.temporal_ui) == (
        8000,
        8265,
        7233,
        8233,
    )


def test_port_base_moves_every_port_but_those_set_individually() -> None:
    ports = Ports.read({"MOYIN_PORT_BASE": "20000", "MOYIN_PORT_VALKEY": "7777"})
    assert ports.door == 20_000
    assert ports.valkey == 7777
    other_ports = [port for name, port in ports.items() if name != "valkey"]
    assert all(20_000 <= port < 20_250 for port in other_ports)
    assert len(set(other_ports)) == len(other_ports)


def test_base_argument_overrides_the_environment() -> None:
    assert Ports.read({"MOYIN_PORT_BASE": "20000"}, base=21_000).door == 21_000


def test_ports_round_trip_through_the_environment() -> None:
    ports = Ports.read({}, base=22_000)
    assert Ports.read(ports.to_environ()) == ports


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"MOYIN_PORT_DOOR": "eight"}, "MOYIN_PORT_DOOR must be a port number, not 'eight'"),
        ({"MOYIN_PORT_DOOR": "8265"}, "port 8265 is set for both door and dashboard"),
        ({"MOYIN_PORT_DOOR": "70000"}, r"port 70000 \(door\) is out of range"),
        (
            {"MOYIN_PORT_BASE": "12000"},
            r"port 12000 \(door\) conflicts with the ports of Ray's workers",
        ),
        (
            {"MOYIN_PORT_BASE": "9800"},
            r"port 9820 \(replicas\) conflicts .*, 10002 to 19999: set MOYIN_PORT_REPLICAS",
        ),
    ],
)
def test_invalid_ports_are_rejected(environ: dict[str, str], message: str) -> None:
    with pytest.raises(StackError, match=message):
        Ports.read(environ)


def test_port_in_use_error_names_service_process_and_setting(used_port: int) -> None:
    ports = Ports.read({"MOYIN_PORT_DOOR": str(used_port)}, base=free_port_base())
    with pytest.raises(StackError) as exc_info:
        require_free_ports(ports)
    message = exc_info.value.message
    assert message.startswith(f"port {used_port} (door) is in use by ")
    assert message.endswith(
        "stop that process, set MOYIN_PORT_DOOR, or move all ports with MOYIN_PORT_BASE"
    )
    assert "\n" not in message


def test_ports_of_external_services_are_not_checked(used_port: int) -> None:
    ports = Ports.read({"MOYIN_PORT_VALKEY": str(used_port)}, base=free_port_base())
    require_free_ports(ports, ignored_ports=frozenset({"valkey"}))
