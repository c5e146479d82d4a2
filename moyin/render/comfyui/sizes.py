"""How large model files are: what they weigh in the render order and in a card's memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from pathlib import Path

from moyin.render.comfyui.prompts import BoundedDict

__all__ = ["ModelSizes"]

_GB = 1_000_000_000
# Files that lie where only the renderers see them are taken for ordinary ones of their kind.
_ORDINARY = {
    "checkpoints": 6.5 * _GB,
    "diffusion_models": 12 * _GB,
    "text_encoders": 5 * _GB,
    "controlnet": 1.5 * _GB,
    "clip_vision": 1.2 * _GB,
    "loras": 0.2 * _GB,
    "vae": 0.3 * _GB,
}
_OTHER = 0.1 * _GB
_REMEMBERED = 4096


class ModelSizes:
    """Sizes of files ``<folder>/<name>`` below a folder of models.

    Args:
        folder: if this machine does not see it, everything is guessed by its kind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: BoundedDict[str, int] = BoundedDict(_REMEMBERED)

    async def of(self, models: Collection[str]) -> dict[str, int]:
        """Bytes of each."""
        unknown = [model for model in models if model not in self._known]
        if unknown:
            for model, size in await asyncio.to_thread(self._measure, unknown):
                self._known[model] = size
        return {model: self._known[model] for model in models}

    def _measure(self, models: list[str]) -> list[tuple[str, int]]:
        return [(model, self._size(model)) for model in models]

    def _size(self, model: str) -> int:
        kind = model.partition("/")[0]
        # A graph may name anything, what is no path at all included.
        with contextlib.suppress(OSError, ValueError):
            path = (self._folder / model).resolve()
            if path.is_relative_to(self._folder.resolve()) and path.is_file():
                return path.stat().st_size
        return int(_ORDINARY.get(kind, _OTHER))
