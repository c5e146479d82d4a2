"""Stores sessions, their refresh tokens, and tokens that reset passwords."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from moyin.domain.account import OpenSession, Session
from moyin.errors import InvalidToken, NotFound
from moyin.store.schema import password_resets, refresh_tokens, sessions, users
from moyin.store.sql import Database, Transaction, ensure_utc, now
from moyin.store.tokens import compute_digest, generate_id, generate_secret

# The open sessions of one user that are listed; a person has a few.
_MAX_LISTED = 200
# How long expired sessions and reset tokens are stored.
_RETENTION = timedelta(days=1)


class SessionStore:
    """Opens, refreshes and ends sessions, and sets passwords.

    Args:
        idle_timeout: the time after which a session ends unless it is refreshed.
    """

    def __init__(self, database: Database, *, idle_timeout: timedelta = timedelta(days=30)) -> None:
        self._database = database
        self._idle_timeout = idle_timeout

    async def open(self, user_id: str) -> tuple[Session, str]:
        """Create a session and return it with its first refresh token, which is not stored."""
        session = self._build_session(user_id)
        async with self._database.writing() as connection:
            return session, await _insert_session(connection, session)

    async def open_by_password(
        self, user_id: str, password_hash: str, new_hash: str | None = None
    ) -> tuple[Session, str] | None:
        """Create a session if ``password_hash`` is the user's stored hash and the user is enabled.

        Args:
            new_hash: a new hash of the same password, which replaces the stored one.

        Returns:
            The session and its first refresh token, or None if no session was created.
        """
        statement = (
            users.update()
            .where(
                users.c.id == user_id,
                users.c.password == password_hash,
                users.c.disabled_at.is_(None),
            )
            .values(password=new_hash or password_hash)
        )
        session = self._build_session(user_id)
        async with self._database.writing() as connection:
            # The update locks the row, so that a concurrent change of the password waits.
            if (await connection.execute(statement)).rowcount == 0:
                return None
            return session, await _insert_session(connection, session)

    async def rotate_refresh_token(self, presented_token: str) -> tuple[Session, str]:
        """Extend the session of a refresh token, and return it with the next refresh token.

        The second use of a token ends the session, since the token must have been stolen. A token
        that is unknown or was used before, or whose session has ended, raises `InvalidToken`.
        """
        digest = compute_digest(presented_token)
        expires_at = now() + self._idle_timeout
        async with self._database.writing() as connection:
            row = await _find_session(connection, digest)
            if row is not None:
                if await _mark_token_used(connection, digest):
                    await connection.execute(
                        sessions.update()
                        .where(sessions.c.id == row.id)
                        .values(expires_at=expires_at)
                    )
                    session = Session(id=row.id, user_id=row.user_id, expires_at=expires_at)
                    return session, await _issue_refresh_token(connection, row.id)
                await connection.execute(_build_revocation(sessions.c.id == row.id))
        raise InvalidToken(
            "refresh_token is unknown, was used before or has expired; sign in again",
            field="refresh_token",
        )

    async def renew(self, presented_token: str) -> Session:
        """Extend the session of a refresh token and return it; the token stays valid.

        Browsers keep this token in a cookie that no script can read, and all their tabs share it.
        If renewal replaced the token, one of two tabs that renew at once would present the old
        token and so end the session. If `rotate_refresh_token` has replaced the token, this ends
        the session and raises `InvalidToken`.
        """
        digest = compute_digest(presented_token)
        expires_at = now() + self._idle_timeout
        async with self._database.writing() as connection:
            row = await _find_session(connection, digest)
            if row is not None and row.used_at is None:
                extension = sessions.update().where(sessions.c.id == row.id)
                await connection.execute(extension.values(expires_at=expires_at))
                return Session(id=row.id, user_id=row.user_id, expires_at=expires_at)
            if row is not None:
                await connection.execute(_build_revocation(sessions.c.id == row.id))
        raise InvalidToken("the browser's session has ended or expired; sign in again")

    async def record_client(self, session_id: str, address: str, user_agent: str) -> None:
        """Record the client that has just signed in or renewed its session, and the time."""
        statement = sessions.update().where(
            sessions.c.id == session_id, sessions.c.revoked_at.is_(None)
        )
        await self._database.execute(
            statement.values(last_used_at=now(), address=address[:64], user_agent=user_agent[:256])
        )

    async def list_open(self, user_id: str) -> list[OpenSession]:
        """Return the user's open sessions, the last used first."""
        used_at = sa.func.coalesce(sessions.c.last_used_at, sessions.c.created_at)
        query = (
            sa.select(sessions)
            .where(_is_open_session_of(user_id))
            .order_by(used_at.desc(), sessions.c.id)
            .limit(_MAX_LISTED)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [
            OpenSession(
                id=row.id,
                created_at=ensure_utc(row.created_at),
                last_used_at=ensure_utc(row.last_used_at or row.created_at),
                expires_at=ensure_utc(row.expires_at),
                address=row.address or "",
                user_agent=row.user_agent or "",
            )
            for row in rows
        ]

    async def revoke(self, session_id: str) -> None:
        """End a session."""
        await self._database.execute(_build_revocation(sessions.c.id == session_id))

    async def revoke_for_user(self, user_id: str, session_id: str) -> None:
        """End an open session; raise `NotFound` if the user has no open session with this id."""
        statement = _build_revocation(
            sa.and_(sessions.c.id == session_id, _is_open_session_of(user_id))
        )
        async with self._database.writing() as connection:
            if (await connection.execute(statement)).rowcount == 0:
                raise NotFound(f"session {session_id!r} does not exist, has ended, or is not yours")

    async def revoke_by_refresh_token(self, presented_token: str) -> None:
        """End the session of a refresh token, if there is one."""
        session_query = sa.select(refresh_tokens.c.session_id).where(
            refresh_tokens.c.digest == compute_digest(presented_token)
        )
        await self._database.execute(_build_revocation(sessions.c.id.in_(session_query)))

    async def revoke_all(self, user_id: str, *, transaction: Transaction | None = None) -> None:
        """End all sessions of a user."""
        await self._database.execute(
            _build_revocation(sessions.c.user_id == user_id), transaction=transaction
        )

    async def change_password(
        self, user_id: str, session_id: str, current_hash: str | None, new_hash: str
    ) -> bool:
        """Set a new password hash and end all sessions of the user except ``session_id``.

        Args:
            current_hash: the hash of the current password, or None if the user has none.
            new_hash: the hash of the new password.

        Returns:
            True, or False if the session has ended or ``current_hash`` is not the stored hash.
        """
        session_is_open = sa.exists().where(
            sessions.c.id == session_id,
            sessions.c.user_id == user_id,
            sessions.c.revoked_at.is_(None),
        )
        statement = (
            users.update()
            .where(
                users.c.id == user_id,
                users.c.password.is_not_distinct_from(current_hash),
                session_is_open,
            )
            .values(password=new_hash)
        )
        is_other_session = sa.and_(sessions.c.user_id == user_id, sessions.c.id != session_id)
        async with self._database.writing() as connection:
            if (await connection.execute(statement)).rowcount == 0:
                return False
            await connection.execute(_build_revocation(is_other_session))
        return True

    async def is_open(self, session_id: str) -> bool:
        """Return whether the session has not ended, so that its access tokens are valid."""
        return await self._database.fetch_first(_build_open_session_query(session_id)) is not None

    async def filter_open(self, session_ids: Collection[str]) -> frozenset[str]:
        """Return the ids of those sessions that have not ended or expired."""
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
        return frozenset(await self._database.fetch_values(query))

    async def create_reset_token(
        self, user_id: str, lifetime: timedelta, *, transaction: Transaction | None = None
    ) -> str:
        """Create a token that can set the user's password once, and delete earlier tokens."""
        reset_token = generate_secret("p")
        async with self._database.join_or_begin(transaction) as connection:
            await self.delete_reset_tokens(user_id, transaction=connection)
            await connection.execute(
                password_resets.insert().values(
                    digest=compute_digest(reset_token), user_id=user_id, expires_at=now() + lifetime
                )
            )
        return reset_token

    async def delete_reset_tokens(
        self, user_id: str, *, transaction: Transaction | None = None
    ) -> None:
        """Delete all tokens that can set the user's password."""
        statement = password_resets.delete().where(password_resets.c.user_id == user_id)
        await self._database.execute(statement, transaction=transaction)

    async def find_user_by_reset_token(self, presented_token: str) -> str:
        """Return the id of the user of a valid reset token, or raise `InvalidToken`."""
        query = sa.select(password_resets.c.user_id).where(_is_valid_reset_token(presented_token))
        user_id: str | None = await self._database.fetch_value(query)
        if user_id is None:
            raise _new_reset_token_error()
        return user_id

    async def reset_password(self, presented_token: str, password_hash: str) -> None:
        """Set the password hash of a reset token's user and end all sessions of the user.

        Args:
            password_hash: the hash of the new password.

        Raises:
            InvalidToken: the token is not valid.
        """
        has_digest = password_resets.c.digest == compute_digest(presented_token)
        # Locks the user before the token, as all transactions do that lock both.
        user_query = (
            sa.select(users.c.id)
            .join(password_resets, password_resets.c.user_id == users.c.id)
            .where(has_digest)
            .with_for_update(key_share=True, of=users)
        )
        statement = (
            password_resets.update()
            .where(_is_valid_reset_token(presented_token))
            .values(used_at=now())
        )
        # One transaction, so that no session continues that was opened with the old password.
        async with self._database.writing() as connection:
            user_id = (await connection.execute(user_query)).scalar()
            if (await connection.execute(statement)).rowcount == 0:
                raise _new_reset_token_error()
            await connection.execute(
                users.update().where(users.c.id == user_id).values(password=password_hash)
            )
            await connection.execute(_build_revocation(sessions.c.user_id == user_id))

    async def purge_expired(self) -> int:
        """Delete sessions and reset tokens that expired more than a day ago.

        Returns:
            The number of deleted sessions.
        """
        cutoff = now() - _RETENTION
        async with self._database.writing() as connection:
            deleted_sessions = await connection.execute(
                sessions.delete().where(sessions.c.expires_at < cutoff)
            )
            await connection.execute(
                password_resets.delete().where(password_resets.c.expires_at < cutoff)
            )
        return deleted_sessions.rowcount

    def _build_session(self, user_id: str) -> Session:
        return Session(
            id=generate_id("ses"), user_id=user_id, expires_at=now() + self._idle_timeout
        )


async def is_session_open(connection: Transaction, session_id: str) -> bool:
    """Return whether a session has not ended, in the caller's transaction."""
    return (await connection.execute(_build_open_session_query(session_id))).first() is not None


def _is_valid_reset_token(presented_token: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        password_resets.c.digest == compute_digest(presented_token),
        password_resets.c.used_at.is_(None),
        password_resets.c.expires_at > now(),
    )


def _new_reset_token_error() -> InvalidToken:
    return InvalidToken(
        "token is unknown, was used before or has expired; request a new one", field="token"
    )


def _build_open_session_query(session_id: str) -> sa.Select[Any]:
    return (
        sa.select(sessions.c.id)
        .join(users, users.c.id == sessions.c.user_id)
        .where(
            sessions.c.id == session_id,
            sessions.c.revoked_at.is_(None),
            users.c.disabled_at.is_(None),
        )
    )


async def _find_session(connection: Transaction, digest: str) -> sa.Row[Any] | None:
    """Return the session of a refresh token's digest, or None if it has ended."""
    query = (
        sa.select(
            sessions.c.id, sessions.c.user_id, sessions.c.expires_at, refresh_tokens.c.used_at
        )
        .join(refresh_tokens, refresh_tokens.c.session_id == sessions.c.id)
        .join(users, users.c.id == sessions.c.user_id)
        .where(
            refresh_tokens.c.digest == digest,
            sessions.c.revoked_at.is_(None),
            users.c.disabled_at.is_(None),
        )
    )
    row = (await connection.execute(query)).first()
    expires_at = None if row is None else ensure_utc(row.expires_at)
    return row if expires_at is not None and expires_at > now() else None


async def _mark_token_used(connection: Transaction, digest: str) -> bool:
    """Mark a refresh token as used and return True, or return False if it was used already."""
    statement = (
        refresh_tokens.update()
        .where(refresh_tokens.c.digest == digest, refresh_tokens.c.used_at.is_(None))
        .values(used_at=now())
    )
    return (await connection.execute(statement)).rowcount == 1


async def _insert_session(connection: Transaction, session: Session) -> str:
    """Insert a session and return its first refresh token."""
    await connection.execute(
        sessions.insert().values(
            id=session.id, user_id=session.user_id, created_at=now(), expires_at=session.expires_at
        )
    )
    return await _issue_refresh_token(connection, session.id)


async def _issue_refresh_token(connection: Transaction, session_id: str) -> str:
    """Create and return a refresh token of a session."""
    refresh_token = generate_secret("r")
    await connection.execute(
        refresh_tokens.insert().values(digest=compute_digest(refresh_token), session_id=session_id)
    )
    return refresh_token


def _is_open_session_of(user_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        sessions.c.user_id == user_id,
        sessions.c.revoked_at.is_(None),
        sessions.c.expires_at > now(),
    )


def _build_revocation(condition: sa.ColumnElement[bool]) -> sa.Update:
    """Return the statement that ends sessions, and deletes the addresses of their clients."""
    open_sessions = sessions.update().where(condition, sessions.c.revoked_at.is_(None))
    return open_sessions.values(revoked_at=now(), address=None, user_agent=None)
