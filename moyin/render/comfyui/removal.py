"""Removes files and folders of a process that may have locked or nested them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

__all__ = ["remove_tree", "unlock"]


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with its content, if it exists (blocking).

    The process may have removed the permissions of folders, or nested very many of them.

    Raises:
        OSError: The file or folder can't be removed.
    """
    if not os.path.lexists(path):
        return
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    except (OSError, RecursionError):
        # A folder is not readable to its owner, or deeper than Python's recursion limit. `rm` works
        # without recursion, and neither command follows links.
        unlock(path)
        for command in (("chmod", "-R", "u+rwX"), ("rm", "-rf")):
            subprocess.run([*command, "--", str(path)], capture_output=True, check=False)
        if os.path.lexists(path):
            raise OSError(f"{path} can't be removed, even by chmod and rm") from None


def unlock(path: Path) -> None:
    """Make a path writable to its owner if it is a folder and not a link (blocking)."""
    # A descriptor prevents that a link replaces the folder between the check and the change.
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            Path(f"/proc/self/fd/{descriptor}").chmod(0o700)
    finally:
        os.close(descriptor)
