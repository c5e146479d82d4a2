"""Measures how much memory each part of a stack uses."""

from __future__ import annotations

import psutil

from moyin.stack.launch import read_running_state
from moyin.stack.options import Options
from moyin.system.processes import SERVICE_VARIABLE, find

__all__ = ["memory_usage"]


def memory_usage(options: Options) -> dict[str, int]:
    """Return bytes by part of the stack; memory shared by processes is split among them (PSS)."""
    totals: dict[str, int] = {}
    state = read_running_state(options)
    if state is not None:
        totals["supervisor"] = _used_bytes(psutil.Process(state.pid))
    for process in find(options.stack_id):
        try:
            part = _part_of(process)
            totals[part] = totals.get(part, 0) + _used_bytes(process)
        except psutil.NoSuchProcess:
            continue
    return totals


def _part_of(process: psutil.Process) -> str:
    """Return the part of the stack that the process belongs to.

    ``comfyui`` and ``llama.cpp`` are processes of actors; Ray's others are ``apps`` or ``ray``.
    """
    title = " ".join(process.cmdline())
    if title.startswith("ray::ServeReplica"):
        return "apps"
    if "Llama" in title or "llama" in title:
        return "llama.cpp"
    if "--base-directory" in title or "ComfyUI" in title:
        return "comfyui"
    return process.environ().get(SERVICE_VARIABLE, "ray")


def _used_bytes(process: psutil.Process) -> int:
    try:
        size: int = process.memory_full_info().pss
    except (psutil.AccessDenied, AttributeError):
        size = process.memory_info().rss
    return size
