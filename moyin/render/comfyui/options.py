"""`ComfyOptions`: the options of one ComfyUI process."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = ["ComfyOptions", "Isolation", "Network"]


class Isolation(StrEnum):
    """How far a ComfyUI process is kept from the machine and from other prompts' files.

    ``strict``: the kernel confines the process, which sees only the files of its present prompt.
    ``files``: it sees only these files and gets no secrets of the stack, but is not confined.
    ``off``: like ``files``, with the whole environment; processes that prompts start are not ended.
    """

    STRICT = "strict"
    FILES = "files"
    OFF = "off"


class Network(StrEnum):
    """The network that a confined process can reach: none, or that of its machine."""

    NONE = "none"
    HOST = "host"


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyOptions:
    """Options of one process.

    Attributes:
        home: folder of ComfyUI's ``main.py``.
        python: interpreter that runs it.
        folder: the process's own folder; all of it but the log is made anew at each start.
        models: folder with ``checkpoints``, ``loras``, …; shared, and never written to.
        custom_nodes: folders of the node packages to load; no others are loaded.
        flags: additional arguments for ``main.py``.
        warm_up: JSON of a graph that is rendered first.
        cpu: run without a GPU.
        share: fraction of the GPU's memory that the process may use.
        start_timeout: seconds from the start until the first prompt must have finished.
        progress_timeout: seconds without progress after which a prompt is given up.
        input_bytes: bytes of input files that are kept for waiting prompts.
        output_bytes: limit of one prompt's output files, and of any file that the process writes.
        isolation: see `Isolation`.
        network: see `Network`.
        readable: additional folders that the confined process may read.
        hidden: folders that the confined process never sees, even within a readable folder.
        environment: names of variables to pass besides those that rendering needs.
        uid: user of the confined process if this process is root; None: a generated number.
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
