"""ComfyUI's API for the whole farm: prompts, history, files, events and the frontend.

To a client of ComfyUI this wing makes all renderers look like one server. It turns prompts into jobs
and job events into ComfyUI's messages; it never talks to a renderer itself, except to read the facts
of its pool. Start reading at `prompts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from moyin.comfy_api.files import FarmFiles
from moyin.comfy_api.listener import FarmEvents
from moyin.comfy_api.prompts import FarmPrompts

__all__ = ["Farm"]


@dataclass(frozen=True, kw_only=True)
class Farm:
    """Bundles the prompts, files and events of one gateway."""

    prompts: FarmPrompts
    files: FarmFiles
    events: FarmEvents
