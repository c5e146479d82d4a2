"""How much memory a stack takes, by what it is used for."""

from __future__ import annotations

import psutil

from moyin.stack.launch import running
from moyin.stack.options import Options
from moyin.system.processes import SERVICE_VARIABLE, find

__all__ = ["usage"]


def usage(options: Options) -> dict[str, int]:
    """Bytes by group; memory that processes share is split between them (PSS)."""
    totals: dict[str, int] = {}
    state = running(options)
    if state is not None:
        totals["supervisor"] = _resident(psutil.Process(state.pid))
    for process in find(options.stack_id):
        try:
            group = _group(process)
            totals[group] = totals.get(group, 0) + _resident(process)
        except psutil.NoSuchProcess:
            continue
    return totals


def _group(process: psutil.Process) -> str:
    """``comfyui`` and ``llama.cpp`` belong to actors; what else Ray runs is ``apps`` or ``ray``."""
    title = " ".join(process.cmdline())
    if title.startswith("ray::ServeReplica"):
        return "apps"
    if "Llama" in title or "llama" in title:
        return "llama.cpp"
    if "--base-directory" in title or "ComfyUI" in title:
        return "comfyui"
    return process.environ().get(SERVICE_VARIABLE, "ray")


def _resident(process: psutil.Process) -> int:
    try:
        size: int = process.memory_full_info().pss
    except (psutil.AccessDenied, AttributeError):
        size = process.memory_info().rss
    return size
