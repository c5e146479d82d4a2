"""Stores organisations, users, and the identities at OpenID providers by which users sign in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from moyin.domain.account import Organisation, Role, User, UserKind
from moyin.errors import NameTaken, NotFound
from moyin.store.cursors import PageRequest, build_search_condition, fetch_page
from moyin.store.schema import api_keys, organisations, password_resets, sessions, sign_ins, users
from moyin.store.sql import Database, Transaction, ensure_utc, now
from moyin.store.tokens import generate_id

_ALL = PageRequest()


class UserStore:
    """Reads and writes organisations and users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_organisation(
        self, name: str, *, transaction: Transaction | None = None
    ) -> Organisation:
        """Create an organisation; raise `NameTaken` if another one has the name."""
        organisation = Organisation(id=generate_id("org"), name=name, created_at=now())
        try:
            await self._database.execute(
                organisations.insert().values(**asdict(organisation)), transaction=transaction
            )
        except IntegrityError:
            raise NameTaken(
                f"name {name!r} is used by another organisation; choose another name", field="name"
            ) from None
        return organisation

    async def get_organisation(self, organisation_id: str) -> Organisation:
        """Return an organisation, or raise `NotFound`."""
        query = sa.select(organisations).where(organisations.c.id == organisation_id)
        row = await self._database.fetch_first(query)
        if row is None:
            raise _new_organisation_error(organisation_id)
        return _parse_organisation(row)

    async def list_organisations(
        self, *, search: str = "", page: PageRequest = _ALL
    ) -> tuple[list[Organisation], str | None]:
        """Return organisations, newest first, and the cursor of the next page.

        Args:
            search: a text that the name must contain.
        """
        condition = build_search_condition(search, organisations.c.name) if search else sa.true()
        rows, cursor = await fetch_page(self._database, organisations, condition, page)
        return [_parse_organisation(row) for row in rows], cursor

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
        transaction: Transaction | None = None,
    ) -> User:
        """Create a user.

        Args:
            email: the email in lower case, or None for a service account.
            password: the hash of the password, or None if the user has no password.
            sign_in: the issuer and subject of the user's identity at an OpenID provider.

        Raises:
            NameTaken: another user has that email or identity.
            NotFound: the organisation does not exist.
        """
        user = User(
            id=generate_id("usr"),
            kind=kind,
            email=email,
            name=name,
            organisation=organisation,
            role=role,
            created_at=now(),
            password=password,
        )
        try:
            async with self._database.join_or_begin(transaction) as connection:
                if organisation is not None:
                    await _require_organisation(connection, organisation)
                await connection.execute(users.insert().values(_build_row(user)))
                if sign_in is not None:
                    await connection.execute(_insert_sign_in(*sign_in, user.id))
        except IntegrityError:
            raise NameTaken(
                "email is used by another account; sign in to that account", field="email"
            ) from None
        return user

    async def get(self, user_id: str, *, transaction: Transaction | None = None) -> User:
        """Return a user, or raise `NotFound`."""
        user = await self._fetch_first(users.c.id == user_id, transaction)
        if user is None:
            raise _new_user_error(user_id)
        return user

    async def get_member(
        self, organisation: str, user_id: str, *, transaction: Transaction | None = None
    ) -> User:
        """Return a user of an organisation, or raise `NotFound`."""
        user = await self.get(user_id, transaction=transaction)
        if user.organisation != organisation:
            raise _new_user_error(user_id)
        return user

    async def find_by_email(self, email: str) -> User | None:
        """Return the user with this lower-case email, or None if there is none."""
        return await self._fetch_first(users.c.email == email)

    async def find_by_sign_in(self, issuer: str, subject: str) -> User | None:
        """Return the user with this identity at an OpenID provider, or None if there is none."""
        return await self._fetch_first(
            users.c.id.in_(
                sa.select(sign_ins.c.user_id).where(
                    sign_ins.c.issuer == issuer, sign_ins.c.subject == subject
                )
            )
        )

    async def transfer_to_sign_in(
        self, user_id: str, issuer: str, subject: str, *, trusted_issuers: Collection[str] = ()
    ) -> None:
        """Delete an account's password, so that its user signs in through an OpenID provider.

        If the identity at the provider is new to the account, the account's reset tokens and its
        identities at other issuers are deleted, too, and all its sessions and API keys are revoked.

        Args:
            trusted_issuers: the issuers whose identities are kept in any case.
        """
        existing_sign_in = sa.select(sign_ins).where(
            sign_ins.c.issuer == issuer, sign_ins.c.subject == subject
        )
        is_other_issuer = sign_ins.c.issuer.not_in(
            [trusted_issuer for trusted_issuer in trusted_issuers if trusted_issuer != issuer]
        )
        async with self._database.writing() as connection:
            # The update also locks the row, so that a concurrent transfer waits.
            await connection.execute(
                users.update().where(users.c.id == user_id).values(password=None)
            )
            if (await connection.execute(existing_sign_in)).first() is not None:
                return
            await connection.execute(
                sign_ins.delete().where(sign_ins.c.user_id == user_id, is_other_issuer)
            )
            await connection.execute(
                password_resets.delete().where(password_resets.c.user_id == user_id)
            )
            for table in (sessions, api_keys):
                await connection.execute(
                    table.update()
                    .where(table.c.user_id == user_id, table.c.revoked_at.is_(None))
                    .values(revoked_at=now())
                )
            await connection.execute(_insert_sign_in(issuer, subject, user_id))

    async def list_members(
        self, organisation: str, *, search: str = "", page: PageRequest = _ALL
    ) -> tuple[list[User], str | None]:
        """Return members and service accounts, newest first, and the cursor of the next page.

        Args:
            search: a text that the name or the email must contain.
        """
        condition = users.c.organisation_id == organisation
        if search:
            condition &= build_search_condition(search, users.c.name, users.c.email)
        rows, cursor = await fetch_page(self._database, users, condition, page)
        return [_parse_user(row) for row in rows], cursor

    async def change(
        self, user_id: str, values: Mapping[str, Any], *, transaction: Transaction | None = None
    ) -> User:
        """Set columns of a user and return the changed user, or raise `NotFound`.

        Args:
            values: the new values by column.
        """
        condition = users.c.id == user_id
        async with self._database.join_or_begin(transaction) as connection:
            await connection.execute(users.update().where(condition).values(dict(values)))
            row = (await connection.execute(sa.select(users).where(condition))).mappings().first()
        if row is None:
            raise _new_user_error(user_id)
        return _parse_user(row)

    async def delete_personal_data(
        self, user_id: str, *, transaction: Transaction | None = None
    ) -> None:
        """Delete the personal data of a user and disable the account.

        The user's row is not deleted, since other rows refer to it.
        """
        values: dict[str, Any] = {
            "email": None,
            "name": "",
            "password": None,
            "profile": {},
            "disabled_at": sa.func.coalesce(users.c.disabled_at, now()),
        }
        async with self._database.join_or_begin(transaction) as connection:
            await connection.execute(sign_ins.delete().where(sign_ins.c.user_id == user_id))
            await connection.execute(users.update().where(users.c.id == user_id).values(values))

    async def _fetch_first(
        self, condition: sa.ColumnElement[bool], transaction: Transaction | None = None
    ) -> User | None:
        async with (
            nullcontext(transaction) if transaction else self._database.reading() as connection
        ):
            rows = await connection.execute(sa.select(users).where(condition))
            row = rows.mappings().first()
        return None if row is None else _parse_user(row)


