"""How one ComfyUI process is run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = ["ComfyOptions", "Isolation", "Network"]


class Isolation(StrEnum):
    """How far a ComfyUI process is kept from the machine and from other prompts' files.

    ``strict``: the kernel confines it, and it sees the files of the prompt that it executes.
    ``files``: only the latter, with an environment free of the stack's secrets.
    ``off``: like ``files``, with the whole environment; processes that prompts leave stay.
    """

    STRICT = "strict"
    FILES = "files"
    OFF = "off"


class Network(StrEnum):
    """What a confined process may reach: nothing, or what its machine does."""

    NONE = "none"
    HOST = "host"


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyOptions:
    """Settings of one process.

    Attributes:
        home: folder of ComfyUI's ``main.py``; ``python`` runs it.
        folder: the process's own; all in it but the log is made anew at each start.
        models: folder with ``checkpoints``, ``loras``, …, shared and never written.
        custom_nodes: folders of node packages to load; no others are.
        flags: more arguments for ``main.py``.
        warm_up: JSON of a graph that is rendered before anything else.
        cpu: run without a GPU.
        share: part of the card's memory that the process may take.
        start_timeout: seconds from the start to the first finished prompt.
        progress_timeout: seconds without any sign of progress after which a prompt is given up.
        input_bytes: input files kept for prompts to come.
        output_bytes: output files of one prompt, and any single file that the process writes.
        isolation: see `Isolation`; ``network`` is the confined process's.
        readable: more folders that the confined process may read.
        hidden: folders that it never sees, also where they lie in one that it may read.
        environment: names of variables that it gets besides those that rendering needs.
        uid: user of the confined process where this one is root; None: a number of its own.
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
    output_bytes: int = 32 * 1024**3
    isolation: Isolation = Isolation.STRICT
    network: Network = Network.NONE
    readable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    environment: tuple[str, ...] = ()
    uid: int | None = None
