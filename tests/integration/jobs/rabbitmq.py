"""Runs a real RabbitMQ on loopback, with its own ports, for one test session."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.servers import free_port, listens

# Debian's wrapper in PATH changes to a user of its own and to the machine's data folder.
_DEBIAN = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_CONFIG = """
listeners.tcp.1 = 127.0.0.1:{port}
log.console = true
log.console.level = warning
log.file = false
disk_free_limit.absolute = 1MB
"""


class RabbitServer:
    """A RabbitMQ server with its own Erlang port mapper, so that both end with the test."""

    def __init__(self, folder: Path) -> None:
        self.port, epmd_port, distribution_port = free_port(), free_port(), free_port()
        self._output = (folder / "output").open("wb")
        config_path = folder / "rabbitmq.conf"
        config_path.write_text(_CONFIG.format(port=self.port))
        (folder / "plugins").write_text("[].")
        environ = {
            **os.environ,
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"moyin{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(config_path),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._mapper = self._start_program(_find_port_mapper(), environ)
        self._server = self._start_program(_find_server(), environ)
        deadline = time.monotonic() + 60
        while not listens(self.port):
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"RabbitMQ did not start: {(folder / 'output').read_text()[-2000:]}")
            time.sleep(0.1)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def stop(self) -> None:
        for process in (self._server, self._mapper):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._output.close()

    def _start_program(self, program: str, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [program], env=environ, stdout=self._output, stderr=self._output,
            start_new_session=True,
        )  # fmt: skip


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    server = RabbitServer(tmp_path_factory.mktemp("rabbit"))
    yield server
    server.stop()


def _find_server() -> str:
    program = str(_DEBIAN) if _DEBIAN.exists() else shutil.which("rabbitmq-server")
    if program is None:
        pytest.fail("RabbitMQ is not installed: run scripts/rabbitmq.sh, which installs it")
    return program


def _find_port_mapper() -> str:
    program = shutil.which("epmd") or next(
        (str(path) for path in Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None
    )
    if program is None:
        pytest.fail(
            "epmd is neither in PATH nor in /usr/lib/erlang/erts-*/bin: run scripts/rabbitmq.sh"
        )
    return program
