"""Contains the HTTP server of a replica, and the limit on the memory of its process."""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading

import psutil
import uvicorn

from deployments.slow_readers import GuardedHttpProtocol, GuardedWebSocketProtocol

_log = logging.getLogger(__name__)
_LISTENERS = 16
_MEMORY_CHECK_SECONDS = 0.5
# The largest message of a client on a WebSocket, in bytes. A client may leave a message unfinished,
# and many such messages of uvicorn's default size (16 MiB) would fill the replica's memory.
_MAX_MESSAGE_BYTES = 2**20
_EXIT_STATUS = 70
_MIB = 2**20


class ReplicaServer(uvicorn.Server):
    """Server that accepts connections quickly, and WebSocket messages of up to 1 MiB.

    It ends connections whose client does not read (`deployments.slow_readers`).

    It listens on several descriptors of one socket.

    uvloop (libuv since 1.45) accepts one connection per listening descriptor in each iteration of its
    event loop, and serves every open connection in the same iteration. With one descriptor, as in
    uvicorn's own server, the last of 256 simultaneous clients waited seconds for its first response.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        config.ws_max_size = _MAX_MESSAGE_BYTES
        config.http, config.ws = GuardedHttpProtocol, GuardedWebSocketProtocol
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        listener_copies = [
            listener.dup() for listener in sockets or () for _ in range(_LISTENERS - 1)
        ]
        await super().startup([*sockets, *listener_copies] if sockets else None)


@functools.cache
def limit_memory(limit_mib: int) -> None:
    """End this process when it uses more than ``limit_mib`` MiB; 0 means no limit.

    A memory leak then ends only the leaking replica, which Serve restarts. Without the limit, Ray or
    the kernel would kill an arbitrary process on a full machine. Further calls have no effect.
    """
    if limit_mib:
        threading.Thread(
            target=_watch_memory, args=(limit_mib,), name="memory", daemon=True
        ).start()


def _watch_memory(limit_mib: int) -> None:
    process, pause = psutil.Process(), threading.Event()
    while not pause.wait(_MEMORY_CHECK_SECONDS):
        used_bytes = process.memory_info().rss
        if used_bytes > limit_mib * _MIB:
            _log.critical(
                "this replica uses %d MiB of memory, more than MOYIN_REPLICA_MEMORY_MIB=%d; ending its "
                "process",
                used_bytes // _MIB,
                limit_mib,
            )
            # `os._exit` skips exit handlers and the interpreter's clean-up, which might need more
            # memory.
            os._exit(_EXIT_STATUS)
