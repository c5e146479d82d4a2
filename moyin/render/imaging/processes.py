"""Processes that convert pictures: started when needed, bounded, and ended when idle."""

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

__all__ = ["Bounds", "PictureProcess", "PictureProcesses"]

_log = logging.getLogger(__name__)
_SCRIPT = Path(__file__).with_name("worker.py")
# A decoder that a picture takes over finds no secret in its environment.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_ORDERS = 100
_LARGEST_ANSWER = 64 * 1024
# A picture waits for its turn so long; a conversion takes so many seconds of a processor at most.
_PATIENCE = 30.0
# From the end of a process's output to its own.
_EXIT_SECONDS = 2.0
_UNREADABLE = "this is no picture that can be read"
# How a process ends that its decoder has led astray.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a conversion may take.

    Attributes:
        pixels: of a picture that is decoded.
        preview_pixels: of a preview; a larger picture is scaled down.
        memory_mib: address space of a process.
        seconds: of a processor for one picture; on the clock, three times as long.
        source_mib, result_mib: files that are read and written.
    """

    pixels: int = 8192 * 8192
    preview_pixels: int = 4096 * 4096
    memory_mib: int = 1024
    seconds: int = 20
    source_mib: int = 128
    result_mib: int = 128


class PictureProcess:
    """One process. Used by one order at a time."""

    def __init__(self, process: asyncio.subprocess.Process, bounds: Bounds) -> None:
        self._process = process
        self._bounds = bounds
        self._left = _ORDERS
        self.idle_until: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, bounds: Bounds) -> PictureProcess:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Without this file's neighbours in its path.
            "-P",
            str(_SCRIPT),
            str(os.getpid()),
            json.dumps(asdict(bounds)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LARGEST_ANSWER,
            env=environment,
        )
        return cls(process, bounds)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it may get another order."""
        return self._left > 0 and self._process.returncode is None

    async def do(self, order: Mapping[str, Any]) -> None:
        """Carry out one order of `moyin.render.imaging.worker`.

        Raises:
            PictureTooLarge: it takes more than it may.
            InvalidRequest: the picture can't be read, or not be converted like that.
        """
        self._left -= 1
        try:
            async with asyncio.timeout(3 * self._bounds.seconds):
                answer = await self._ask(order)
        except TimeoutError:
            await self.end()
            raise self._too_slow() from None
        except BaseException:
            # Its answer, when it comes, is nobody's.
            await self.end()
            raise
        if answer is None:
            raise await self._ended()
        if answer.get("last"):
            await self.end()
        kind = answer.get("problem")
        if kind == "large":
            raise PictureTooLarge(
                answer["message"], field="filename", details=answer.get("details")
            )
        if kind is not None:
            raise InvalidRequest(
                answer["message"], field="preview" if kind == "unfit" else "filename"
            )

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        if self.idle_until is not None:
            self.idle_until.cancel()
        self._left = 0
        with suppress(ProcessLookupError):
            self._process.kill()
        # Not left alone as a zombie because a client leaves.
        await asyncio.shield(self._process.wait())

    async def _ask(self, order: Mapping[str, Any]) -> dict[str, Any] | None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(order).encode() + b"\n")
            await stdin.drain()
            line = await stdout.readline()
        except ConnectionError:
            return None
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer

    async def _ended(self) -> Exception:
        # Its output has ended, so it is about to. Killed just then, it would be reaped by
        # `Popen.send_signal`, and asyncio would report status 255 whatever it died of.
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
            return PictureTooLarge("the picture takes more memory than there is", field="filename")
        return ServiceUnavailable("the picture could not be converted")

    def _too_slow(self) -> PictureTooLarge:
        seconds = self._bounds.seconds
        return PictureTooLarge(
            f"converting the picture takes longer than {seconds} seconds",
            field="filename",
            details={"max_seconds": seconds},
        )


class PictureProcesses:
    """The processes of one replica, shared fairly between tenants. Used from one event loop.

    Args:
        processes: at a time, at most.
        queue: pictures that may wait.
        idle: seconds after which a process without work ends.
    """

    def __init__(
        self,
        bounds: Bounds | None = None,
        *,
        processes: int = 2,
        queue: int = 64,
        patience: float = _PATIENCE,
        idle: float = 15.0,
    ) -> None:
        self.bounds = bounds or Bounds()
        # A conversion may take long: no tenant ever has all processes.
        self._slots = Slots(processes, queue=queue, patience=patience, kept=math.inf)
        self._patience = patience
        self._idle = idle
        self._resting: list[PictureProcess] = []
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of those without work."""
        return tuple(process.pid for process in self._resting)

    @asynccontextmanager
    async def process(self, tenant: str) -> AsyncIterator[PictureProcess]:
        """A process for the tenant's next order.

        Raises:
            Overloaded: too many pictures wait already, or it took too long.
        """
        if not self._slots.take(tenant):
            await self._slots.wait(tenant, self._patience, self.bounds.seconds / 4)
        try:
            process = self._rested() or await PictureProcess.start(self.bounds)
            try:
                yield process
            finally:
                await self._rest(process)
        finally:
            self._slots.free(tenant)

    async def close(self) -> None:
        """End all that rest; those that work end with their orders' tasks."""
        for process in self._resting:
            await process.end()
        self._resting.clear()
        self._idle = 0.0
        await asyncio.gather(*self._ending)

    def _rested(self) -> PictureProcess | None:
        while self._resting:
            process = self._resting.pop()
            assert process.idle_until is not None
            process.idle_until.cancel()
            if process.usable:
                return process
            self._end_soon(process)
        return None

    async def _rest(self, process: PictureProcess) -> None:
        if not process.usable or not self._idle:
            await process.end()
            return
        loop = asyncio.get_running_loop()
        process.idle_until = loop.call_later(self._idle, self._end_idle, process)
        self._resting.append(process)

    def _end_idle(self, process: PictureProcess) -> None:
        self._resting.remove(process)
        self._end_soon(process)

    def _end_soon(self, process: PictureProcess) -> None:
        task = asyncio.create_task(process.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
