"""Starts, watches and stops a ComfyUI process."""

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
from moyin.render.comfyui.bubblewrap import open_filter, require_confinement
from moyin.render.comfyui.channels import ProcessChannels
from moyin.render.comfyui.environment import build_child_environment
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions, Isolation, Network
from moyin.render.comfyui.resource_usage import ResourceLimits, ResourceUsage
from moyin.render.comfyui.sandbox import (
    build_bubblewrap_options,
    choose_user_id,
    find_device_groups,
    find_graphics_devices,
    find_shared_folders,
    find_unreadable_file,
)
from moyin.render.comfyui.sandbox_processes import SandboxProcesses
from moyin.render.comfyui.seccomp import build_fork_filter
from moyin.system.logfile import LogFile, read_last_lines
from moyin.system.memory import count_kernel_kills

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 64 * 1024
_SANDBOX_END_SECONDS = 15.0
# The limit of threads is high, because each math library starts several threads per processor.
_MAX_THREADS = 16_384
# Like a shell, bubblewrap exits with 128 plus the number of the signal that killed its child.
_KILLED_STATUSES = (-signal.SIGKILL, 128 + signal.SIGKILL)


class Spawner:
    """Starts all processes from one thread of its own, which lives until `close`.

    When a thread ends, the kernel kills the processes that it started. The threads of asyncio's
    executor may end early, so they are not used.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

    async def spawn(
        self, command: list[str], env: dict[str, str], descriptors: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a process that inherits the file descriptors ``descriptors``."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _spawn, command, env, descriptors)

    def close(self) -> None:
        """End the spawner's thread, after which the kernel kills its processes that still run."""
        self._thread.shutdown()


