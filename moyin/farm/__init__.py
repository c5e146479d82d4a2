"""The farm as one ComfyUI: its prompts, history, files and events, whoever renders them."""

from __future__ import annotations

from dataclasses import dataclass

from moyin.farm.files import FarmFiles
from moyin.farm.listener import FarmEvents
from moyin.farm.prompts import FarmPrompts

__all__ = ["Farm"]


@dataclass(frozen=True, kw_only=True)
class Farm:
    """All of it."""

    prompts: FarmPrompts
    files: FarmFiles
    events: FarmEvents
