"""Starts, finds and ends the processes of a stack, and calculates the pauses between restarts."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil

from moyin.system.logfile import LogFile

STACK_VARIABLE = "MOYIN_STACK"
SERVICE_VARIABLE = "MOYIN_SERVICE"
# Collections cost a model call a fifteenth of its processor time with 700, Python's default.
_OBJECTS_PER_COLLECTION = 10_000
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_libc = ctypes.CDLL(None, use_errno=True)


class ChildProcess:
    """A child process to which the kernel sends SIGTERM when this process ends, even by a crash."""

    def __init__(
        self, process: asyncio.subprocess.Process, output_task: asyncio.Task[None]
    ) -> None:
        self._process = process
        self._pump = output_task
        self.started = time.monotonic()

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        env: Mapping[str, str],
        log_file: LogFile,
        *,
        timer_slack_ns: int = 0,
    ) -> ChildProcess:
        """Start ``command`` and write its output to ``log_file``.

        Call this method only from the main thread: the kernel sends SIGTERM to the child when the
        thread that started it ends.

        Args:
            timer_slack_ns: nanoseconds by which the kernel may delay the process's timers, or 0 for
                the kernel's default.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_make_preexec(os.getpid(), timer_slack_ns),
        )
        assert process.stdout is not None
        return cls(process, asyncio.create_task(_copy_output(process.stdout, log_file)))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Wait until the process has ended; return its exit status, or minus its signal number."""
        return await self._process.wait()

    async def stop(self, patience: float) -> None:
        """Send SIGTERM, then SIGKILL after ``patience`` seconds, and wait for the exit."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(patience):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        # Cancelled, because a grandchild may hold the pipe open for ever.
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)


@dataclass(slots=True)
class Backoff:
    """Calculates the pause before a restart, which doubles from ``first`` to ``longest`` seconds.

    A run of at least ``stable`` seconds resets the pause to ``first``.
    """

    first: float = 0.5
    longest: float = 30.0
    stable: float = 60.0
    _failures: int = 0

    def compute_delay(self, lifetime: float) -> float:
        """Return the seconds to pause after a run of ``lifetime`` seconds."""
        if lifetime >= self.stable:
            self._failures = 0
        delay = min(self.longest, self.first * 2.0**self._failures)
        # Not counted beyond the longest pause, so that the exponent can't overflow.
        if delay < self.longest:
            self._failures += 1
        return delay


def find_processes(stack_id: str, service: str | None = None) -> Iterator[psutil.Process]:
    """Yield the processes of a stack, or of one of its services.

    This process and its ancestors are left out, since a job of the stack may run `moyin`.

    Args:
        stack_id: the id of the stack, which the environment of its processes contains.
    """
    own_pids = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in own_pids:
            continue
        try:
            env = process.environ()
        except psutil.Error:
            continue  # it has ended, or belongs to another user and so not to this stack
        if env.get(STACK_VARIABLE) == stack_id and service in (None, env.get(SERVICE_VARIABLE)):
            yield process


def find_missing_children(parent_pid: int, names: Collection[str]) -> list[str]:
    """Return the ``names`` that no living child process has.

    Args:
        parent_pid: the id of the parent process. If it has ended, the result is empty.
        names: the names that its living children should have.
    """
    try:
        children = psutil.Process(parent_pid).children()
    except psutil.NoSuchProcess:
        return []
    living_names = {name for child in children if (name := _get_living_name(child)) is not None}
    return [name for name in names if name not in living_names]


def _get_living_name(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.name())
    except psutil.NoSuchProcess:
        return None


def end_processes(stack_id: str, service: str | None = None, *, patience: float = 2.0) -> int:
    """End the processes that `find_processes` yields, and return their number (blocking).

    Processes that do not end within ``patience`` seconds after SIGTERM are killed.
    """
    processes = list(find_processes(stack_id, service))
    for process in processes:
        _send_signal(process, signal.SIGTERM)
    _, remaining_processes = psutil.wait_procs(processes, timeout=patience)
    for process in remaining_processes:
        _send_signal(process, signal.SIGKILL)
    psutil.wait_procs(remaining_processes, timeout=5)
    return len(processes)


def freeze_startup_objects() -> None:
    """Exempt all existing objects from garbage collection, and collect new objects less often.

    Ray and the SDKs import hundreds of thousands of objects that live as long as the process. Every
    full collection would otherwise visit all of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION)


def _send_signal(process: psutil.Process, signal_number: signal.Signals) -> None:
    try:
        process.send_signal(signal_number)
    except psutil.NoSuchProcess:
        return


def _make_preexec(parent_pid: int, timer_slack_ns: int) -> Callable[[], None]:
    """Return the function that the child calls between fork and exec.

    It makes the kernel send SIGTERM to the child when this process ends, and sets the timer slack.
    """
    slack = ctypes.c_ulong(timer_slack_ns)

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if timer_slack_ns:
            _libc.prctl(_PR_SET_TIMERSLACK, slack, 0, 0, 0)
        # The parent may have ended between the fork and this line.
        if os.getppid() != parent_pid:
            os._exit(1)

    return prepare


async def _copy_output(source: asyncio.StreamReader, log_file: LogFile) -> None:
    while data := await source.read(64 * 1024):
        log_file.write(data)
