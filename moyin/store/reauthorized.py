"""What outlasts the seconds for which a proof of identity is kept: who does it is proven again, in
the transaction in which it is done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa

from moyin.domain.identity import Identity
from moyin.errors import InvalidKey
from moyin.store.keys import still_good
from moyin.store.schema import users
from moyin.store.sessions import still_open
from moyin.store.sql import Database, Transaction

__all__ = ["ReauthorizedTransactions"]


class ReauthorizedTransactions:
    """Transactions of callers who are still who they were."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def acting(
        self, identity: Identity, *, on: str | None = None
    ) -> AsyncIterator[Transaction]:
        """A transaction for what ``identity`` does; hand it to the stores as ``within``.

        Args:
            on: the user that is changed, if it is one: two who change each other take turns.

        Raises:
            InvalidKey: the session or the key is over, or lets do less by now; or it is a service
                of ours that acts for nobody in particular.
        """
        async with self._database.writing() as transaction:
            # Whoever shuts the user out, or takes the account over, waits for this to end, and then
            # ends what came of it as well. SQLite has one writer anyway.
            if held := {identity.user, on} - {None}:
                rows = sa.select(users.c.id).where(users.c.id.in_(held)).order_by(users.c.id)
                await transaction.execute(rows.with_for_update(key_share=True))
            if not await _stands(transaction, identity):
                raise InvalidKey("the session or the key is over; sign in again")
            yield transaction


async def _stands(transaction: Transaction, identity: Identity) -> bool:
    """A session's scopes are those of its beginning: another role ends it."""
    if identity.is_session:
        return await still_open(transaction, identity.key_id)
    return await still_good(transaction, identity.key_id, identity.scopes)
