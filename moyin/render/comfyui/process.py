"""One ComfyUI process: its command line, its start, its death and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from moyin.errors import StackError
from moyin.render.comfyui.bubblewrap import filter_file, require_confinement
from moyin.render.comfyui.channels import Channels
from moyin.render.comfyui.environment import child_environment
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions, Isolation
from moyin.render.comfyui.sandbox import (
    bubblewrap_options,
    closed_to,
    device_groups,
    graphics_devices,
    shared_folders,
    user_of,
)
from moyin.render.comfyui.sandbox_processes import SandboxProcesses
from moyin.system.logfile import LogFile, tail

__all__ = ["ComfyProcess", "Spawner", "memory_kills"]

_log = logging.getLogger(__name__)
_CHUNK = 64 * 1024
_END_SECONDS = 5.0
# Math libraries have one for each processor, several times over.
_THREADS = 16_384
# As which bubblewrap, like a shell, reports that what it runs was killed.
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


class Spawner:
    """Forks from one thread that lives until `close`.

    A parent-death signal comes when the forking *thread* ends, so a pool's passing thread won't do.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

    async def spawn(
        self, command: list[str], env: dict[str, str], descriptors: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _spawn, command, env, descriptors)

    def close(self) -> None:
        """Processes that still run are killed by the kernel."""
        self._thread.shutdown()


class ComfyProcess:
    """A started process. ``exited`` is done, with the exit status, when it is gone.

    Attributes:
        address: path of the Unix socket on which it serves.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channels: Channels,
        log: Path,
        inmates: SandboxProcesses | None = None,
    ) -> None:
        self._process = process
        self._channels = channels
        self._inmates = inmates
        self._memory_kills = memory_kills()
        self._log = LogFile(log)
        self._log_path = log
        self.address = channels.address
        self.exited = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls, options: ComfyOptions, folder: ProcessFolder, spawner: Spawner
    ) -> ComfyProcess:
        """Start it; it answers only seconds later.

        Raises:
            OSError: the interpreter can't be run.
            StackError: this machine can't confine it.
        """
        env = child_environment(os.environ, options, folder.scratch)
        strict = options.isolation is Isolation.STRICT
        confined = await asyncio.to_thread(_confined, options, folder, env) if strict else None
        channels = Channels(folder.path)
        process: subprocess.Popen[bytes] | None = None
        try:
            command = command_line(options, folder, _launch(options, channels))
            passed = [channels.listening, channels.alive]
            if confined is None:
                process = await spawner.spawn(command, env, passed)
                return cls(process, channels, folder.log)
            with _pipe() as (telling, told), _memory(filter_file()) as filters:
                confined += ["--seccomp", str(filters), "--info-fd", str(told.fileno()), "--"]
                passed += [filters, told.fileno()]
                process = await spawner.spawn([*confined, *command], env, passed)
                told.close()
                inmates = await asyncio.to_thread(_inmates, telling, process)
            return cls(process, channels, folder.log, inmates)
        except BaseException:
            channels.close()
            if process is not None:
                process.kill()
                await asyncio.to_thread(process.wait)
            raise
        finally:
            channels.hand_over()

    @property
    def pid(self) -> int:
        """ComfyUI's own process, where it can be told from what confines it."""
        main = None if self._inmates is None else self._inmates.main
        return self._process.pid if main is None else main

    @property
    def killed(self) -> bool:
        """Whether somebody has killed it, and not the kernel because it took too much memory."""
        if not self.exited.done() or self.exited.result() not in _KILLED:
            return False
        return memory_kills() == self._memory_kills

    def last_lines(self, count: int = 12) -> str:
        """What it said last, for an operator."""
        return "\n".join(tail(self._log_path, count))

    def settle(self) -> None:
        """Its start is over: processes that are there now may stay; blocks."""
        if self._inmates is not None:
            self._inmates.settle()

    def end_strays(self) -> None:
        """Kill the processes that a prompt has left behind; blocks.

        Raises:
            WorkerLost: one does not end.
        """
        if self._inmates is not None:
            self._inmates.end_strays()

    async def stop(self, patience: float = 5.0) -> None:
        """End the whole process group: SIGTERM, then SIGKILL after ``patience`` seconds."""
        if not self.exited.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait([self.exited], timeout=patience)
        # Whatever the status of the leader: its children are in the group as well.
        self._signal(signal.SIGKILL)
        await self.exited
        if self._inmates is not None:
            # The kernel ends a sandbox with its first process, which takes it a moment.
            with contextlib.suppress(TimeoutError, ProcessLookupError):
                async with asyncio.timeout(_END_SECONDS):
                    await _gone(self._inmates.init)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _watch(self) -> int:
        assert self._process.stdout is not None
        pump = asyncio.create_task(self._pump(self._process.stdout.fileno()))
        try:
            await _gone(self._process.pid)
            status = self._process.wait()
            # A grandchild may hold the pipe open for ever.
            await asyncio.wait([pump], timeout=0.5)
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            self._process.stdout.close()
            self._log.close()
            self._channels.close()
        return status

    async def _pump(self, descriptor: int) -> None:
        while True:
            await _readable(descriptor)
            data = os.read(descriptor, _CHUNK)
            if not data:
                return
            self._log.write(data)


