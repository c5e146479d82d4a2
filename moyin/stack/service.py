"""The contract between the supervisor and what it supervises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from moyin.errors import StackError

__all__ = ["Service", "run_to_end", "until", "until_open"]

_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process to keep alive.

    Attributes:
        ready: returns when the process serves; it is cancelled when the process ends first.
        ready_seconds: how long ``ready`` may take.
        stop_seconds: how long the process may take to end after SIGTERM.
        broken: given the process's pid, returns why it has to be started again although it runs;
            None: it is well. Is called every few seconds, in a thread.
        timer_slack_ns: by how much the kernel may be late with the process's timers; 0: 50,000.
    """

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    ready: Callable[[], Awaitable[None]]
    ready_seconds: float = 30.0
    stop_seconds: float = 10.0
    broken: Callable[[int], str | None] | None = None
    timer_slack_ns: int = 0


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Return when ``check`` says so; ask it again and again."""
    while True:
        if await check():
            return
        await asyncio.sleep(_POLL_SECONDS)


async def until_open(port: int) -> None:
    """Return when something accepts connections on the local port."""

    async def accepts() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await until(accepts)


async def run_to_end(command: tuple[str, ...], environ: Mapping[str, str]) -> tuple[int, str]:
    """Exit status and output of a short command.

    Raises:
        StackError: the program is not there.
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
