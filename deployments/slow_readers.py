"""Ends connections whose client does not read, or hardly reads, what a replica sends.

Such a client would hold a request, and what is left to send, for as long as it likes: neither
uvicorn nor HAProxy, which reads for its clients, bounds the time for which a response is sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

# Whenever data wait to be sent, so many bytes must be sent within so many seconds. A lossy connection
# may pause for a minute, and HAProxy takes data in pieces of its own.
_STALL_SECONDS = 120.0
_MIN_BYTES = 16 * 1024

if TYPE_CHECKING:
    _Base = asyncio.Protocol
else:
    _Base = object


class _StallGuard(_Base):
    """Mixin for protocols: aborts the connection when its transport sends too little for too long.

    A transport pauses writing while more than 64 KiB wait. Less may wait for as long as the
    connection lasts.
    """

    _guarded_transport: asyncio.Transport | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _waiting_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No check of its class: uvloop's transport of TCP is no subclass of asyncio.Transport.
        self._guarded_transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer()

    def resume_writing(self) -> None:
        self._stop_timer()
        super().resume_writing()

    def _start_timer(self) -> None:
        self._stop_timer()
        assert self._guarded_transport is not None
        self._waiting_bytes = self._guarded_transport.get_write_buffer_size()
        self._stall_timer = asyncio.get_running_loop().call_later(
            _STALL_SECONDS, self._abort_if_stalled
        )

    def _stop_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _abort_if_stalled(self) -> None:
        assert self._guarded_transport is not None
        sent_bytes = self._waiting_bytes - self._guarded_transport.get_write_buffer_size()
        if sent_bytes < _MIN_BYTES:
            # `close` would wait until the rest is sent.
            self._guarded_transport.abort()
        else:
            self._start_timer()


class GuardedHttpProtocol(_StallGuard, AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """The HTTP protocol that uvicorn chooses, with a bound on the time that clients read nothing."""


class GuardedWebSocketProtocol(_StallGuard, AutoWebSocketsProtocol):  # type: ignore[misc,valid-type]
    """The same for WebSockets."""
