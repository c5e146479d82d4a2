"""Starting, ending and finding the processes of a stack."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import psutil

from moyin.system.logfile import LogFile

__all__ = ["SERVICE_VARIABLE", "STACK_VARIABLE", "Child", "find", "missing", "sweep"]

STACK_VARIABLE = "MOYIN_STACK"
SERVICE_VARIABLE = "MOYIN_SERVICE"
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A process that ends when this one ends, whatever ends this one."""

    def __init__(self, process: asyncio.subprocess.Process, pump: asyncio.Task[None]) -> None:
        self._process = process
        self._pump = pump
        self.started = time.monotonic()

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        env: Mapping[str, str],
        log: LogFile,
        *,
        timer_slack_ns: int = 0,
    ) -> Child:
        """Start ``command``; what it prints goes to ``log``.

        Must be called from the main thread: the parent-death signal follows the thread.

        Args:
            timer_slack_ns: see `moyin.stack.service.Service`.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_arranged(os.getpid(), timer_slack_ns),
        )
        assert process.stdout is not None
        return cls(process, asyncio.create_task(_copy(process.stdout, log)))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit status; negative: the signal that ended it."""
        return await self._process.wait()

    async def stop(self, patience: float) -> None:
        """SIGTERM, then SIGKILL after ``patience`` seconds. Returns when it is gone."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(patience):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        # A grandchild may hold the pipe open for ever.
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)


def find(stack: str, service: str | None = None) -> Iterator[psutil.Process]:
    """Processes of the stack ``stack`` (its data folder), or of one of its services.

    Never this process or those it came from, even when a job of the stack runs our command line.
    """
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        try:
            env = process.environ()
        except psutil.Error:
            continue  # it ended, or it is another user's and so not ours
        if env.get(STACK_VARIABLE) == stack and service in (None, env.get(SERVICE_VARIABLE)):
            yield process


def missing(parent: int, names: Collection[str]) -> list[str]:
    """Return which of ``names`` no living child of the process ``parent`` has.

    Nothing is missing of a process that has ended itself.
    """
    try:
        children = psutil.Process(parent).children()
    except psutil.NoSuchProcess:
        return []
    living = {name for child in children if (name := _living_name(child)) is not None}
    return [name for name in names if name not in living]


def _living_name(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.name())
    except psutil.NoSuchProcess:
        return None


def sweep(stack: str, service: str | None = None, *, patience: float = 2.0) -> int:
    """End what `find` finds; returns how many there were. Blocks for up to ``patience`` seconds."""
    left = list(find(stack, service))
    for process in left:
        _send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(left, timeout=patience)
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)
    return len(left)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _arranged(parent: int, timer_slack_ns: int) -> Callable[[], None]:
    slack = ctypes.c_ulong(timer_slack_ns)

    def arrange() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if timer_slack_ns:
            _libc.prctl(_PR_SET_TIMERSLACK, slack, 0, 0, 0)
        # The parent may have gone between the fork and this line.
        if os.getppid() != parent:
            os._exit(1)

    return arrange


async def _copy(source: asyncio.StreamReader, log: LogFile) -> None:
    while data := await source.read(64 * 1024):
        log.write(data)
