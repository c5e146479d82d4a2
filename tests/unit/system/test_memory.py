from __future__ import annotations

from pathlib import Path

import pytest

from moyin.system.memory import MemoryReader, count_kernel_kills

GIB = 1024**3


@pytest.fixture
def machine(tmp_path: Path) -> MemoryReader:
    """Provide a reader of a machine with 16 GiB, of which 8 GiB are available."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(
        f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n"
    )
    return MemoryReader(proc=tmp_path / "proc", cgroups=tmp_path / "cgroup")


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_cgroups_the_machine_counts(machine: MemoryReader) -> None:
    reading = machine.read()
    assert (reading.available, reading.total) == (8 * GIB, 16 * GIB)
    assert machine.read_total() == 16 * GIB


def test_a_limit_of_an_outer_cgroup_of_version_1_counts(machine: MemoryReader) -> None:
    (machine.proc / "self" / "cgroup").write_text("5:cpu:/\n4:memory:/outer/inner\n")
    no_limit = str((1 << 63) - 4096)
    for path, limit in (("", no_limit), ("outer", str(4 * GIB)), ("outer/inner", no_limit)):
        _write(
            machine.cgroups / "memory" / path,
            memory__limit_in_bytes=limit,
            memory__usage_in_bytes=str(3 * GIB),
            memory__stat=f"total_inactive_file {GIB}\ntotal_active_file {GIB}\n",
        )
    reading = machine.read()
    assert (reading.available, reading.total) == (3 * GIB, 4 * GIB)


def test_a_limit_of_version_2_counts_where_the_path_is_unknown(machine: MemoryReader) -> None:
    (machine.proc / "self" / "cgroup").write_text("0::/of/the/host\n")
    _write(
        machine.cgroups,
        memory__max=str(2 * GIB),
        memory__current=str(3 * GIB // 2),
        memory__stat="anon 1\ninactive_file 0\nactive_file 0\n",
    )
    assert machine.read().available == GIB // 2
    assert machine.read_total() == 2 * GIB


def test_a_cgroup_without_a_limit_does_not_count(machine: MemoryReader) -> None:
    (machine.proc / "self" / "cgroup").write_text("0::/\n")
    _write(machine.cgroups, memory__max="max\n", memory__current="5", memory__stat="anon 1\n")
    assert machine.read().available == 8 * GIB


def test_kernel_kills_are_counted(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
    assert count_kernel_kills(tmp_path / "vmstat") == 3
    (tmp_path / "vmstat").write_text("nr_free_pages 7\n")
    assert count_kernel_kills(tmp_path / "vmstat") == 0
