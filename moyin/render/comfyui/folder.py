"""Creates the folder of a ComfyUI process, and removes its files safely.

The content of the folder::

    comfyui-default-0/        readable to its owner; the process sees only ``base`` and ``etc``
        comfyui.log, comfyui.sock
        staging/              input files of waiting prompts
        done/<prompt id>/     files that a prompt has written and that are being stored
        etc/                  the process's /etc/passwd and similar files
        base/                 ComfyUI's --base-directory
            input/            input files of the executing prompt; read-only to the process
            output/ temp/ user/ scratch/      writable to the process; emptied after each prompt
            custom_nodes/ models launcher.py sandbox_init.py
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from importlib.resources import files
from pathlib import Path

from moyin.errors import StackError
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.protocol.graph import INPUT_FOLDER

BRIDGE = "moyin_bridge"
_BRIDGE_FILES = ("bridge.py", "guard.py", "input_rules.py", "tenants.py")
_SHIPPED_NODES = "websocket_image_save.py"
_BRIDGE_INIT = """\
from .bridge import register

register()
NODE_CLASS_MAPPINGS = {}
"""
_USER = "comfyui"
_WRITABLE = ("output", "temp", "user", "scratch")
_RECREATED = ("staging", "done", "base", "etc")


class ProcessFolder:
    """The folder of a ComfyUI process, with the paths in it."""

    def __init__(self, options: ComfyOptions) -> None:
        self._options = options
        self.path = options.folder.resolve()
        self.log = self.path / "comfyui.log"
        self.staging = self.path / "staging"
        self.done = self.path / "done"
        self.etc = self.path / "etc"
        self.base = self.path / "base"
        self.launcher = self.base / "launcher.py"
        self.sandbox_init = self.base / "sandbox_init.py"
        self.inputs = self.base / "input" / INPUT_FOLDER
        # The home and temporary folder of the process.
        self.scratch = self.base / "scratch"
        self.writable = [self.base / name for name in _WRITABLE]

    @property
    def node_packages(self) -> list[str]:
        """The names of the node packages that ComfyUI loads."""
        return [BRIDGE, *(path.name for path in self._list_node_packages())]

    def prepare(self, uid: int | None = None) -> None:
        """Recreate the folder for a process (blocking).

        Raises `StackError` if a configured node package is missing.

        Args:
            uid: id of the user that runs the process, or None for the user that runs Moyin.
        """
        for path in self._options.custom_nodes:
            if not path.exists():
                raise StackError(
                    f"custom_nodes: the node package {path} does not exist: correct its path in "
                    "the render pool's options"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        for name in _RECREATED:
            remove_tree(self.path / name)
            _make_folder(self.path / name)
        for name in ("input", "custom_nodes"):
            _make_folder(self.base / name)
        _make_folder(self.inputs)
        for path in self.writable:
            path.mkdir(mode=0o700)
            if uid is not None:
                os.chown(path, uid, uid)
        self._options.models.mkdir(parents=True, exist_ok=True)
        _create_link(self.base / "models", self._options.models)
        for script in (self.launcher, self.sandbox_init):
            _copy_source("moyin.render.comfyui", script.name, script)
        self._write_bridge()
        for path in self._list_node_packages():
            _create_link(self.base / "custom_nodes" / path.name, path)
        self._write_etc(os.getuid() if uid is None else uid)

    def _list_node_packages(self) -> list[Path]:
        """Return the configured node packages, and the custom node that is part of ComfyUI."""
        shipped_node = self._options.home / "custom_nodes" / _SHIPPED_NODES
        return [*([shipped_node] if shipped_node.exists() else []), *self._options.custom_nodes]

    def _write_bridge(self) -> None:
        package = self.base / "custom_nodes" / BRIDGE
        _make_folder(package)
        for name in _BRIDGE_FILES:
            _copy_source("moyin.render.comfyui.bridge", name, package / name)
        _write_file(package / "__init__.py", _BRIDGE_INIT)

    def _write_etc(self, uid: int) -> None:
        """Write the process's /etc/passwd, because some programs fail if their user has no name."""
        gid = os.getgid() if uid == os.getuid() else uid
        _write_file(self.etc / "passwd", f"{_USER}:x:{uid}:{gid}::{self.scratch}:/bin/sh\n")
        _write_file(self.etc / "group", f"{_USER}:x:{gid}:\n")
        _write_file(self.etc / "nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")


def _make_folder(path: Path) -> None:
    """Create a folder that all users may read, independently of the umask."""
    path.mkdir()
    path.chmod(0o755)


def _write_file(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def _copy_source(package: str, name: str, target: Path) -> None:
    _write_file(target, files(package).joinpath(name).read_text())


def _create_link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target.absolute(), target_is_directory=True)


def remove_tree(path: Path) -> None:
    """Remove a file or folder if it exists, or raise `OSError` (blocking).

    Works even if a process has removed the permissions of folders, or has nested thousands of
    folders.
    """
    if not os.path.lexists(path):
        return
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    except (OSError, RecursionError):
        # A folder is unreadable to its owner, or nested deeper than Python's recursion limit. `rm`
        # works without recursion, and neither `chmod` nor `rm` follows links.
        make_folder_writable(path)
        for command in (("chmod", "-R", "u+rwX"), ("rm", "-rf")):
            subprocess.run([*command, "--", str(path)], capture_output=True, check=False)
        if os.path.lexists(path):
            raise OSError(
                f"{path} can't be removed, even by chmod and rm: remove it by hand"
            ) from None


def make_folder_writable(path: Path) -> None:
    """Make a path writable to its owner if it is a folder and not a link (blocking)."""
    # With a descriptor, a link can't replace the folder between the check and the change.
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            Path(f"/proc/self/fd/{descriptor}").chmod(0o700)
    finally:
        os.close(descriptor)
