"""Provides the HTTP server of a replica, which accepts new connections quickly under load."""

from __future__ import annotations

import socket

import uvicorn

__all__ = ["Server"]

_LISTENERS = 16


class Server(uvicorn.Server):
    """Listens through several descriptors of one socket, unlike uvicorn's server.

    uvloop (libuv since 1.45) accepts one connection per listening descriptor and loop iteration, and
    serves every open connection in each iteration. With one descriptor the last of 256 clients that
    connected at once waited seconds for its first response.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(
            [copy for listener in sockets for copy in _duplicates(listener)] if sockets else None
        )


def _duplicates(listener: socket.socket) -> list[socket.socket]:
    return [listener, *(listener.dup() for _ in range(_LISTENERS - 1))]