async def _require_organisation(connection: Transaction, organisation: str) -> None:
    query = sa.select(organisations.c.id).where(organisations.c.id == organisation)
    if (await connection.execute(query)).first() is None:
        raise _new_organisation_error(organisation)


def _parse_organisation(row: Mapping[Any, Any]) -> Organisation:
    return Organisation(id=row["id"], name=row["name"], created_at=ensure_utc(row["created_at"]))


def _new_organisation_error(organisation: str) -> NotFound:
    return NotFound(f"organisation {organisation!r} does not exist; check the id")


def _new_user_error(user_id: str) -> NotFound:
    return NotFound(f"user {user_id!r} does not exist; check the id")


def _insert_sign_in(issuer: str, subject: str, user_id: str) -> sa.Insert:
    return sign_ins.insert().values(
        issuer=issuer, subject=subject, user_id=user_id, created_at=now()
    )


def _build_row(user: User) -> dict[str, Any]:
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


def _parse_user(row: Mapping[Any, Any]) -> User:
    return User(
        id=row["id"],
        kind=UserKind(row["kind"]),
        email=row["email"],
        name=row["name"],
        organisation=row["organisation_id"],
        role=None if row["role"] is None else Role(row["role"]),
        created_at=ensure_utc(row["created_at"]),
        disabled_at=ensure_utc(row["disabled_at"]),
        profile=row["profile"],
        password=row["password"],
    )
