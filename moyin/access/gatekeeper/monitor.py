"""Ends long-lived connections whose API key or session has ended or lost a required scope.

A connection is authenticated when it starts and may outlive its credential. Each replica therefore
verifies the credentials of its open connections every three seconds, in a few queries.
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

_log = logging.getLogger(__name__)
# The documentation promises that connections end within ten seconds.
_INTERVAL_SECONDS = 3.0
# Number of credentials that one query verifies.
_BATCH = 500


class CredentialVerifier(Protocol):
    """Interface to check, without a cache, whether credentials are still valid."""

    async def recheck(self, credentials: Mapping[str, Identity]) -> Mapping[str, Identity]:
        """Return the current identities, by credential, of those ``credentials`` that are valid."""


class Connection(Protocol):
    """Describes a WebSocket or request that the monitor may end."""

    @property
    def can_end(self) -> bool:
        """True for a WebSocket or a started stream, which can be ended with an error."""

    def find_refusal(self, identity: Identity) -> MoyinError | None:
        """Return the error with which to end the connection; None if ``identity`` may keep it."""

    def end(self, error: MoyinError) -> None:
        """End the connection and send ``error`` to the client."""


@dataclass(slots=True)
class _WatchedCredential:
    """The identity of one credential, and its open connections."""

    identity: Identity
    connections: set[Connection] = field(default_factory=set)


class CredentialMonitor:
    """Verifies the credentials of the open connections of one app in one replica.

    Its task starts with the first connection and ends after the last.
    """

    def __init__(
        self, verifier: CredentialVerifier, *, interval_seconds: float = _INTERVAL_SECONDS
    ) -> None:
        self._verifier = verifier
        self._interval_seconds = interval_seconds
        self._credentials: dict[str, _WatchedCredential] = {}
        self._verification_task: asyncio.Task[None] | None = None

    def add(self, credential: str, identity: Identity, connection: Connection) -> None:
        """Monitor a connection that was authenticated with ``credential``.

        Connections of Moyin's services are not monitored, since they end with their jobs.
        """
        if identity.service is not None:
            return
        watched_credential = self._credentials.get(credential)
        if watched_credential is None:
            watched_credential = self._credentials[credential] = _WatchedCredential(identity)
        watched_credential.connections.add(connection)
        if self._verification_task is None or self._verification_task.done():
            self._verification_task = asyncio.create_task(self._verify_periodically())

    def discard(self, credential: str, connection: Connection) -> None:
        """Stop monitoring a connection that has ended."""
        watched_credential = self._credentials.get(credential)
        if watched_credential is not None:
            watched_credential.connections.discard(connection)
            if not watched_credential.connections:
                del self._credentials[credential]

    async def recheck(self) -> None:
        """Verify all credentials once, and end the connections that are no longer allowed."""
        pending_credentials = iter(
            [
                (credential, watched_credential.identity)
                for credential, watched_credential in self._credentials.items()
                if any(connection.can_end for connection in watched_credential.connections)
            ]
        )
        while batch := dict(islice(pending_credentials, _BATCH)):
            try:
                valid_identities = await self._verifier.recheck(batch)
            except (SQLAlchemyError, OSError, MoyinError) as error:
                # The connections continue, just as cached credentials are accepted during an
                # outage.
                _log.warning(
                    "could not verify the credentials of open connections: %s", type(error).__name__
                )
                return
            self._end_invalid_connections(batch, valid_identities)

    def _end_invalid_connections(
        self, credentials: Iterable[str], valid_identities: Mapping[str, Identity]
    ) -> None:
        for credential in credentials:
            watched_credential = self._credentials.get(credential)
            if watched_credential is None:
                continue
            identity = valid_identities.get(credential)
            if identity is not None:
                watched_credential.identity = identity
            for connection in list(watched_credential.connections):
                error = (
                    _new_credential_ended_error()
                    if identity is None
                    else connection.find_refusal(identity)
                )
                if error is not None and connection.can_end:
                    connection.end(error)

    async def _verify_periodically(self) -> None:
        while self._credentials:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.recheck()
            except Exception:
                _log.exception(
                    "verifying the credentials of open connections failed; retrying in %s s",
                    self._interval_seconds,
                )


def _new_credential_ended_error() -> InvalidKey:
    return InvalidKey("the API key or the session of this connection has ended; authenticate again")
