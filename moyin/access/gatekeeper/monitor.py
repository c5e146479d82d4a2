"""Ends open connections whose key, session or scope has ended.

A connection is authenticated when it begins and may outlive its credential. So each replica verifies
the credentials of its open connections again every few seconds, all in a few queries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.identity import Identity
from moyin.errors import InvalidKey, MoyinError

__all__ = ["Connection", "CredentialMonitor", "Rechecker"]

_log = logging.getLogger(__name__)
# Connections end within this time plus that of the queries; the documentation promises ten seconds.
_INTERVAL_SECONDS = 3.0
# Credentials per query.
_BATCH = 500


class Rechecker(Protocol):
    """Verifies credentials again, without a cache."""

    async def recheck(self, credentials: Mapping[str, Identity]) -> Mapping[str, Identity]:
        """Return the present identities of those ``credentials`` that are still valid."""


class Connection(Protocol):
    """Describes a long-lived request."""

    @property
    def can_end(self) -> bool:
        """True for a WebSocket, or a stream that has begun."""

    def refusal(self, identity: Identity) -> MoyinError | None:
        """Return the error with which to end the connection; None: it may continue."""

    def end(self, error: MoyinError) -> None:
        """End the connection and give ``error`` as the reason."""


@dataclass(slots=True)
class _WatchedCredential:
    """Holds the connections of one credential."""

    identity: Identity
    connections: set[Connection] = field(default_factory=set)


class CredentialMonitor:
    """Watches the open connections of one app in one replica."""

    def __init__(self, rechecker: Rechecker, *, interval: float = _INTERVAL_SECONDS) -> None:
        self._rechecker = rechecker
        self._interval = interval
        self._credentials: dict[str, _WatchedCredential] = {}
        self._running: asyncio.Task[None] | None = None

    def add(self, credential: str, identity: Identity, connection: Connection) -> None:
        """Watch a connection that began with ``credential``.

        Connections of Moyin's services are not watched, since they end with their job.
        """
        if identity.service is not None:
            return
        watched = self._credentials.get(credential)
        if watched is None:
            watched = self._credentials[credential] = _WatchedCredential(identity)
        watched.connections.add(connection)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())

    def discard(self, credential: str, connection: Connection) -> None:
        """Stop watching a connection that has ended."""
        watched = self._credentials.get(credential)
        if watched is not None:
            watched.connections.discard(connection)
            if not watched.connections:
                del self._credentials[credential]

    async def recheck(self) -> None:
        """Verify every watched credential once, and end connections that are no longer allowed."""
        to_check = iter(
            [
                (credential, watched.identity)
                for credential, watched in self._credentials.items()
                if any(connection.can_end for connection in watched.connections)
            ]
        )
        while batch := dict(islice(to_check, _BATCH)):
            try:
                valid = await self._rechecker.recheck(batch)
            except (SQLAlchemyError, OSError, MoyinError) as error:
                # Cached callers may make new requests, too, while the database is unavailable.
                _log.warning("could not recheck open connections: %s", type(error).__name__)
                return
            self._end_invalid(batch, valid)

    def _end_invalid(self, credentials: Iterable[str], valid: Mapping[str, Identity]) -> None:
        for credential in credentials:
            watched = self._credentials.get(credential)
            if watched is None:
                continue
            identity = valid.get(credential)
            if identity is not None:
                watched.identity = identity
            for connection in list(watched.connections):
                error = _credential_ended() if identity is None else connection.refusal(identity)
                if error is not None and connection.can_end:
                    connection.end(error)

    async def _run(self) -> None:
        while self._credentials:
            await asyncio.sleep(self._interval)
            try:
                await self.recheck()
            except Exception:
                _log.exception("the recheck of open connections failed; it is retried")


def _credential_ended() -> InvalidKey:
    return InvalidKey("the key or the session has ended")