class ComfyProcess:
    """A running ComfyUI process.

    Attributes:
        address: path of ComfyUI's Unix socket.
        exited: task that returns the exit status when the process has ended.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channels: ProcessChannels,
        log_path: Path,
        sandbox_processes: SandboxProcesses | None = None,
        resource_usage: ResourceUsage | None = None,
    ) -> None:
        self._process = process
        self._channels = channels
        self._sandbox_processes = sandbox_processes
        self._resource_usage = resource_usage
        self._first_kernel_kills = count_kernel_kills()
        self._was_killed_for_memory = False
        self._log = LogFile(log_path)
        self._log_path = log_path
        self.address = channels.address
        self.exited = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls, options: ComfyOptions, folder: ProcessFolder, spawner: Spawner
    ) -> ComfyProcess:
        """Start ComfyUI, and return before it serves requests.

        Raises `OSError` or `StackError` if the interpreter or the sandbox can't be started.
        """
        env = build_child_environment(os.environ, options, folder.scratch)
        is_strict = options.isolation is Isolation.STRICT
        sandbox_command = (
            await asyncio.to_thread(_build_sandbox_command, options, folder, env)
            if is_strict
            else None
        )
        channels = ProcessChannels(folder.path)
        process: subprocess.Popen[bytes] | None = None
        try:
            command = build_command(options, folder, _make_launcher_options(options, channels))
            descriptors = [channels.listening, channels.alive]
            hides_interfaces = options.network is Network.NONE
            if sandbox_command is None:
                process = await spawner.spawn(command, env, descriptors)
                return cls(process, channels, folder.log)
            with (
                _open_pipe() as (info_reader, info_writer),
                _close_at_exit(open_filter(hides_interfaces=hides_interfaces)) as filter_descriptor,
            ):
                sandbox_command += [
                    "--seccomp",
                    str(filter_descriptor),
                    "--info-fd",
                    str(info_writer.fileno()),
                    "--",
                    *build_init_command(options, folder, channels),
                ]
                descriptors += [filter_descriptor, info_writer.fileno()]
                process = await spawner.spawn([*sandbox_command, *command], env, descriptors)
                info_writer.close()
                sandbox_processes = await asyncio.to_thread(
                    _read_sandbox_processes, info_reader, process, channels
                )
            limits = ResourceLimits.from_options(options)
            usage = ResourceUsage(sandbox_processes.init_pid, folder.writable, limits)
            return cls(process, channels, folder.log, sandbox_processes, usage)
        except BaseException:
            channels.close()
            if process is not None:
                process.kill()
                await asyncio.to_thread(process.wait)
            raise
        finally:
            channels.close_child_ends()

    @property
    def pid(self) -> int:
        """The process id of ComfyUI, or of bubblewrap until ComfyUI has started."""
        main_pid = None if self._sandbox_processes is None else self._sandbox_processes.main_pid
        return self._process.pid if main_pid is None else main_pid

    @property
    def was_killed(self) -> bool:
        """Whether another process or the kernel has killed ComfyUI, so that no prompt is blamed.

        The kernel kills it for lack of memory, which any program on the machine may have used up.
        """
        return self.exited.done() and self.exited.result() in _KILLED_STATUSES

    def describe_end(self) -> str:
        """Return how ComfyUI has ended; call this only after its end."""
        status = self.exited.result()
        if self.was_killed and self._was_killed_for_memory:
            return "its process was ended, because the memory of its node was used up"
        if self.was_killed and count_kernel_kills() != self._first_kernel_kills:
            return f"its process ended with status {status}, and the kernel has ended processes for memory"
        return f"its process ended with status {status}"

    def read_last_log_lines(self, line_count: int = 12) -> str:
        """Return the last ``line_count`` lines of the process's log."""
        return "\n".join(read_last_lines(self._log_path, line_count))

    def exempt_present_processes(self) -> None:
        """Exempt all present processes of the sandbox from `kill_new_processes` (blocking)."""
        if self._sandbox_processes is not None:
            self._sandbox_processes.exempt_present_processes()

    def kill_new_processes(self) -> int:
        """Kill the processes that a prompt has started, or raise `WorkerLost` if that fails.

        Blocks. Returns how many processes the sandbox has refused to create since the last call.
        """
        if self._sandbox_processes is None:
            return 0
        return self._sandbox_processes.kill_new_processes()

    def check_resources(self) -> None:
        """Raise `ResourceLimitExceeded` if a confined process uses more than it may (blocking)."""
        if self._resource_usage is not None:
            self._resource_usage.check()

    def kill(self) -> None:
        """Kill ComfyUI because others need its memory, which is no prompt's fault."""
        self._was_killed_for_memory = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    async def stop(self, patience: float = 5.0) -> None:
        """Send SIGTERM to the process group, then SIGKILL after ``patience`` seconds."""
        if not self.exited.done():
            self._send_signal(signal.SIGTERM)
            await asyncio.wait([self.exited], timeout=patience)
        # Sent even if ComfyUI has ended, because its child processes belong to the group as well.
        self._send_signal(signal.SIGKILL)
        await self.exited
        if self._sandbox_processes is not None:
            sandbox_processes, self._sandbox_processes = self._sandbox_processes, None
            await self._end_sandbox(sandbox_processes)

    async def _end_sandbox(self, sandbox_processes: SandboxProcesses) -> None:
        """Wait until no process of the sandbox is left, so that none runs beside its successor."""
        sandbox_processes.kill_all()
        try:
            async with asyncio.timeout(_SANDBOX_END_SECONDS):
                await _wait_until_readable(sandbox_processes.init_descriptor)
        except TimeoutError:
            # They can neither leave their system call nor see the files of a new process.
            _log.error("processes of ComfyUI's sandbox do not end; a device or disk may hang")
        finally:
            sandbox_processes.close()

    def _send_signal(self, signal_number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal_number)

    async def _watch(self) -> int:
        assert self._process.stdout is not None
        copy_task = asyncio.create_task(self._copy_output(self._process.stdout.fileno()))
        try:
            await _wait_for_exit(self._process.pid)
            status = self._process.wait()
            # With a timeout, because a grandchild process may hold the pipe open for ever.
            await asyncio.wait([copy_task], timeout=0.5)
        finally:
            copy_task.cancel()
            await asyncio.gather(copy_task, return_exceptions=True)
            self._process.stdout.close()
            self._log.close()
            self._channels.close()
        return status

    async def _copy_output(self, descriptor: int) -> None:
        while True:
            await _wait_until_readable(descriptor)
            output = os.read(descriptor, _CHUNK_BYTES)
            if not output:
                return
            self._log.write(output)


def build_command(
    options: ComfyOptions, folder: ProcessFolder, launcher_options: dict[str, Any]
) -> list[str]:
    """Return the command that runs ``launcher.py``, which runs ComfyUI's ``main.py``."""
    return [
        str(options.python),
        str(folder.launcher),
        json.dumps(launcher_options),
        str(options.home / "main.py"),
        *("--base-directory", str(folder.base)),
        # The default database is in ComfyUI's installation, which all processes share.
        *("--database-url", "sqlite:///:memory:"),
        *("--disable-auto-launch", "--disable-api-nodes"),
        *("--preview-method", "auto"),
        *(("--cpu",) if options.cpu else ()),
        *options.flags,
        *("--disable-all-custom-nodes", "--whitelist-custom-nodes", *folder.node_packages),
    ]


