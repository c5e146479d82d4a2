"""`Channels`: a socket and a pipe between a ComfyUI process and its parent, made before it starts."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

__all__ = ["Channels"]

_SOCKET = "comfyui.sock"
_BACKLOG = 128


class Channels:
    """Holds a listening Unix socket in the parent's own folder, and a pipe that tells it is alive.

    Attributes:
        address: path of the socket for clients in this process.
        listening: descriptor of the socket, which the child inherits.
        alive: the child's end of the pipe.
    """

    def __init__(self, folder: Path) -> None:
        with contextlib.ExitStack() as opened:
            # A socket's path may have 107 characters at most; that of a folder may be longer.
            self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            opened.callback(os.close, self._folder)
            self.address = f"/proc/self/fd/{self._folder}/{_SOCKET}"
            (folder / _SOCKET).unlink(missing_ok=True)
            listening = opened.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(self.address)
            (folder / _SOCKET).chmod(0o600)
            listening.listen(_BACKLOG)
            self.alive, self._parent_end = os.pipe()
            opened.pop_all()
            self.listening = listening.detach()

    def close_child_ends(self) -> None:
        """Close what the child has inherited, so that clients notice the child's end."""
        os.close(self.listening)
        os.close(self.alive)

    def close(self) -> None:
        """Close the parent's ends."""
        os.close(self._folder)
        os.close(self._parent_end)
