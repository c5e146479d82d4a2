"""Sessions with their refresh tokens, and tokens that reset a password."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from moyin.domain.account import Session
from moyin.errors import InvalidToken
from moyin.store.schema import password_resets, refresh_tokens, sessions, users
from moyin.store.sql import Database, Transaction, aware, now
from moyin.store.tokens import digest, new_id, new_secret

__all__ = ["SessionStore", "still_open"]

# So that a token presented after its session ran out is told apart from a made-up one in the log.
_KEPT = timedelta(days=1)


class SessionStore:
    """Rows of sessions.

    Args:
        idle: a session ends when it was not refreshed for so long.
    """

    def __init__(self, database: Database, *, idle: timedelta = timedelta(days=30)) -> None:
        self._database = database
        self._idle = idle

    async def open(self, user_id: str) -> tuple[Session, str]:
        """A new session and its first refresh token, which is not kept anywhere."""
        session = self._new(user_id)
        async with self._database.writing() as connection:
            return session, await _insert(connection, session)

    async def open_by_password(
        self, user_id: str, password: str, rehashed: str | None = None
    ) -> tuple[Session, str] | None:
        """`open`, unless the user has another password by now, or is shut out.

        Args:
            password: the hash that was verified.
            rehashed: takes its place.
        """
        statement = (
            users.update()
            .where(
                users.c.id == user_id,
                users.c.password == password,
                users.c.disabled_at.is_(None),
            )
            .values(password=rehashed or password)
        )
        session = self._new(user_id)
        async with self._database.writing() as connection:
            # It also holds the row: whoever sets a new password meanwhile waits, and then ends this
            # session with the others.
            if (await connection.execute(statement)).rowcount == 0:
                return None
            return session, await _insert(connection, session)

    async def rotate(self, presented: str) -> tuple[Session, str]:
        """The session of a refresh token, and the token that takes its place.

        A token that was used before is in two hands: the whole session ends.

        Raises:
            InvalidToken: unknown, used, or of a session that is over; which of them is not told.
        """
        used = digest(presented)
        expires_at = now() + self._idle
        async with self._database.writing() as connection:
            row = await _session_of(connection, used)
            if row is not None:
                if await _use(connection, used):
                    await connection.execute(
                        sessions.update()
                        .where(sessions.c.id == row.id)
                        .values(expires_at=expires_at)
                    )
                    session = Session(id=row.id, user_id=row.user_id, expires_at=expires_at)
                    return session, await _issue(connection, row.id)
                await _revoke(connection, sessions.c.id == row.id)
        raise InvalidToken("the refresh token is not valid; sign in again", field="refresh_token")

    async def revoke(self, session_id: str) -> None:
        async with self._database.writing() as connection:
            await _revoke(connection, sessions.c.id == session_id)

    async def revoke_all(self, user_id: str, *, within: Transaction | None = None) -> None:
        """End the user's sessions."""
        async with self._database.within(within) as connection:
            await _revoke(connection, sessions.c.user_id == user_id)

    async def change_password(
        self, user_id: str, session_id: str, before: str | None, after: str
    ) -> bool:
        """Set a new password from within a session, which alone stays open.

        False, and nothing is done, when the session is over or ``before`` is not the user's
        password hash any more.
        """
        still_open = sa.exists().where(
            sessions.c.id == session_id,
            sessions.c.user_id == user_id,
            sessions.c.revoked_at.is_(None),
        )
        statement = (
            users.update()
            .where(users.c.id == user_id, users.c.password.is_not_distinct_from(before), still_open)
            .values(password=after)
        )
        others = sa.and_(sessions.c.user_id == user_id, sessions.c.id != session_id)
        async with self._database.writing() as connection:
            if (await connection.execute(statement)).rowcount == 0:
                return False
            await _revoke(connection, others)
        return True

    async def is_open(self, session_id: str) -> bool:
        """Whether tokens of this session still prove anything."""
        query = _open(session_id)
        return await self._database.read(lambda c: c.execute(query).first() is not None)

    async def open_among(self, session_ids: Collection[str]) -> frozenset[str]:
        """Return those of the sessions that are neither over nor a disabled user's."""
        query = (
            sa.select(sessions.c.id)
            .join(users, users.c.id == sessions.c.user_id)
            .where(
                sessions.c.id.in_(session_ids),
                sessions.c.revoked_at.is_(None),
                sessions.c.expires_at > now(),
                users.c.disabled_at.is_(None),
            )
        )
        rows = await self._database.read(lambda c: c.execute(query).scalars().all())
        return frozenset(rows)

    async def allow_reset(
        self, user_id: str, lifetime: timedelta, *, within: Transaction | None = None
    ) -> str:
        """A token that sets a new password, once, within ``lifetime``. Older ones end."""
        text = new_secret("p")
        async with self._database.within(within) as connection:
            await connection.execute(
                password_resets.delete().where(password_resets.c.user_id == user_id)
            )
            await connection.execute(
                password_resets.insert().values(
                    digest=digest(text), user_id=user_id, expires_at=now() + lifetime
                )
            )
        return text

    async def forbid_reset(self, user_id: str, *, within: Transaction | None = None) -> None:
        """End the user's tokens that would set a new password."""
        async with self._database.within(within) as connection:
            await connection.execute(
                password_resets.delete().where(password_resets.c.user_id == user_id)
            )

    async def reset_for(self, presented: str) -> str:
        """Return the id of the user whose password a reset token would set.

        Raises:
            InvalidToken: unknown, used or too old.
        """
        query = sa.select(password_resets.c.user_id).where(_usable(presented))
        user_id: str | None = await self._database.read(lambda c: c.execute(query).scalar())
        if user_id is None:
            raise _unusable()
        return user_id

    async def reset_password(self, presented: str, password: str) -> None:
        """Set the password (a hash) of whom a reset token was made for, and end their sessions.

        Raises:
            InvalidToken: unknown, used or too old.
        """
        used = password_resets.c.digest == digest(presented)
        # The user first, as everybody else does who holds both.
        holder = (
            sa.select(users.c.id)
            .join(password_resets, password_resets.c.user_id == users.c.id)
            .where(used)
            .with_for_update(key_share=True, of=users)
        )
        statement = password_resets.update().where(_usable(presented)).values(used_at=now())
        # At once: a password that is new while the thief's session goes on would be worse than none.
        async with self._database.writing() as connection:
            user_id = (await connection.execute(holder)).scalar()
            if (await connection.execute(statement)).rowcount == 0:
                raise _unusable()
            await connection.execute(
                users.update().where(users.c.id == user_id).values(password=password)
            )
            await _revoke(connection, sessions.c.user_id == user_id)

    async def purge(self) -> int:
        """Forget sessions and reset tokens that are long over; returns how many sessions."""
        before = now() - _KEPT
        async with self._database.writing() as connection:
            gone = await connection.execute(sessions.delete().where(sessions.c.expires_at < before))
            await connection.execute(
                password_resets.delete().where(password_resets.c.expires_at < before)
            )
        return gone.rowcount

    def _new(self, user_id: str) -> Session:
        return Session(id=new_id("ses"), user_id=user_id, expires_at=now() + self._idle)


