"""Organisations, users, and the sign-ins that OpenID providers vouch for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from moyin.domain.account import Organisation, Role, User, UserKind
from moyin.errors import NameTaken, NotFound
from moyin.store.schema import (
    api_keys,
    organisations,
    password_resets,
    sessions,
    sign_ins,
    users,
)
from moyin.store.sql import Database, Transaction, aware, now
from moyin.store.tokens import new_id

__all__ = ["UserStore"]


class UserStore:
    """Rows of organisations and users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_organisation(
        self, name: str, *, within: Transaction | None = None
    ) -> Organisation:
        """
        Raises:
            NameTaken: there is one of that name.
        """
        created = Organisation(id=new_id("org"), name=name, created_at=now())
        try:
            async with self._database.within(within) as connection:
                await connection.execute(
                    organisations.insert().values(
                        id=created.id, name=name, created_at=created.created_at
                    )
                )
        except IntegrityError:
            raise NameTaken("there is an organisation of that name", field="name") from None
        return created

    async def organisation(self, organisation_id: str) -> Organisation:
        """
        Raises:
            NotFound: there is none.
        """
        found = await self._organisations(organisations.c.id == organisation_id)
        if not found:
            raise _no_organisation(organisation_id)
        return found[0]

    async def organisations(self) -> list[Organisation]:
        return await self._organisations(sa.true())

    async def create(
        self,
        kind: UserKind,
        *,
        email: str | None,
        name: str,
        password: str | None = None,
        organisation: str | None = None,
        role: Role | None = None,
        sign_in: tuple[str, str] | None = None,
        within: Transaction | None = None,
    ) -> User:
        """A new user. ``email`` in lower case; ``sign_in``: issuer and subject.

        Raises:
            NameTaken: somebody has that email, or signs in that way.
            NotFound: there is no such organisation.
        """
        user = User(
            id=new_id("usr"),
            kind=kind,
            email=email,
            name=name,
            organisation=organisation,
            role=role,
            created_at=now(),
            password=password,
        )
        try:
            async with self._database.within(within) as connection:
                if organisation is not None:
                    await _check_organisation(connection, organisation)
                await connection.execute(users.insert().values(_values(user)))
                if sign_in is not None:
                    issuer, subject = sign_in
                    await connection.execute(
                        sign_ins.insert().values(
                            issuer=issuer,
                            subject=subject,
                            user_id=user.id,
                            created_at=user.created_at,
                        )
                    )
        except IntegrityError:
            raise NameTaken("there is an account with that email", field="email") from None
        return user

    async def get(self, user_id: str, *, within: Transaction | None = None) -> User:
        """
        Raises:
            NotFound: there is none.
        """
        found = await self._first(users.c.id == user_id, within)
        if found is None:
            raise NotFound(f"there is no user {user_id!r}")
        return found

    async def by_email(self, email: str) -> User | None:
        return await self._first(users.c.email == email)

    async def by_sign_in(self, issuer: str, subject: str) -> User | None:
        return await self._first(
            users.c.id.in_(
                sa.select(sign_ins.c.user_id).where(
                    sign_ins.c.issuer == issuer, sign_ins.c.subject == subject
                )
            )
        )

    async def take_over(
        self, user_id: str, issuer: str, subject: str, *, trusted: Collection[str] = ()
    ) -> None:
        """Let the user sign in through a provider from now on, and in no way that was open before:
        the password goes and tokens that would set one, sign-ins through other providers but the
        ``trusted`` (issuers), sessions and keys are revoked."""
        moment = now()
        taken = sa.select(sign_ins).where(
            sign_ins.c.issuer == issuer, sign_ins.c.subject == subject
        )
        others = sign_ins.c.issuer.not_in([one for one in trusted if one != issuer])
        async with self._database.writing() as connection:
            # It also holds the row: another tab of the same person waits.
            await connection.execute(
                users.update().where(users.c.id == user_id).values(password=None)
            )
            if (await connection.execute(taken)).first() is not None:
                return
            await connection.execute(sign_ins.delete().where(sign_ins.c.user_id == user_id, others))
            await connection.execute(
                password_resets.delete().where(password_resets.c.user_id == user_id)
            )
            for table in (sessions, api_keys):
                await connection.execute(
                    table.update()
                    .where(table.c.user_id == user_id, table.c.revoked_at.is_(None))
                    .values(revoked_at=moment)
                )
            await connection.execute(
                sign_ins.insert().values(
                    issuer=issuer, subject=subject, user_id=user_id, created_at=moment
                )
            )

    async def members(self, organisation: str) -> list[User]:
        """Members and service accounts, oldest first."""
        query = (
            sa.select(users)
            .where(users.c.organisation_id == organisation)
            .order_by(users.c.created_at, users.c.id)
        )
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [_user(row) for row in rows]

    async def change(
        self, user_id: str, values: Mapping[str, Any], *, within: Transaction | None = None
    ) -> User:
        """Set columns; returns the user as it is then.

        Raises:
            NotFound: there is none.
        """
        condition = users.c.id == user_id
        async with self._database.within(within) as connection:
            await connection.execute(users.update().where(condition).values(dict(values)))
            row = (await connection.execute(sa.select(users).where(condition))).mappings().first()
        if row is None:
            raise NotFound(f"there is no user {user_id!r}")
        return _user(row)

    async def forget(self, user_id: str, *, within: Transaction | None = None) -> None:
        """Forget who the user was. The row stays, because things point to it, and nobody can sign
        in to it again."""
        gone: dict[str, Any] = {
            "email": None,
            "name": "",
            "password": None,
            "profile": {},
            "disabled_at": sa.func.coalesce(users.c.disabled_at, now()),
        }
        async with self._database.within(within) as connection:
            await connection.execute(sign_ins.delete().where(sign_ins.c.user_id == user_id))
            await connection.execute(users.update().where(users.c.id == user_id).values(gone))

    async def _first(
        self, condition: sa.ColumnElement[bool], within: Transaction | None = None
    ) -> User | None:
        async with nullcontext(within) if within else self._database.reading() as connection:
            rows = await connection.execute(sa.select(users).where(condition))
            row = rows.mappings().first()
        return None if row is None else _user(row)

    async def _organisations(self, condition: sa.ColumnElement[bool]) -> list[Organisation]:
        query = sa.select(organisations).where(condition).order_by(organisations.c.created_at)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [
            Organisation(
                id=row["id"], name=row["name"], created_at=aware(row["created_at"]) or now()
            )
            for row in rows
        ]


async def _check_organisation(connection: Transaction, organisation: str) -> None:
    query = sa.select(organisations.c.id).where(organisations.c.id == organisation)
    if (await connection.execute(query)).first() is None:
        raise _no_organisation(organisation)


def _no_organisation(organisation: str) -> NotFound:
    return NotFound(f"there is no organisation {organisation!r}")


def _values(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "kind": user.kind.value,
        "email": user.email,
        "name": user.name,
        "password": user.password,
        "organisation_id": user.organisation,
        "role": None if user.role is None else user.role.value,
        "profile": dict(user.profile),
        "created_at": user.created_at,
        "disabled_at": user.disabled_at,
    }


def _user(row: Mapping[Any, Any]) -> User:
    return User(
        id=row["id"],
        kind=UserKind(row["kind"]),
        email=row["email"],
        name=row["name"],
        organisation=row["organisation_id"],
        role=None if row["role"] is None else Role(row["role"]),
        created_at=aware(row["created_at"]) or now(),
        disabled_at=aware(row["disabled_at"]),
        profile=row["profile"],
        password=row["password"],
    )