def memory_kills(path: Path = Path("/proc/vmstat")) -> int:
    """How often the kernel has killed a process for want of memory, since the machine started."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(line[1]) for line in lines if line[0] == "oom_kill"), 0)


def command_line(options: ComfyOptions, folder: ProcessFolder, launch: dict[str, Any]) -> list[str]:
    """The launcher's arguments, then those of ``main.py``."""
    return [
        str(options.python),
        str(folder.launcher),
        json.dumps(launch),
        str(options.home / "main.py"),
        *("--base-directory", str(folder.base)),
        # The default lies in the installation and would be shared by all processes, and by prompts.
        *("--database-url", "sqlite:///:memory:"),
        *("--disable-auto-launch", "--disable-api-nodes"),
        *("--preview-method", "auto"),
        *(("--cpu",) if options.cpu else ()),
        *options.flags,
        *("--disable-all-custom-nodes", "--whitelist-custom-nodes", *folder.node_packages),
    ]


def _launch(options: ComfyOptions, channels: Channels) -> dict[str, Any]:
    """What the launcher has to know; see there."""
    launch: dict[str, Any] = {
        "socket": channels.listening,
        "alive": channels.alive,
        "file_bytes": options.output_bytes,
    }
    if options.isolation is not Isolation.STRICT:
        return {**launch, "parent": os.getpid()}
    user = user_of(options)
    if user is not None:
        devices = [] if options.cpu else graphics_devices()
        launch |= {"user": user, "groups": device_groups(devices), "threads": _THREADS}
    return launch


def _confined(options: ComfyOptions, folder: ProcessFolder, env: dict[str, str]) -> list[str]:
    """Bubblewrap and its options.

    Raises:
        StackError: this machine can't confine a process.
    """
    user = user_of(options)
    closed = None if user is None else closed_to(user, shared_folders(options))
    if closed is not None:
        _log.warning(
            "user %s, as whom ComfyUI is confined, may not read %s: `chmod -R a+rX` its folder, or "
            "name the files' user in MOYIN_COMFYUI_UID",
            user,
            closed,
        )
    return [str(require_confinement()), *bubblewrap_options(options, folder, env)]


def _inmates(telling: IO[str], process: subprocess.Popen[bytes]) -> SandboxProcesses:
    """
    Raises:
        StackError: there is no sandbox.
    """
    try:
        return SandboxProcesses(int(json.loads(telling.read())["child-pid"]))
    except (ValueError, KeyError) as error:
        said, _ = process.communicate()
        raise StackError(f"ComfyUI can't be confined: {said.decode(errors='replace')}") from error


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[IO[str], IO[str]]]:
    reading, writing = os.pipe()
    with os.fdopen(reading) as source, os.fdopen(writing, "w") as target:
        yield source, target


@contextlib.contextmanager
def _memory(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _spawn(
    command: list[str], env: dict[str, str], descriptors: Sequence[int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Its own group, so that what custom nodes start ends with it.
        start_new_session=True,
        pass_fds=descriptors,
    )


async def _gone(pid: int) -> None:
    """Return when the process has ended; a child is not reaped."""
    descriptor = os.pidfd_open(pid)
    try:
        await _readable(descriptor)
    finally:
        os.close(descriptor)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
