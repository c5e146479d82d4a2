"""`PictureProcesses`: starts processes that convert pictures, limits them, and ends idle ones."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moyin.errors import InvalidRequest, PictureTooLarge, ServiceUnavailable
from moyin.system.slots import Slots

__all__ = ["PictureLimits", "PictureProcess", "PictureProcesses"]

_log = logging.getLogger(__name__)
_SCRIPT = Path(__file__).with_name("worker.py")
# No secrets: a malicious picture may take over the decoder.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_TASKS_PER_PROCESS = 100
_MAX_RESPONSE_BYTES = 64 * 1024
# How long a picture waits for a process.
_PATIENCE_SECONDS = 30.0
# Longest time between the end of a process's output and its exit.
_EXIT_SECONDS = 2.0
_UNREADABLE = "this file is not a readable picture"
# Signals that end a process whose decoder crashes on a picture.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureLimits:
    """Limits of one conversion.

    Attributes:
        pixels: size of a picture that is decoded.
        preview_pixels: size of a preview; a larger picture is scaled down.
        memory_mib: address space of a process.
        seconds: processor time for one picture; it may take three times as long in real time.
        source_mib: size of the file that is read.
        result_mib: size of the file that is written.
    """

    pixels: int = 8192 * 8192
    preview_pixels: int = 4096 * 4096
    memory_mib: int = 1024
    seconds: int = 20
    source_mib: int = 128
    result_mib: int = 128


class PictureProcess:
    """Runs one task at a time in a process of `moyin.render.imaging.worker`."""

    def __init__(self, process: asyncio.subprocess.Process, limits: PictureLimits) -> None:
        self._process = process
        self._limits = limits
        self._remaining_tasks = _TASKS_PER_PROCESS
        self.idle_timer: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, limits: PictureLimits) -> PictureProcess:
        """Start a process."""
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Without the script's folder in its module path.
            "-P",
            str(_SCRIPT),
            str(os.getpid()),
            json.dumps(asdict(limits)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_MAX_RESPONSE_BYTES,
            env=environment,
        )
        return cls(process, limits)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_usable(self) -> bool:
        """Whether the process may get another task."""
        return self._remaining_tasks > 0 and self._process.returncode is None

    async def run(self, task: Mapping[str, Any]) -> None:
        """Carry out one task of `moyin.render.imaging.worker`.

        Raises:
            PictureTooLarge: the conversion exceeds a limit.
            InvalidRequest: the picture can't be read, or can't be converted in this way.
        """
        self._remaining_tasks -= 1
        try:
            async with asyncio.timeout(3 * self._limits.seconds):
                response = await self._send(task)
        except TimeoutError:
            await self.end()
            raise self._too_slow() from None
        except BaseException:
            # Its response must not be read as that of the next task.
            await self.end()
            raise
        if response is None:
            raise await self._exit_error()
        if response.get("last"):
            await self.end()
        kind = response.get("problem")
        if kind == "large":
            raise PictureTooLarge(
                response["message"], field="filename", details=response.get("details")
            )
        if kind is not None:
            raise InvalidRequest(
                response["message"], field="preview" if kind == "unfit" else "filename"
            )

    async def end(self) -> None:
        """Kill the process and wait until it has ended."""
        if self.idle_timer is not None:
            self.idle_timer.cancel()
        self._remaining_tasks = 0
        with suppress(ProcessLookupError):
            self._process.kill()
        # Shielded, so that a disconnect of the client leaves no zombie.
        await asyncio.shield(self._process.wait())

    async def _send(self, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send a task; return the response, or None if the process has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(task).encode() + b"\n")
            await stdin.drain()
            line = await stdout.readline()
        except ConnectionError:
            return None
        response: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return response

    async def _exit_error(self) -> Exception:
        # Wait for the exit before `end`: if the process is killed just before it exits,
        # `Popen.send_signal` reaps it, and asyncio reports status 255 instead of the real one.
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_SECONDS):
                await asyncio.shield(self._process.wait())
        await self.end()
        status = self._process.returncode or 0
        if -status == signal.SIGXCPU:
            return self._too_slow()
        _log.warning("a process that converts pictures ended with status %d", status)
        if -status in _CRASHES:
            return InvalidRequest(_UNREADABLE, field="filename")
        if -status == signal.SIGKILL:
            return PictureTooLarge(
                "the picture needs more memory than the machine has", field="filename"
            )
        return ServiceUnavailable("the picture could not be converted; try again")

    def _too_slow(self) -> PictureTooLarge:
        seconds = self._limits.seconds
        return PictureTooLarge(
            f"converting the picture takes longer than {seconds} seconds",
            field="filename",
            details={"max_seconds": seconds},
        )


class PictureProcesses:
    """The processes of one replica, shared fairly between tenants. Used from one event loop.

    Args:
        processes: number of processes at a time.
        queue: number of pictures that may wait.
        patience: seconds that a picture waits at most.
        idle: seconds after which an idle process ends.
    """

    def __init__(
        self,
        limits: PictureLimits | None = None,
        *,
        processes: int = 2,
        queue: int = 64,
        patience: float = _PATIENCE_SECONDS,
        idle: float = 15.0,
    ) -> None:
        self.limits = limits or PictureLimits()
        # Conversions may be slow, so a tenant never gets all processes.
        self._slots = Slots(processes, queue=queue, patience=patience, reserve_seconds=math.inf)
        self._patience = patience
        self._idle = idle
        self._idle_processes: list[PictureProcess] = []
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def idle_pids(self) -> tuple[int, ...]:
        """The ids of the idle processes."""
        return tuple(process.pid for process in self._idle_processes)

    @asynccontextmanager
    async def process(self, tenant: str) -> AsyncIterator[PictureProcess]:
        """Wait for a process and hold it for one task of the tenant.

        Raises:
            Overloaded: too many pictures wait, or the wait took too long.
        """
        if not self._slots.take(tenant):
            await self._slots.wait(tenant, self._patience, self.limits.seconds / 4)
        try:
            process = self._pop_idle() or await PictureProcess.start(self.limits)
            try:
                yield process
            finally:
                await self._put_back(process)
        finally:
            self._slots.free(tenant)

    async def close(self) -> None:
        """End the idle processes; busy ones end after their task."""
        for process in self._idle_processes:
            await process.end()
        self._idle_processes.clear()
        self._idle = 0.0
        await asyncio.gather(*self._ending)

    def _pop_idle(self) -> PictureProcess | None:
        while self._idle_processes:
            process = self._idle_processes.pop()
            assert process.idle_timer is not None
            process.idle_timer.cancel()
            if process.is_usable:
                return process
            self._end_soon(process)
        return None

    async def _put_back(self, process: PictureProcess) -> None:
        if not process.is_usable or not self._idle:
            await process.end()
            return
        loop = asyncio.get_running_loop()
        process.idle_timer = loop.call_later(self._idle, self._end_idle, process)
        self._idle_processes.append(process)

    def _end_idle(self, process: PictureProcess) -> None:
        self._idle_processes.remove(process)
        self._end_soon(process)

    def _end_soon(self, process: PictureProcess) -> None:
        task = asyncio.create_task(process.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
