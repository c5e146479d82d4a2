"""Measures the sizes of model files, for the order of renders and for checks of memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from pathlib import Path

from moyin.system.bounded import BoundedDict

_GB = 1_000_000_000
# Typical sizes of model files that this machine can't read, by folder.
_TYPICAL_BYTES = {
    "checkpoints": 6.5 * _GB,
    "diffusion_models": 12 * _GB,
    "text_encoders": 5 * _GB,
    "controlnet": 1.5 * _GB,
    "clip_vision": 1.2 * _GB,
    "loras": 0.2 * _GB,
    "vae": 0.3 * _GB,
}
_OTHER_BYTES = 0.1 * _GB
_MAX_SIZES = 4096


class ModelSizes:
    """Measures and caches the sizes of model files.

    Args:
        folder: the folder of models. For a file that this machine can't read, a typical size of
            that kind of model is assumed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: BoundedDict[str, int] = BoundedDict(_MAX_SIZES)

    async def measure(self, models: Collection[str]) -> dict[str, int]:
        """Return the size in bytes of each model by its name, ``<kind>/<file name>``."""
        unmeasured_models = [model for model in models if model not in self._sizes]
        if unmeasured_models:
            for model, size in await asyncio.to_thread(self._measure_all, unmeasured_models):
                self._sizes[model] = size
        return {model: self._sizes[model] for model in models}

    def _measure_all(self, models: list[str]) -> list[tuple[str, int]]:
        return [(model, self._measure_file(model)) for model in models]

    def _measure_file(self, model: str) -> int:
        kind = model.partition("/")[0]
        # A graph may contain any string, even one that is not a valid path.
        with contextlib.suppress(OSError, ValueError):
            path = (self._folder / model).resolve()
            if path.is_relative_to(self._folder.resolve()) and path.is_file():
                return path.stat().st_size
        return int(_TYPICAL_BYTES.get(kind, _OTHER_BYTES))
