"""`Server`: the HTTP server of a replica, which lets newcomers in while others are served."""

from __future__ import annotations

import socket

import uvicorn

__all__ = ["Server"]

_WATCHERS = 16


class Server(uvicorn.Server):
    """uvicorn's, listening through several descriptors of one socket.

    uvloop (libuv since 1.45) accepts one connection per listening descriptor and turn of its loop,
    and in a turn everybody who is in already gets an answer. So of 256 clients that came at once the
    last waited for seconds, while the first were served again and again.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(
            [watched for one in sockets for watched in _several(one)] if sockets else None
        )


def _several(one: socket.socket) -> list[socket.socket]:
    return [one, *(one.dup() for _ in range(_WATCHERS - 1))]
