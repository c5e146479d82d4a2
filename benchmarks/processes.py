"""Starts the other programs of a benchmark and measures the memory of processes."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def running_program(
    command: Sequence[str], environ: Mapping[str, str] | None = None, *, quiet: bool = False
) -> Iterator[int]:
    """Run ``command`` during the block; yield its process id.

    Args:
        environ: environment variables in addition to those of this process.
        quiet: True to discard the command's output.
    """
    output_target = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(
        command, env={**os.environ, **(environ or {})}, stdout=output_target, stderr=output_target
    )
    try:
        yield process.pid
    finally:
        process_tree = list_process_tree(process.pid)
        process.terminate()
        _, surviving_processes = psutil.wait_procs(process_tree, timeout=5)
        for surviving_process in surviving_processes:
            surviving_process.kill()
        process.wait()


def find_free_port() -> int:
    """Return an unused port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, seconds: float = 20) -> None:
    """Wait until a server listens on ``port`` of the loopback interface.

    Raises `SystemExit` if none does within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit(
        f"no server listens on 127.0.0.1:{port} after {seconds:g} seconds: start it by hand to see why"
    )


def list_process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all of its descendants; empty if the process has ended."""
    try:
        root_process = psutil.Process(pid)
        return [root_process, *root_process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def sum_resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the resident memory of the processes in bytes."""
    return sum(process.memory_info().rss for process in processes)


def sum_processor_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the total processor time of the processes in seconds."""
    times = [process.cpu_times() for process in processes]
    return sum(time.user + time.system for time in times)
