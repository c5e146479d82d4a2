"""Defines a supervised service, and helpers for waiting, running commands and HTTP requests."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from moyin.errors import StackError

_POLL_SECONDS = 0.1
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, kw_only=True)
class Service:
    """The description of a process that a `ServiceSupervisor` keeps running.

    Attributes:
        wait_ready: returns when the process is ready; it is cancelled if the process ends first.
        ready_seconds: time limit of ``wait_ready``.
        stop_seconds: time limit for the process to end after SIGTERM.
        find_fault: called every few seconds in a thread with the process id; returns the reason for
            which the process must be restarted, or None.
        timer_slack_ns: nanoseconds by which the kernel may delay the process's timers, or 0 for the
            kernel's default of 50,000.
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
    """Call ``check`` every 0.1 seconds until ``check`` returns True."""
    while True:
        if await check():
            return
        await asyncio.sleep(_POLL_SECONDS)


async def wait_for_port(port: int) -> None:
    """Wait until a server on this machine accepts connections on the port."""

    async def is_open() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await poll_until(is_open)


async def run_command(command: tuple[str, ...], environ: Mapping[str, str]) -> tuple[int, str]:
    """Run a command and return its exit status and output, or raise `StackError`."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise StackError(
            f"{command[0]} cannot be run: {error.strerror}: check that it is an executable file"
        ) from error
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace")


def send_request(
    method: str,
    url: str,
    *,
    body: bytes | None = None,
    bearer_token: str = "",
    timeout_seconds: float = 5.0,
) -> tuple[int, bytes]:
    """Send an HTTP request without a proxy and return the status and body; this blocks.

    If there is no response, the status is 0 and the body is the reason.
    """
    request = urllib.request.Request(url, data=body, method=method)
    if body is not None:
        request.add_header("content-type", "application/json")
    if bearer_token:
        request.add_header("authorization", f"Bearer {bearer_token}")
    try:
        with _opener.open(request, timeout=timeout_seconds) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()
