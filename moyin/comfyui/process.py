"""One ComfyUI process: its command line, its start, its death and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import moyin.comfyui.launcher as launcher
from moyin.comfyui.folder import ProcessFolder
from moyin.comfyui.options import ComfyOptions
from moyin.stack.logfile import LogFile, tail

__all__ = ["ComfyProcess", "Spawner", "memory_kills"]

_LAUNCHER = Path(launcher.__file__)
_CHUNK = 64 * 1024


class Spawner:
    """Forks from one thread that lives until `close`.

    A parent-death signal comes when the forking *thread* ends, so a pool's passing thread won't do.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

    async def spawn(self, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _spawn, command, env)

    def close(self) -> None:
        """Processes that still run are killed by the kernel."""
        self._thread.shutdown()


class ComfyProcess:
    """A started process. ``exited`` is done, with the exit status, when it is gone."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._memory_kills = memory_kills()
        self._log = LogFile(log)
        self._log_path = log
        self.url = f"http://127.0.0.1:{port}"
        self.exited = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls, options: ComfyOptions, folder: ProcessFolder, spawner: Spawner
    ) -> ComfyProcess:
        """Start it; it answers only seconds later.

        Raises:
            OSError: the interpreter can't be run.
        """
        port = _free_port()
        command = command_line(options, folder, port, os.getpid())
        env = {**os.environ, "MOYIN_GPU_SHARE": str(options.share), "PYTHONUNBUFFERED": "1"}
        # ComfyUI's interpreter is not ours, and must not load our packages.
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            env.pop(name, None)
        return cls(await spawner.spawn(command, env), port, folder.log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def killed(self) -> bool:
        """Whether somebody has killed it, and not the kernel because it took too much memory."""
        if not self.exited.done() or self.exited.result() != -signal.SIGKILL:
            return False
        return memory_kills() == self._memory_kills

    def last_lines(self, count: int = 12) -> str:
        """What it said last, for an operator."""
        return "\n".join(tail(self._log_path, count))

    async def stop(self, patience: float = 5.0) -> None:
        """End the whole process group: SIGTERM, then SIGKILL after ``patience`` seconds."""
        if not self.exited.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait([self.exited], timeout=patience)
        # Whatever the status of the leader: its children are in the group as well.
        self._signal(signal.SIGKILL)
        await self.exited

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


def command_line(options: ComfyOptions, folder: ProcessFolder, port: int, parent: int) -> list[str]:
    """The launcher's arguments, then those of ``main.py``."""
    return [
        str(options.python),
        str(_LAUNCHER),
        str(parent),
        str(options.home / "main.py"),
        *("--listen", "127.0.0.1", "--port", str(port)),
        *("--base-directory", str(folder.path)),
        # The default lies in the installation and would be shared by all processes.
        *("--database-url", folder.database_url),
        *("--disable-auto-launch", "--disable-api-nodes"),
        *("--preview-method", "auto"),
        *(("--cpu",) if options.cpu else ()),
        *options.flags,
        *("--disable-all-custom-nodes", "--whitelist-custom-nodes", *folder.node_packages),
    ]


def _spawn(command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Its own group, so that what custom nodes start ends with it.
        start_new_session=True,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _gone(pid: int) -> None:
    """Return when the child has ended; it is not reaped."""
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
