"""Starts, reuses and ends the processes that convert pictures."""

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
from moyin.system.ranks import Rank, take_rank
from moyin.system.slots import Slots

_log = logging.getLogger(__name__)
_SCRIPT = Path(__file__).with_name("worker.py")
# The processes' environment contains no secrets, because a malicious picture may take over a
# decoder.
_ENVIRONMENT_NAMES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_TASKS_PER_PROCESS = 100
_MAX_RESPONSE_BYTES = 64 * 1024
# Time limit for the wait for a free process.
_MAX_WAIT_SECONDS = 30.0
# Time limit in seconds for the exit of a process whose output has ended.
_EXIT_SECONDS = 2.0
_UNREADABLE = "this file is not a readable picture or video: it may be damaged"
# Signals that end a process whose decoder crashes on a picture.
_CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureLimits:
    """Limits of one conversion.

    Attributes:
        pixels: largest number of pixels in a source picture.
        preview_pixels: largest number of pixels in a preview; larger pictures are scaled down.
        memory_mib: largest address space of a process, in MiB.
        seconds: limit of the processor time in seconds. The limit of the elapsed time is three
            times as long.
        source_mib: largest source file, in MiB.
        result_mib: largest result file, in MiB.
    """

    pixels: int = 8192 * 8192
    preview_pixels: int = 4096 * 4096
    memory_mib: int = 1024
    seconds: int = 20
    source_mib: int = 128
    result_mib: int = 128


class PictureProcess:
    """A process of `moyin.render.imaging.worker`, which runs one task at a time."""

    def __init__(self, process: asyncio.subprocess.Process, limits: PictureLimits) -> None:
        self._process = process
        self._limits = limits
        self._remaining_tasks = _TASKS_PER_PROCESS
        self.idle_timer: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, limits: PictureLimits) -> PictureProcess:
        environment = {name: os.environ[name] for name in _ENVIRONMENT_NAMES if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Do not add the script's folder to the module search path.
            "-P",
            str(_SCRIPT),
            str(os.getpid()),
            json.dumps(asdict(limits)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_MAX_RESPONSE_BYTES,
            env=environment,
        )
        take_rank(Rank.HELPER, Path(f"/proc/{process.pid}"))
        return cls(process, limits)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_usable(self) -> bool:
        """Whether the process is alive and can run another task."""
        return self._remaining_tasks > 0 and self._process.returncode is None

    async def run(self, task: Mapping[str, Any]) -> None:
        """Run a task of `moyin.render.imaging.worker.convert`.

        Raises `PictureTooLarge` or `InvalidRequest` if the picture can't be converted, or
        `ServiceUnavailable` if the process ends for another reason.
        """
        self._remaining_tasks -= 1
        try:
            async with asyncio.timeout(3 * self._limits.seconds):
                response = await self._send_task(task)
        except TimeoutError:
            await self.end()
            raise self._make_timeout_error() from None
        except BaseException:
            # Use the process for no other task, because it may send its response late.
            await self.end()
            raise
        if response is None:
            raise await self._make_exit_error()
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
        if self.idle_timer is not None:
            self.idle_timer.cancel()
        self._remaining_tasks = 0
        with suppress(ProcessLookupError):
            self._process.kill()
        # Shielded from cancellation, so that a client that disconnects leaves no zombie process.
        await asyncio.shield(self._process.wait())

    async def _send_task(self, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send a task, and return the response, or None if the process has ended."""
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

    async def _make_exit_error(self) -> Exception:
        # Wait for the exit first. `end` would signal the process while it exits, so that
        # `Popen.send_signal` would reap it and asyncio would report the status 255 instead of the
        # real one.
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_SECONDS):
                await asyncio.shield(self._process.wait())
        await self.end()
        status = self._process.returncode or 0
        if -status == signal.SIGXCPU:
            return self._make_timeout_error()
        _log.warning("a picture conversion process ended with status %d", status)
        if -status in _CRASH_SIGNALS:
            return InvalidRequest(_UNREADABLE, field="filename")
        if -status == signal.SIGKILL:
            return PictureTooLarge(
                "converting the picture takes more memory than the machine has; use a smaller "
                "picture",
                field="filename",
            )
        return ServiceUnavailable("the picture conversion process ended unexpectedly; try again")

    def _make_timeout_error(self) -> PictureTooLarge:
        seconds = self._limits.seconds
        return PictureTooLarge(
            f"converting the picture takes longer than {seconds} seconds; use a smaller picture",
            field="filename",
            details={"max_seconds": seconds},
        )


class PictureProcesses:
    """A pool of `PictureProcess` for one event loop, shared fairly between tenants.

    Args:
        max_processes: largest number of processes.
        max_waiting: largest number of conversions that wait for a process.
        max_wait_seconds: largest number of seconds that a conversion waits for a process.
        idle_seconds: time after which an idle process is ended.
    """

    def __init__(
        self,
        limits: PictureLimits | None = None,
        *,
        max_processes: int = 2,
        max_waiting: int = 64,
        max_wait_seconds: float = _MAX_WAIT_SECONDS,
        idle_seconds: float = 15.0,
    ) -> None:
        self.limits = limits or PictureLimits()
        # One tenant never gets all processes, so that its slow conversions do not block other
        # tenants.
        self._slots = Slots(
            max_processes,
            max_waiting=max_waiting,
            patience=max_wait_seconds,
            reserve_seconds=math.inf,
        )
        self._max_wait_seconds = max_wait_seconds
        self._idle_seconds = idle_seconds
        self._idle_processes: list[PictureProcess] = []
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def idle_pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._idle_processes)

    @asynccontextmanager
    async def acquire_process(self, tenant: str) -> AsyncIterator[PictureProcess]:
        """Reserve a free process for the block, or raise `Overloaded` after a timeout."""
        if not self._slots.try_acquire(tenant):
            await self._slots.wait(tenant, self._max_wait_seconds, self.limits.seconds / 4)
        try:
            process = self._pop_idle_process() or await PictureProcess.start(self.limits)
            try:
                yield process
            finally:
                await self._return_process(process)
        finally:
            self._slots.release(tenant)

    async def close(self) -> None:
        """End the idle processes at once, and each busy process after its task."""
        for process in self._idle_processes:
            await process.end()
        self._idle_processes.clear()
        self._idle_seconds = 0.0
        await asyncio.gather(*self._ending)

    def _pop_idle_process(self) -> PictureProcess | None:
        while self._idle_processes:
            process = self._idle_processes.pop()
            assert process.idle_timer is not None
            process.idle_timer.cancel()
            if process.is_usable:
                return process
            self._end_in_background(process)
        return None

    async def _return_process(self, process: PictureProcess) -> None:
        if not process.is_usable or not self._idle_seconds:
            await process.end()
            return
        loop = asyncio.get_running_loop()
        process.idle_timer = loop.call_later(self._idle_seconds, self._end_idle, process)
        self._idle_processes.append(process)

    def _end_idle(self, process: PictureProcess) -> None:
        self._idle_processes.remove(process)
        self._end_in_background(process)

    def _end_in_background(self, process: PictureProcess) -> None:
        task = asyncio.create_task(process.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
