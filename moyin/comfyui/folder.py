"""The folder of one ComfyUI process: what it reads and writes, and nobody else does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path

from moyin.comfyui.options import ComfyOptions
from moyin.errors import StackError
from moyin.protocols.comfyui.graph import INPUT_FOLDER, is_input_name
from moyin.protocols.comfyui.wire import OutputFile
from moyin.store.blobs import BlobStore

__all__ = ["ProcessFolder"]

BRIDGE = "moyin_bridge"
_BRIDGE_FILES = ("bridge.py", "guard.py", "names.py")
_SHIPPED = "websocket_image_save.py"
_ENTRY = """\
from .bridge import register

register()
NODE_CLASS_MAPPINGS = {}
"""


class ProcessFolder:
    """Everything that ComfyUI finds under its ``--base-directory``."""

    def __init__(self, options: ComfyOptions) -> None:
        self.path = options.folder.resolve()
        self._options = options

    @property
    def log(self) -> Path:
        return self.path / "comfyui.log"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.path / 'comfyui.db'}"

    @property
    def node_packages(self) -> list[str]:
        return [BRIDGE, *(path.name for path in self._nodes())]

    def prepare(self) -> None:
        """Make it as a new process must find it; blocks.

        Raises:
            StackError: a configured folder is missing.
        """
        for path in self._options.custom_nodes:
            if not path.exists():
                raise StackError(f"there is no custom node package {path}")
        for name in ("input", "output", "temp", "custom_nodes"):
            shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / name).mkdir(parents=True)
        (self.path / "user").mkdir(exist_ok=True)
        (self.path / "input" / INPUT_FOLDER).mkdir()
        self._options.models.mkdir(parents=True, exist_ok=True)
        _link(self.path / "models", self._options.models)
        self._write_bridge()
        for path in self._nodes():
            _link(self.path / "custom_nodes" / path.name, path)

    async def add_inputs(self, blobs: BlobStore, wanted: Mapping[str, str]) -> None:
        """Copy input files (sha256 by name) from the artifact store, unless they are there.

        Raises:
            FileNotFoundError: the store has no such blob.
            ValueError: a name is not one of ours.
        """
        for name, sha256 in wanted.items():
            if not is_input_name(name):
                raise ValueError(f"not the name of an input file: {name!r}")
            path = self.path / "input" / name
            if not _used_now(path):
                await blobs.copy_to(sha256, path)

    def has_inputs(self, names: Collection[str]) -> bool:
        """Whether all of these input files are there."""
        return all((self.path / "input" / name).exists() for name in names)

    def trim_inputs(self, needed: Collection[str]) -> None:
        """Remove the input files that were not used for longest, down to the limit; blocks.

        Files may come meanwhile.
        """
        kept: list[tuple[float, int, Path]] = []
        for path in (self.path / "input" / INPUT_FOLDER).iterdir():
            # A copy under way has a name of its own, which may be gone by now.
            if not path.name.startswith("."):
                stat = path.stat()
                kept.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self._options.input_bytes:
                return
            if f"{INPUT_FOLDER}/{path.name}" not in needed:
                path.unlink()
                total -= size

    def locate(self, file: OutputFile) -> Path | None:
        """Where an output lies; None when it is gone or outside of the folder for such files."""
        root = self.path / file.type
        path = (root / file.subfolder / file.filename).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None

    def discard(self, prompt_id: str) -> None:
        """Remove the prompt's output files, which are in the artifact store by now; blocks."""
        for kind in ("output", "temp"):
            shutil.rmtree(self.path / kind / prompt_id, ignore_errors=True)

    def _nodes(self) -> list[Path]:
        """What is loaded besides ComfyUI's own nodes: the one that it ships as a custom one, too."""
        shipped = self._options.home / "custom_nodes" / _SHIPPED
        return [*([shipped] if shipped.exists() else []), *self._options.custom_nodes]

    def _write_bridge(self) -> None:
        package = self.path / "custom_nodes" / BRIDGE
        package.mkdir()
        for name in _BRIDGE_FILES:
            source = files("moyin.comfyui.bridge").joinpath(name)
            package.joinpath(name).write_bytes(source.read_bytes())
        package.joinpath("__init__.py").write_text(_ENTRY)


def _used_now(path: Path) -> bool:
    """Mark a file as used now; whether there is one."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target.absolute(), target_is_directory=True)