def build_init_command(
    options: ComfyOptions, folder: ProcessFolder, channels: ProcessChannels
) -> list[str]:
    """Return the command of ``sandbox_init.py``, to which the command of the launcher is added."""
    fork_filter = build_fork_filter()
    # `open_filter` has raised an error for architectures without filters.
    assert fork_filter is not None
    init_options: dict[str, Any] = {
        "control": channels.alive,
        "socket": channels.listening,
        "processes": options.processes,
        "seccomp": fork_filter[0],
        "fork_filter": fork_filter[1].hex(),
    }
    uid = choose_user_id(options)
    if uid is not None:
        devices = [] if options.cpu else find_graphics_devices()
        init_options |= {"user": uid, "groups": find_device_groups(devices)}
    return [
        str(options.python),
        # Without the environment's and the packages' code.
        *("-I", "-S"),
        str(folder.sandbox_init),
        json.dumps(init_options),
    ]


def _make_launcher_options(options: ComfyOptions, channels: ProcessChannels) -> dict[str, Any]:
    """Return the launcher's JSON options, which ``launcher.py`` describes."""
    launcher_options: dict[str, Any] = {
        "socket": channels.listening,
        "file_bytes": options.output_bytes,
    }
    if options.isolation is not Isolation.STRICT:
        return {**launcher_options, "alive": channels.alive, "parent": os.getpid()}
    if choose_user_id(options) is not None or _counts_threads_per_namespace():
        launcher_options["threads"] = _MAX_THREADS
    return launcher_options


def _counts_threads_per_namespace(release: str | None = None) -> bool:
    """Return whether the kernel counts a user's threads for each user namespace, as Linux 5.14 does.

    Older kernels would also count the user's threads outside of the sandbox.
    """
    major, minor = (release or os.uname().release).split(".")[:2]
    return (int(major), int(minor)) >= (5, 14)


def _build_sandbox_command(
    options: ComfyOptions, folder: ProcessFolder, env: dict[str, str]
) -> list[str]:
    """Return the command that runs bubblewrap with its options for this process.

    Raises `StackError` if no installed bubblewrap works.
    """
    uid = choose_user_id(options)
    unreadable_file = (
        None if uid is None else find_unreadable_file(uid, find_shared_folders(options))
    )
    if unreadable_file is not None:
        _log.warning(
            "ComfyUI's user id %s can't read %s: run `chmod -R a+rX` on its folder, or set "
            "MOYIN_COMFYUI_UID to the owner of the files",
            uid,
            unreadable_file,
        )
    return [str(require_confinement()), *build_bubblewrap_options(options, folder, env)]


def _read_sandbox_processes(
    info_reader: IO[str], process: subprocess.Popen[bytes], channels: ProcessChannels
) -> SandboxProcesses:
    """Read the id of the sandbox's first process from bubblewrap's JSON output.

    Raises `StackError` if bubblewrap, the process, has failed.
    """
    try:
        init_pid = int(json.loads(info_reader.read())["child-pid"])
        return SandboxProcesses(init_pid, channels.control)
    except (ValueError, KeyError) as error:
        output, _ = process.communicate()
        reason = output.decode(errors="replace")
        raise StackError(
            f"bubblewrap can't create a sandbox for ComfyUI, see docs/isolation.md: {reason}"
        ) from error


@contextlib.contextmanager
def _open_pipe() -> Iterator[tuple[IO[str], IO[str]]]:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as reader, os.fdopen(write_end, "w") as writer:
        yield reader, writer


@contextlib.contextmanager
def _close_at_exit(descriptor: int) -> Iterator[int]:
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
        # A process group of its own, so that `stop` also ends the processes that custom nodes
        # start.
        start_new_session=True,
        pass_fds=descriptors,
    )


async def _wait_for_exit(pid: int) -> None:
    """Wait until the process has ended, without reaping it."""
    descriptor = os.pidfd_open(pid)
    try:
        await _wait_until_readable(descriptor)
    finally:
        os.close(descriptor)


async def _wait_until_readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable_event = asyncio.Event()
    loop.add_reader(descriptor, readable_event.set)
    try:
        await readable_event.wait()
    finally:
        loop.remove_reader(descriptor)
