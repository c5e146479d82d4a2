"""Removes what a process has left, whatever it has made of it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

__all__ = ["remove_tree", "unlock"]


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all that is in it; blocks.

    Raises:
        OSError: it is still there.
    """
    if not os.path.lexists(path):
        return
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    except (OSError, RecursionError):
        # Folders that their owner may not read, or are deeper than Python goes: `rm` walks without
        # recursion, and neither of the two follows links.
        unlock(path)
        for command in (("chmod", "-R", "u+rwX"), ("rm", "-rf")):
            subprocess.run([*command, "--", str(path)], capture_output=True, check=False)
        if os.path.lexists(path):
            raise OSError(f"{path} can't be removed") from None


def unlock(path: Path) -> None:
    """Let the owner of a folder change it again, unless it is something else; blocks."""
    # Held by a descriptor, so that no link takes its place between the look and the change.
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            Path(f"/proc/self/fd/{descriptor}").chmod(0o700)
    finally:
        os.close(descriptor)
