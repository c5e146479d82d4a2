"""Finds the processes of a running stack, and kills them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from moyin.system.processes import find_processes
from tests.processes import is_bubblewrap, with_lines


def list_processes(data_folder: Path, matches: Callable[[str], bool]) -> list[psutil.Process]:
    """Return the processes of a stack for whose command line ``matches`` returns True."""
    return [
        process
        for process, command_line in with_lines(find_processes(str(data_folder)))
        if matches(command_line)
    ]


def is_comfyui(command_line: str) -> bool:
    return "--database-url" in command_line and not is_bubblewrap(command_line)


def is_comfyui_actor(command_line: str) -> bool:
    return command_line.startswith("ray::ComfyUIActor")


def is_replica_of(deployment: str) -> Callable[[str], bool]:
    return lambda line: line.startswith("ray::ServeReplica:") and deployment in line


def is_actor_named(name: str) -> Callable[[str], bool]:
    """Return a function that recognises the title of a Ray actor's or agent's process.

    Ray sets the title to ``ray::``, the actor's name and the current method.
    """
    return lambda line: line.strip().partition(".")[0] == f"ray::{name}"


def is_program_named(name: str) -> Callable[[str], bool]:
    return lambda line: line.partition(" ")[0].endswith(f"/{name}")


def is_part_of_serve(command_line: str) -> bool:
    """Recognise Serve's controller, its proxies, HAProxy and all replicas."""
    matchers = [
        is_program_named("haproxy"),
        *map(is_actor_named, ("HAProxyManager", "ProxyActor", "ServeController")),
    ]
    is_replica = command_line.startswith("ray::ServeReplica:")
    return is_replica or any(matches(command_line) for matches in matchers)


def is_temporal(command_line: str) -> bool:
    return "start-dev" in command_line


def is_valkey(command_line: str) -> bool:
    return "valkey-server" in command_line


# The processes that every farm has, in the order in which tests kill them.
KILLS: dict[str, Callable[[str], bool]] = {
    "ComfyUI": is_comfyui,
    "actor": is_comfyui_actor,
    "RenderPool": is_replica_of("RenderPool"),
    "JobWorker": is_replica_of("JobWorker"),
    "gateway": is_replica_of("Gateway"),
    "Temporal": is_temporal,
    "Valkey": is_valkey,
}


def kill_one(data_folder: Path, matches: Callable[[str], bool]) -> int:
    """Kill the oldest matching process with SIGKILL; return its pid once it has ended."""
    victim = min(list_processes(data_folder, matches), key=lambda process: process.create_time())
    victim.kill()
    psutil.wait_procs([victim], timeout=10)
    return victim.pid


def kill_all(data_folder: Path, matches: Callable[[str], bool]) -> int:
    """Kill all matching processes with SIGKILL; return the pid of one once all have ended."""
    processes = list_processes(data_folder, matches)
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)
    return processes[0].pid


def wait_for_another(
    data_folder: Path, matches: Callable[[str], bool], dead_pid: int, count: int, seconds: float
) -> float:
    """Wait until ``count`` matching processes run again, besides the killed one.

    Args:
        dead_pid: the pid of the killed process, which is not counted.
        seconds: how long to wait.

    Returns:
        The seconds that it took.
    """
    started_at = time.monotonic()
    while time.monotonic() - started_at < seconds:
        pids = {process.pid for process in list_processes(data_folder, matches)}
        if dead_pid not in pids and len(pids) == count:
            return time.monotonic() - started_at
        time.sleep(0.1)
    raise AssertionError(f"not {count} but {len(pids)} processes run {seconds} s after the kill")
