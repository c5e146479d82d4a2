"""Creates the sockets between a ComfyUI process and its parent."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

_SOCKET_NAME = "comfyui.sock"
_BACKLOG = 128


class ProcessChannels:
    """The listening Unix socket and the control socket that a ComfyUI process inherits.

    The child process ends when the parent's end of the control socket is closed.

    Attributes:
        address: path of the listening socket for clients in this process.
        listening: descriptor of the listening socket.
        alive: descriptor of the child's end of the control socket.
        control: the parent's end of the control socket, on which a sandbox takes requests.
    """

    def __init__(self, folder: Path) -> None:
        with contextlib.ExitStack() as open_files:
            # A socket's path may have at most 107 characters, so it must not contain the folder's
            # path.
            self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            open_files.callback(os.close, self._folder)
            self.address = f"/proc/self/fd/{self._folder}/{_SOCKET_NAME}"
            (folder / _SOCKET_NAME).unlink(missing_ok=True)
            listening_socket = open_files.enter_context(socket.socket(socket.AF_UNIX))
            listening_socket.bind(self.address)
            (folder / _SOCKET_NAME).chmod(0o600)
            listening_socket.listen(_BACKLOG)
            # Packets keep requests and answers apart.
            self.control, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            open_files.pop_all()
            self.alive = child_end.detach()
            self.listening = listening_socket.detach()

    def close_child_ends(self) -> None:
        """Close the parent's copies of the child's descriptors.

        Clients would otherwise not notice that the child has ended.
        """
        os.close(self.listening)
        os.close(self.alive)

    def close(self) -> None:
        os.close(self._folder)
        self.control.close()
