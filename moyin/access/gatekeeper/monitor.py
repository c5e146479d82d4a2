"""`CredentialMonitor`: ends connections whose key, session or scope has ended meanwhile.

A connection is proven when it begins. One that lasts would outlive its proof, so every replica proves
the credentials of its open connections again every few seconds: all of them together, in a few
queries, however many connections there are.
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
# Connections end within this and the time that the queries take; ten seconds are promised.
_INTERVAL_SECONDS = 3.0
# Credentials in one query.
_BATCH = 500


class Rechecker(Protocol):
    """Proves credentials again, past every cache."""

    async def recheck(self, held: Mapping[str, Identity]) -> Mapping[str, Identity]:
        """Return the present identities of the credentials in ``held`` that still prove anything."""
        ...


class Connection(Protocol):
    """A request that lasts."""

    @property
    def can_end(self) -> bool:
        """Whether it is a WebSocket or a stream that is under way."""
        ...

    def refusal(self, identity: Identity) -> MoyinError | None:
        """The reason why ``identity`` may not go on with it; None: it may."""
        ...

    def end(self, error: MoyinError) -> None:
        """End the connection and give ``error`` as the reason."""
        ...


@dataclass(slots=True)
class _Held:
    identity: Identity
    connections: set[Connection] = field(default_factory=set)


class CredentialMonitor:
    """Watches the open connections of one app in one replica."""

    def __init__(self, rechecker: Rechecker, *, interval: float = _INTERVAL_SECONDS) -> None:
        self._rechecker = rechecker
        self._interval = interval
        self._held: dict[str, _Held] = {}
        self._running: asyncio.Task[None] | None = None

    def add(self, presented: str, identity: Identity, connection: Connection) -> None:
        """Watch a connection that began with the credential ``presented``.

        Tokens of our own services are not watched: they end with the job that they act for.
        """
        if identity.service is not None:
            return
        held = self._held.get(presented)
        if held is None:
            held = self._held[presented] = _Held(identity)
        held.connections.add(connection)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())

    def discard(self, presented: str, connection: Connection) -> None:
        """Stop watching a connection that is over."""
        held = self._held.get(presented)
        if held is not None:
            held.connections.discard(connection)
            if not held.connections:
                del self._held[presented]

    async def recheck(self) -> None:
        """Prove every watched credential once, and end the connections that lost their right."""
        watched = iter(
            [
                (presented, held.identity)
                for presented, held in self._held.items()
                if any(connection.can_end for connection in held.connections)
            ]
        )
        while batch := dict(islice(watched, _BATCH)):
            try:
                standing = await self._rechecker.recheck(batch)
            except (SQLAlchemyError, OSError, MoyinError) as error:
                # New requests of callers who are known go on as well while the database is away.
                _log.warning("open connections can't be rechecked: %s", type(error).__name__)
                return
            self._judge(batch, standing)

    def _judge(self, credentials: Iterable[str], standing: Mapping[str, Identity]) -> None:
        for presented in credentials:
            held = self._held.get(presented)
            if held is None:
                continue
            identity = standing.get(presented)
            if identity is not None:
                held.identity = identity
            for connection in list(held.connections):
                error = _ended() if identity is None else connection.refusal(identity)
                if error is not None and connection.can_end:
                    connection.end(error)

    async def _run(self) -> None:
        while self._held:
            await asyncio.sleep(self._interval)
            try:
                await self.recheck()
            except Exception:
                _log.exception("the recheck of open connections failed; it goes on")


def _ended() -> InvalidKey:
    return InvalidKey("the key or the session has ended")
