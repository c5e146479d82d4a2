"""Verifies the caller again inside the transaction of an operation with lasting effect.

Authenticated identities are cached for some seconds, during which the session or key may end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa

from moyin.domain.identity import Identity
from moyin.errors import InvalidKey
from moyin.store.keys import is_key_valid
from moyin.store.schema import users
from moyin.store.sessions import is_session_open
from moyin.store.sql import Database, Transaction


class ReauthorizedTransactions:
    """Opens transactions that first verify the caller's session or API key again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def begin(
        self, identity: Identity, *, target_user: str | None = None
    ) -> AsyncIterator[Transaction]:
        """Open a transaction, to be passed to the stores as ``transaction``.

        Args:
            target_user: the id of the user that the transaction changes, or None. The rows of the
                caller and the target are locked, so that two users cannot change each other at the
                same time.

        Raises:
            InvalidKey: the session or key has ended or lost scopes, or the caller is one of Moyin's
                services and has neither.
        """
        async with self._database.writing() as transaction:
            # A transaction that disables the user waits for this one, to revoke its new keys, too.
            if locked_users := {identity.user, target_user} - {None}:
                users_query = (
                    sa.select(users.c.id).where(users.c.id.in_(locked_users)).order_by(users.c.id)
                )
                await transaction.execute(users_query.with_for_update(key_share=True))
            if not await _is_identity_valid(transaction, identity):
                raise InvalidKey(
                    "the session or API key has ended or lost scopes; sign in again or use another key"
                )
            yield transaction


async def _is_identity_valid(transaction: Transaction, identity: Identity) -> bool:
    # A session cannot lose scopes, since a change of role ends it.
    if identity.is_session:
        return await is_session_open(transaction, identity.key_id)
    return await is_key_valid(transaction, identity.key_id, identity.scopes)
