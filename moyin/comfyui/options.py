"""How one ComfyUI process is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ComfyOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyOptions:
    """Settings of one process.

    Attributes:
        home: folder of ComfyUI's ``main.py``; ``python`` runs it.
        folder: the process's own; input, output and temp in it are emptied at each start.
        models: folder with ``checkpoints``, ``loras``, …, shared and never written.
        custom_nodes: folders of node packages to load; no others are.
        flags: more arguments for ``main.py``.
        warm_up: JSON of a graph that is rendered before anything else.
        cpu: run without a GPU.
        share: part of the card's memory that the process may take.
        start_timeout: seconds from the start to the first finished prompt.
        progress_timeout: seconds without any sign of progress after which a prompt is given up.
        input_bytes: input files kept for prompts to come.
    """

    home: Path
    python: Path
    folder: Path
    models: Path
    custom_nodes: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ()
    warm_up: str | None = None
    cpu: bool = False
    share: float = 1.0
    start_timeout: float = 180.0
    progress_timeout: float = 900.0
    input_bytes: int = 2 * 1024**3
