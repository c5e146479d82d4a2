"""The folder of one ComfyUI process.

::

    comfyui-default-0/        nobody else's; the process sees nothing of it but ``base`` and ``etc``
        comfyui.log, comfyui.sock
        staging/              input files of prompts to come
        done/<prompt id>/     what a prompt has written, on its way into the artifact store
        etc/                  its /etc/passwd and the like
        base/                 ComfyUI's --base-directory
            input/            files of the prompt that is executed; read only to the process
            output/ temp/ user/ scratch/      what it may write; emptied after each prompt
            custom_nodes/ models launcher.py
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from moyin.errors import StackError
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.removal import remove_tree
from moyin.render.protocol.graph import INPUT_FOLDER

__all__ = ["BRIDGE", "ProcessFolder"]

BRIDGE = "moyin_bridge"
_BRIDGE_FILES = ("bridge.py", "guard.py", "names.py", "tenants.py")
_SHIPPED = "websocket_image_save.py"
_ENTRY = """\
from .bridge import register

register()
NODE_CLASS_MAPPINGS = {}
"""
_USER = "comfyui"
_WRITABLE = ("output", "temp", "user", "scratch")
_MADE_ANEW = ("staging", "done", "base", "etc")


class ProcessFolder:
    """Where everything of one process lies, and its making."""

    def __init__(self, options: ComfyOptions) -> None:
        self.path = options.folder.resolve()
        self._options = options

    @property
    def log(self) -> Path:
        return self.path / "comfyui.log"

    @property
    def base(self) -> Path:
        """What ComfyUI knows as its ``--base-directory``."""
        return self.path / "base"

    @property
    def writable(self) -> list[Path]:
        """Folders that the process may write."""
        return [self.base / name for name in _WRITABLE]

    @property
    def scratch(self) -> Path:
        """Home and temporary folder of the process."""
        return self.base / "scratch"

    @property
    def inputs(self) -> Path:
        """Where a graph finds its input files."""
        return self.base / "input" / INPUT_FOLDER

    @property
    def staging(self) -> Path:
        """Where input files wait for their prompt."""
        return self.path / "staging"

    @property
    def done(self) -> Path:
        """What prompts have written, by their ids."""
        return self.path / "done"

    @property
    def etc(self) -> Path:
        return self.path / "etc"

    @property
    def launcher(self) -> Path:
        return self.base / "launcher.py"

    @property
    def node_packages(self) -> list[str]:
        return [BRIDGE, *(path.name for path in self._nodes())]

    def prepare(self, uid: int | None = None) -> None:
        """Make it as a new process must find it; blocks.

        Args:
            uid: user of the process, where it is not this process's.

        Raises:
            StackError: a configured folder is missing.
        """
        for path in self._options.custom_nodes:
            if not path.exists():
                raise StackError(f"there is no custom node package {path}")
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        for name in _MADE_ANEW:
            remove_tree(self.path / name)
            _open_folder(self.path / name)
        for name in ("input", "custom_nodes"):
            _open_folder(self.base / name)
        _open_folder(self.inputs)
        for path in self.writable:
            path.mkdir(mode=0o700)
            if uid is not None:
                os.chown(path, uid, uid)
        self._options.models.mkdir(parents=True, exist_ok=True)
        _link(self.base / "models", self._options.models)
        _copy_source("moyin.render.comfyui", "launcher.py", self.launcher)
        self._write_bridge()
        for path in self._nodes():
            _link(self.base / "custom_nodes" / path.name, path)
        self._write_etc(os.getuid() if uid is None else uid)

    def _nodes(self) -> list[Path]:
        """What is loaded besides ComfyUI's own nodes: the one that it ships as a custom one, too."""
        shipped = self._options.home / "custom_nodes" / _SHIPPED
        return [*([shipped] if shipped.exists() else []), *self._options.custom_nodes]

    def _write_bridge(self) -> None:
        package = self.base / "custom_nodes" / BRIDGE
        _open_folder(package)
        for name in _BRIDGE_FILES:
            _copy_source("moyin.render.comfyui.bridge", name, package / name)
        _write(package / "__init__.py", _ENTRY)

    def _write_etc(self, uid: int) -> None:
        """Programs look up their user's name, and stop where there is none."""
        gid = os.getgid() if uid == os.getuid() else uid
        _write(self.etc / "passwd", f"{_USER}:x:{uid}:{gid}::{self.scratch}:/bin/sh\n")
        _write(self.etc / "group", f"{_USER}:x:{gid}:\n")
        _write(self.etc / "nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")


def _open_folder(path: Path) -> None:
    """A folder that every user may read, whatever the umask."""
    path.mkdir()
    path.chmod(0o755)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def _copy_source(package: str, name: str, target: Path) -> None:
    _write(target, files(package).joinpath(name).read_text())


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target.absolute(), target_is_directory=True)