async def still_open(connection: Transaction, session_id: str) -> bool:
    """`SessionStore.is_open` in a transaction."""
    return (await connection.execute(_open(session_id))).first() is not None


def _usable(presented: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        password_resets.c.digest == digest(presented),
        password_resets.c.used_at.is_(None),
        password_resets.c.expires_at > now(),
    )


def _unusable() -> InvalidToken:
    return InvalidToken("the token is not valid; ask for a new one", field="token")


def _open(session_id: str) -> sa.Select[Any]:
    return (
        sa.select(sessions.c.id)
        .join(users, users.c.id == sessions.c.user_id)
        .where(
            sessions.c.id == session_id,
            sessions.c.revoked_at.is_(None),
            users.c.disabled_at.is_(None),
        )
    )


async def _session_of(connection: Transaction, used: str) -> sa.Row[Any] | None:
    """The live session that a refresh token belongs to."""
    query = (
        sa.select(sessions.c.id, sessions.c.user_id, sessions.c.expires_at)
        .join(refresh_tokens, refresh_tokens.c.session_id == sessions.c.id)
        .join(users, users.c.id == sessions.c.user_id)
        .where(
            refresh_tokens.c.digest == used,
            sessions.c.revoked_at.is_(None),
            users.c.disabled_at.is_(None),
        )
    )
    row = (await connection.execute(query)).first()
    expires_at = None if row is None else aware(row.expires_at)
    return row if expires_at is not None and expires_at > now() else None


async def _use(connection: Transaction, used: str) -> bool:
    """Mark a refresh token used; False when it was before. Of two at once, one succeeds."""
    statement = (
        refresh_tokens.update()
        .where(refresh_tokens.c.digest == used, refresh_tokens.c.used_at.is_(None))
        .values(used_at=now())
    )
    return (await connection.execute(statement)).rowcount == 1


async def _insert(connection: Transaction, session: Session) -> str:
    """Write a new session; returns its first refresh token."""
    await connection.execute(
        sessions.insert().values(
            id=session.id,
            user_id=session.user_id,
            created_at=now(),
            expires_at=session.expires_at,
        )
    )
    return await _issue(connection, session.id)


async def _issue(connection: Transaction, session_id: str) -> str:
    text = new_secret("r")
    await connection.execute(
        refresh_tokens.insert().values(digest=digest(text), session_id=session_id)
    )
    return text


async def _revoke(connection: Transaction, condition: sa.ColumnElement[bool]) -> None:
    await connection.execute(
        sessions.update().where(condition, sessions.c.revoked_at.is_(None)).values(revoked_at=now())
    )
