"""Measures the memory and the disk space that a sandbox uses, and finds what exceeds its limits.

The kernel's own limits are either of one process or need a control group, which few stacks may
create. So the sandbox is measured a few times a second while a prompt is executed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moyin.errors import ResourceLimitExceeded
from moyin.render.comfyui.options import ComfyOptions
from moyin.system.memory import MemoryReader

_GIB = 1024**3
_BLOCK_BYTES = 512
_MAX_DEPTH = 64
_DEFAULT_MEMORY_SHARE = 0.9
_FOLDER_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceLimits:
    """What the sandbox of a ComfyUI process may use while it executes a prompt.

    Attributes:
        memory_bytes: memory of all processes, without files in the page cache.
        disk_bytes: disk space of the files in the writable folders, and of removed files that are
            still open.
        files: number of files and folders in the writable folders.
    """

    memory_bytes: int
    disk_bytes: int
    files: int

    @classmethod
    def from_options(cls, options: ComfyOptions) -> ResourceLimits:
        memory_bytes = options.memory_bytes
        if memory_bytes is None:
            memory_bytes = int(MemoryReader().read_total() * _DEFAULT_MEMORY_SHARE)
        return cls(memory_bytes=memory_bytes, disk_bytes=options.disk_bytes, files=options.files)


class ResourceUsage:
    """Measures the processes of one sandbox, and its writable folders. All methods block.

    Args:
        init_pid: process id of the sandbox's first process.
        folders: the folders to which the sandbox can write.
    """

    def __init__(self, init_pid: int, folders: Sequence[Path], limits: ResourceLimits) -> None:
        # In the sandbox's own /proc there are no processes of the host.
        self._proc = Path(f"/proc/{init_pid}/root/proc")
        self._folders = folders
        self._limits = limits

    def check(self) -> None:
        """Raise `ResourceLimitExceeded` if the sandbox uses more than its limits allow."""
        removed_files = self._find_removed_files()
        disks = {folder.stat().st_dev for folder in self._folders}
        self._check_memory(
            sum(size for (disk, _), size in removed_files.items() if disk not in disks)
        )
        self._check_disk(sum(size for (disk, _), size in removed_files.items() if disk in disks))

    def _check_memory(self, removed_bytes: int) -> None:
        limit = self._limits.memory_bytes
        if self._sum_memory("status", removed_bytes) <= limit:
            return
        # Exact, but slow: memory that forked processes share counts once.
        used_bytes = self._sum_memory("smaps_rollup", removed_bytes)
        if used_bytes > limit:
            raise _make_error("memory_gib", used_bytes / _GIB, limit / _GIB, "GiB of memory")

    def _check_disk(self, removed_bytes: int) -> None:
        used_bytes = removed_bytes
        for file_count, file_stat in enumerate(_walk(self._folders), 1):
            used_bytes += file_stat.st_blocks * _BLOCK_BYTES
            if file_count > self._limits.files:
                raise _make_error("files", file_count, self._limits.files, "files and folders")
        limit = self._limits.disk_bytes
        if used_bytes > limit:
            raise _make_error("disk_gib", used_bytes / _GIB, limit / _GIB, "GiB of disk space")

    def _sum_memory(self, file_name: str, removed_bytes: int) -> int:
        """Return the bytes of memory that all processes use.

        Args:
            file_name: the file of a process in /proc: ``status``, in which memory that processes
                share counts for each of them, or ``smaps_rollup``, in which it is divided.
            removed_bytes: bytes of files in memory, which processes may map or only hold open.
        """
        private_bytes = mapped_bytes = 0
        for folder in self._list_processes():
            usage = _read_memory(folder / file_name) or _read_memory(folder / "status")
            mapped_bytes += usage.pop("shmem", 0)
            private_bytes += sum(usage.values())
        return private_bytes + max(mapped_bytes, removed_bytes)

    def _find_removed_files(self) -> dict[tuple[int, int], int]:
        """Return the bytes of open files without a name, by device and inode.

        They lie on a disk, or in memory if `memfd_create` has created them.
        """
        sizes = {}
        for folder in self._list_processes():
            with contextlib.suppress(OSError), os.scandir(folder / "fd") as entries:
                for entry in entries:
                    # The process may close the descriptor meanwhile.
                    with contextlib.suppress(OSError):
                        # pathlib would take a third of the time that a measurement takes.
                        if os.readlink(entry.path).endswith(" (deleted)"):  # noqa: PTH115
                            file_stat = entry.stat()
                            key = file_stat.st_dev, file_stat.st_ino
                            sizes[key] = file_stat.st_blocks * _BLOCK_BYTES
        return sizes

    def _list_processes(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [path for path in self._proc.iterdir() if path.name.isdigit()]
        return []  # the sandbox has ended


# The members of /proc/<pid>/status and /proc/<pid>/smaps_rollup, in kB.
_MEMBERS = {
    "RssAnon": "anonymous",
    "Pss_Anon": "anonymous",
    "VmSwap": "swap",
    "SwapPss": "swap",
    "RssShmem": "shmem",
    "Pss_Shmem": "shmem",
}


def _read_memory(path: Path) -> dict[str, int]:
    usage = {}
    with contextlib.suppress(OSError):
        for line in path.read_bytes().decode(errors="replace").splitlines():
            name, _, rest = line.partition(":")
            if name in _MEMBERS:
                usage[_MEMBERS[name]] = int(rest.split()[0]) * 1024
    return usage


def _walk(folders: Sequence[Path]) -> Iterator[os.stat_result]:
    """Yield the stat results of all files and folders in ``folders``; never follow links."""
    for folder in folders:
        with contextlib.suppress(OSError), _open_folder(str(folder), None) as descriptor:
            yield from _walk_below(descriptor, 0)


@contextlib.contextmanager
def _open_folder(name: str, parent: int | None) -> Iterator[int]:
    """Open a folder, even if a process has removed its owner's permissions."""
    folder = os.open(name, os.O_PATH | _FOLDER_FLAGS, dir_fd=parent)
    try:
        path = f"/proc/self/fd/{folder}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            Path(path).chmod(0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _walk_below(folder: int, depth: int) -> Iterator[os.stat_result]:
    if depth > _MAX_DEPTH:
        raise ResourceLimitExceeded(
            f"the render's nodes nested folders more than {_MAX_DEPTH} levels deep: nest them less",
            details={"bound": "depth", "limit": _MAX_DEPTH},
        )
    with os.scandir(folder) as entries:
        for entry in entries:
            # A process may remove a file at any time, or the permissions of its folder.
            with contextlib.suppress(OSError):
                file_stat = entry.stat(follow_symlinks=False)
                yield file_stat
                if stat.S_ISDIR(file_stat.st_mode):
                    with _open_folder(entry.name, folder) as descriptor:
                        yield from _walk_below(descriptor, depth + 1)


def _make_error(bound: str, used: float, limit: float, unit: str) -> ResourceLimitExceeded:
    return ResourceLimitExceeded(
        f"the render used {used:,.4g} {unit}, and the pool's {bound} allows {limit:,.4g}: render "
        "smaller or fewer pictures at once",
        details={"bound": bound, "limit": limit},
    )
