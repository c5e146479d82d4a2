"""Reads how much memory programs can still get, on this machine and in this process's cgroup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The kernel shows "no limit" of version 1 as a number of nearly 2^63.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryReading:
    """The memory of a machine, or of the smallest cgroup around this process.

    Attributes:
        available: bytes that programs can still get.
        total: all bytes, or the limit of the cgroup.
    """

    available: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryReader:
    """Reads the available memory, which a container's limit may make less than the machine's.

    Ray reads only the limit of the cgroup at the root of the mount. This class reads each cgroup
    from this process's own to the root, of version 1 or 2, since each one's limit counts.
    """

    proc: Path = Path("/proc")
    cgroups: Path = Path("/sys/fs/cgroup")

    def read(self) -> MemoryReading:
        """Return the reading of the machine or of the cgroup with the least available memory.

        Raises:
            OSError: ``/proc/meminfo`` cannot be read.
        """
        return min(self._list_readings(), key=lambda reading: reading.available)

    def read_total(self) -> int:
        """Return the bytes of the machine's memory, or of the smallest limit around this process.

        Raises:
            OSError: ``/proc/meminfo`` cannot be read.
        """
        return min(reading.total for reading in self._list_readings())

    def _list_readings(self) -> Iterator[MemoryReading]:
        yield self._read_machine()
        for folder in self._list_folders():
            reading = _read_cgroup(folder)
            if reading is not None:
                yield reading

    def _read_machine(self) -> MemoryReading:
        values = _parse_pairs((self.proc / "meminfo").read_text().replace(":", " "))
        return MemoryReading(
            available=values.get("MemAvailable", 0) * 1024, total=values.get("MemTotal", 0) * 1024
        )

    def _list_folders(self) -> Iterator[Path]:
        """Yield the folders of this process's cgroup and those around it, the innermost first."""
        try:
            lines = (self.proc / "self" / "cgroup").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if not controllers:
                root = self.cgroups
            elif "memory" in controllers.split(","):
                root = self.cgroups / "memory"
            else:
                continue
            folder = root / path.lstrip("/")
            while folder != root:
                # In a container, the path may be one of the machine outside.
                if folder.is_dir():
                    yield folder
                folder = folder.parent
            yield root


def count_kernel_kills(path: Path = Path("/proc/vmstat")) -> int:
    """Return the number of processes that the kernel has ended for lack of memory since its start."""
    return _parse_pairs(path.read_text()).get("oom_kill", 0)


def _read_cgroup(folder: Path) -> MemoryReading | None:
    """Return the reading of a cgroup, or None if it has no limit of memory."""
    for limit_name, usage_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            limit = int((folder / limit_name).read_text())
            usage = int((folder / usage_name).read_text())
            statistics = _parse_pairs((folder / "memory.stat").read_text())
        except (OSError, ValueError):
            continue
        if limit >= _NO_LIMIT:
            return None
        # The kernel frees the pages of files before it ends a process.
        cached = sum(statistics.get(f"{prefix}{name}_file", 0) for name in ("inactive", "active"))
        return MemoryReading(available=max(0, limit - usage + cached), total=limit)
    return None


def _parse_pairs(text: str) -> dict[str, int]:
    """Return the numbers of lines such as ``name 123 kB``, by name."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdigit()}
