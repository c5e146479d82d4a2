"""Measures the memory of each part of a stack (``moyin status --memory``)."""

from __future__ import annotations

import psutil

from moyin.stack.launch import read_running_state
from moyin.stack.options import Options
from moyin.system.processes import SERVICE_VARIABLE, find_processes

__all__ = ["measure_memory"]


def measure_memory(options: Options) -> dict[str, int]:
    """Return the bytes of memory (PSS, which splits shared memory) by part of the stack."""
    totals: dict[str, int] = {}
    state = read_running_state(options)
    if state is not None:
        totals["supervisor"] = _measure_process(psutil.Process(state.pid))
    for process in find_processes(options.stack_id):
        try:
            part = _find_part(process)
            totals[part] = totals.get(part, 0) + _measure_process(process)
        except psutil.NoSuchProcess:
            continue
    return totals


def _find_part(process: psutil.Process) -> str:
    """Return the name of the part of the stack that a process belongs to."""
    title = " ".join(process.cmdline())
    if title.startswith("ray::ServeReplica"):
        return "apps"
    if "Llama" in title or "llama" in title:
        return "llama.cpp"
    if "--base-directory" in title or "ComfyUI" in title:
        return "comfyui"
    return process.environ().get(SERVICE_VARIABLE, "ray")


def _measure_process(process: psutil.Process) -> int:
    try:
        size: int = process.memory_full_info().pss
    except (psutil.AccessDenied, AttributeError):
        size = process.memory_info().rss
    return size
