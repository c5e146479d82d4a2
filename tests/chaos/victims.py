"""Finds the processes of a running stack, and kills them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from moyin.system.processes import find_processes
from tests.processes import confines, with_lines


def processes(data: Path, matches: Callable[[str], bool]) -> list[psutil.Process]:
    """Return the processes of the stack in ``data`` whose command line matches."""
    return [process for process, line in with_lines(find_processes(str(data))) if matches(line)]


def comfyui(line: str) -> bool:
    return "--database-url" in line and not confines(line)


def actor(line: str) -> bool:
    return line.startswith("ray::ComfyUIActor")


def replica(deployment: str) -> Callable[[str], bool]:
    return lambda line: line.startswith("ray::ServeReplica:") and deployment in line


def actor_named(name: str) -> Callable[[str], bool]:
    """Return a function that recognises the title of a Ray actor's or agent's process.

    Ray sets the title to ``ray::``, the actor's name and the current method.
    """
    return lambda line: line.strip().partition(".")[0] == f"ray::{name}"


def program(name: str) -> Callable[[str], bool]:
    return lambda line: line.partition(" ")[0].endswith(f"/{name}")


def temporal(line: str) -> bool:
    return "start-dev" in line


def valkey(line: str) -> bool:
    return "valkey-server" in line


# What every farm has that may die under it, in the order in which tests kill it.
KILLS: dict[str, Callable[[str], bool]] = {
    "ComfyUI": comfyui,
    "actor": actor,
    "RenderPool": replica("RenderPool"),
    "JobWorker": replica("JobWorker"),
    "gateway": replica("Gateway"),
    "Temporal": temporal,
    "Valkey": valkey,
}


def kill_one(data: Path, matches: Callable[[str], bool]) -> int:
    """Kill the oldest matching process with SIGKILL; return its pid once it has ended."""
    victim = min(processes(data, matches), key=lambda process: process.create_time())
    victim.kill()
    psutil.wait_procs([victim], timeout=10)
    return victim.pid


def wait_for_another(
    data: Path, matches: Callable[[str], bool], dead: int, count: int, seconds: float
) -> float:
    """Return the seconds until ``count`` matching processes run again, without the pid ``dead``.

    Args:
        matches: returns whether a command line is that of such a process.
        seconds: the limit, after which an error is raised.
    """
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        pids = {process.pid for process in processes(data, matches)}
        if dead not in pids and len(pids) == count:
            return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"fewer than {count} processes run again after {seconds} s")
