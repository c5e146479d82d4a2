"""What joins a ComfyUI process with its parent, made before it starts and inherited by it."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

__all__ = ["Channels"]

_SOCKET = "comfyui.sock"
_BACKLOG = 128


class Channels:
    """A listening Unix socket in a folder that is the parent's alone, and a pipe that says whether it
    lives.

    Attributes:
        address: path of the socket for clients in this process.
        listening: the socket; ``alive`` the pipe's end for the child.
    """

    def __init__(self, folder: Path) -> None:
        with contextlib.ExitStack() as opened:
            # The path of a socket may have 107 characters, and that of a folder many more.
            self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            opened.callback(os.close, self._folder)
            self.address = f"/proc/self/fd/{self._folder}/{_SOCKET}"
            (folder / _SOCKET).unlink(missing_ok=True)
            listening = opened.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(self.address)
            (folder / _SOCKET).chmod(0o600)
            listening.listen(_BACKLOG)
            self.alive, self._holding = os.pipe()
            opened.pop_all()
            self.listening = listening.detach()

    def hand_over(self) -> None:
        """The child has its ends: close them here, so that its end is noticed."""
        os.close(self.listening)
        os.close(self.alive)

    def close(self) -> None:
        os.close(self._folder)
        os.close(self._holding)
