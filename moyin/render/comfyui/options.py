"""Defines the options of a ComfyUI process."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Isolation(StrEnum):
    """The degree of isolation of a ComfyUI process from the machine and from other prompts' files.

    With ``strict``, the kernel confines the process to the files of its present prompt. With
    ``files``, the process is not confined, but its folders contain only these files, and its
    environment contains no secrets of the stack. With ``off``, the process is not confined and also
    gets the whole environment of the stack.
    """

    STRICT = "strict"
    FILES = "files"
    OFF = "off"


class Network(StrEnum):
    """The network that a confined process can use: none, or the network of its machine."""

    NONE = "none"
    HOST = "host"


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyOptions:
    """Options of a ComfyUI process.

    Attributes:
        home: folder of ComfyUI's ``main.py``.
        python: interpreter that runs ``main.py``.
        folder: folder of the process, whose content except the log is recreated at each start.
        models: shared, read-only folder with the subfolders ``checkpoints``, ``loras`` and so on.
        custom_nodes: folders of the custom node packages to load; no other packages are loaded.
        flags: additional arguments for ``main.py``.
        warm_up: JSON of a graph that is rendered at the start, or None.
        cpu: whether ComfyUI runs without a GPU.
        share: fraction of the GPU's memory that the process may use.
        start_timeout: seconds after the process's start within which a first prompt must finish.
        progress_timeout: seconds without progress after which a prompt fails.
        input_bytes: largest total size in bytes of cached input files.
        output_bytes: largest total size in bytes of a prompt's output files.
        processes: largest number of processes in the sandbox of a confined process.
        memory_bytes: memory that all processes of the sandbox may use together, or None for nine
            tenths of the machine's.
        disk_bytes: disk space that the files of a confined process may take during a prompt.
        files: number of files and folders that a confined process may have written during a prompt.
        isolation: degree of isolation of the process.
        network: network that a confined process can use.
        readable: additional folders that a confined process may read.
        hidden: folders that a confined process can't access, even within a readable folder.
        environment: names of additional environment variables that the process gets.
        uid: user id of a confined process if Moyin runs as root, or None for a generated id.
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
    processes: int = 1024
    memory_bytes: int | None = None
    disk_bytes: int = 64 * 1024**3
    files: int = 100_000
    isolation: Isolation = Isolation.STRICT
    network: Network = Network.NONE
    readable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    environment: tuple[str, ...] = ()
    uid: int | None = None
