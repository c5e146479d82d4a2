"""Defines a supervised service, and helpers that wait for one or run a command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from moyin.errors import StackError

__all__ = ["Service", "poll_until", "run_command", "wait_for_port"]

_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Service:
    """Describes a process that the supervisor keeps running.

    Attributes:
        wait_ready: returns once the process serves; cancelled if the process ends first.
        ready_seconds: time limit of ``wait_ready``.
        stop_seconds: time limit for the process to end after SIGTERM.
        find_fault: takes the pid of the running process and returns why it must be restarted, or
            None. Called every few seconds, in a thread.
        timer_slack_ns: how late the kernel may fire the process's timers; 0 means 50,000.
    """

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    wait_ready: Callable[[], Awaitable[None]]
    ready_seconds: float = 30.0
    stop_seconds: float = 10.0
    find_fault: Callable[[int], str | None] | None = None
    timer_slack_ns: int = 0


async def poll_until(check: Callable[[], Awaitable[bool]]) -> None:
    """Poll ``check`` every 0.1 s until it returns true."""
    while True:
        if await check():
            return
        await asyncio.sleep(_POLL_SECONDS)


async def wait_for_port(port: int) -> None:
    """Wait until a server accepts connections on the local port."""

    async def is_open() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await poll_until(is_open)


async def run_command(command: tuple[str, ...], environ: Mapping[str, str]) -> tuple[int, str]:
    """Run a short command and return its exit status and output.

    Raises:
        StackError: the program cannot be run.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise StackError(f"{command[0]} cannot be run: {error.strerror}") from error
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace")
