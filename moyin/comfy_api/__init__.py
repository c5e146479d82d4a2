"""Serves ComfyUI's API for the whole farm: prompts, history, files, events and the frontend.

All renderers together look like one ComfyUI server. Prompts become jobs, and job events become
ComfyUI's messages. This wing never calls a renderer itself, except for what a pool reports about
its nodes. Start reading at `prompts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from moyin.comfy_api.files import FarmFiles
from moyin.comfy_api.notifier import FarmEvents
from moyin.comfy_api.prompts import FarmPrompts

__all__ = ["Farm"]


@dataclass(frozen=True, kw_only=True)
class Farm:
    """Bundles the prompts, files and events of one gateway."""

    prompts: FarmPrompts
    files: FarmFiles
    events: FarmEvents
