from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from moyin.errors import StackError
from moyin.stack.ports import Ports, require_free
from tests.door import free_port_base


@pytest.fixture
def taken() -> Iterator[int]:
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


def test_a_base_moves_every_port_and_a_single_one_wins_over_it() -> None:
    ports = Ports.read({"MOYIN_PORT_BASE": "20000", "MOYIN_PORT_VALKEY": "7777"})
    assert ports.door == 20_000
    assert ports.valkey == 7777
    others = [port for name, port in ports.named() if name != "valkey"]
    assert all(20_000 <= port < 20_250 for port in others)
    assert len(set(others)) == len(others)


def test_a_given_base_wins_over_the_environment() -> None:
    assert Ports.read({"MOYIN_PORT_BASE": "20000"}, base=21_000).door == 21_000


def test_ports_survive_the_way_through_the_environment() -> None:
    ports = Ports.read({}, base=22_000)
    assert Ports.read(ports.environ()) == ports


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"MOYIN_PORT_DOOR": "eight"}, "MOYIN_PORT_DOOR='eight' is not a port number"),
        ({"MOYIN_PORT_DOOR": "8265"}, "port 8265 is wanted by both door and dashboard"),
        ({"MOYIN_PORT_DOOR": "70000"}, r"port 70000 \(door\) is out of range"),
        (
            {"MOYIN_PORT_BASE": "12000"},
            r"port 12000 \(door\) is one of those that Ray gives to its",
        ),
        ({"MOYIN_PORT_BASE": "9800"}, r"port 9820 \(replicas\) is one .*, 10002 to 19999: choose"),
    ],
)
def test_wrong_ports_are_refused(environ: dict[str, str], told: str) -> None:
    with pytest.raises(StackError, match=told):
        Ports.read(environ)


def test_a_taken_port_names_the_service_the_holder_and_the_way_out(taken: int) -> None:
    ports = Ports.read({"MOYIN_PORT_DOOR": str(taken)}, base=free_port_base())
    with pytest.raises(StackError) as failure:
        require_free(ports)
    told = failure.value.message
    assert told.startswith(f"port {taken} (door) is taken by ")
    assert told.endswith("stop it or set MOYIN_PORT_DOOR")
    assert "\n" not in told


def test_ports_of_services_that_run_elsewhere_are_not_looked_at(taken: int) -> None:
    ports = Ports.read({"MOYIN_PORT_VALKEY": str(taken)}, base=free_port_base())
    require_free(ports, skip=frozenset({"valkey"}))
