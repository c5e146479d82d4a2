"""Stores API keys by id, each with a digest of the key's text ``moyin_<id>_<secret>``.

A rotation replaces the secret and not the id, so that limits and their counters stay the same.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.account import ROLE_SCOPES, Role
from moyin.domain.identity import ALL, ALL_SCOPES, Identity, is_internal_owner
from moyin.errors import InvalidKey, InvalidRequest, NotFound
from moyin.store.cursors import PageRequest, build_search_condition, fetch_page
from moyin.store.schema import api_keys, inherited_limits, users
from moyin.store.sql import Database, Transaction, ensure_utc, now
from moyin.store.tokens import compute_digest

_log = logging.getLogger(__name__)
_ALL_KEYS = PageRequest()
_PREFIX = "moyin"
# The accuracy of the column `last_used_at`.
_USE_RECORD_INTERVAL = timedelta(minutes=1)
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """Describes an API key without its secret.

    Attributes:
        user: the id of the user who owns the key, or None if the tenant itself owns it.
    """

    id: str
    owner: str
    name: str
    scopes: frozenset[str]
    user: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class KeyStore:
    """Creates, verifies, rotates and revokes API keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        owner: str,
        name: str,
        *,
        scopes: Iterable[str] = ALL_SCOPES,
        user: str | None = None,
        expires_at: datetime | None = None,
        inherited_subjects: Collection[str] = (),
        transaction: Transaction | None = None,
    ) -> tuple[str, str]:
        """Create a key of a tenant; return its id and its text, which is not stored.

        Args:
            inherited_subjects: the subjects, such as ``key:<id>``, whose limits apply to the key in
                addition to those of the key itself, its user and its tenant.

        Raises:
            InvalidRequest: the tenant's name is reserved for Moyin's services.
        """
        if is_internal_owner(owner):
            raise InvalidRequest(
                f"owner {owner!r} must not begin with 'moyin:', which is reserved for Moyin's services",
                field="owner",
            )
        key_id = secrets.token_hex(8)
        key_text = _generate_key_text(key_id)
        row = api_keys.insert().values(
            id=key_id,
            owner=owner,
            name=name,
            digest=compute_digest(key_text),
            created_at=now(),
            user_id=user,
            scopes=" ".join(sorted(scopes)),
            expires_at=expires_at,
        )
        async with self._database.join_or_begin(transaction) as connection:
            await connection.execute(row)
            if inherited_subjects:
                await connection.execute(
                    inherited_limits.insert(),
                    [{"key_id": key_id, "subject": subject} for subject in inherited_subjects],
                )
        return key_id, key_text

    async def rotate(
        self,
        key_id: str,
        *,
        overlap: timedelta = timedelta(0),
        transaction: Transaction | None = None,
    ) -> str:
        """Replace the secret of a key and return its new text, or raise `NotFound`.

        The old secret stays valid for the time ``overlap``.
        """
        key_text = _generate_key_text(key_id)
        statement = (
            api_keys.update()
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(
                former_digest=api_keys.c.digest,
                former_until=now() + overlap,
                digest=compute_digest(key_text),
            )
        )
        if await self._database.execute(statement, transaction=transaction) == 0:
            raise _new_not_found_error(key_id)
        return key_text

    async def verify(self, presented_key: str) -> Identity:
        """Return the identity of a valid key, without its limits, or raise `InvalidKey`."""
        key_id = _parse_key_id(presented_key)
        if key_id is not None:
            query = _select_with_user(key_id)
            row = await self._database.fetch_first(query)
            digest = compute_digest(presented_key)
            if row is not None and _is_active(row) and _matches_digest(row, digest):
                if (ensure_utc(row["last_used_at"]) or _NEVER) < now() - _USE_RECORD_INTERVAL:
                    await self._record_use(row["id"])
                return _parse_identity(row, _compute_secret_id(digest))
        raise InvalidKey("the API key is unknown, expired or revoked; create a new key")

    async def verify_all(self, presented_keys: Iterable[str]) -> Mapping[str, Identity]:
        """Return the identities of the valid keys among ``presented_keys``, by the text of the key."""
        ids_by_text = {
            text: key_id for text in presented_keys if (key_id := _parse_key_id(text)) is not None
        }
        active_rows = await self._fetch_active(set(ids_by_text.values()))
        digests_by_text = {text: compute_digest(text) for text in ids_by_text}
        return {
            text: _parse_identity(active_rows[key_id], _compute_secret_id(digests_by_text[text]))
            for text, key_id in ids_by_text.items()
            if key_id in active_rows and _matches_digest(active_rows[key_id], digests_by_text[text])
        }

    async def find_active(
        self, secret_ids: Collection[tuple[str, str]]
    ) -> Mapping[tuple[str, str], Identity]:
        """Return the identities of those keys that are still valid and have the same secret.

        Args:
            secret_ids: pairs of a key's id and an `Identity.secret_id`, by which the result is
                keyed. A pair is left out if the key is not valid or has another secret now.
        """
        rows = await self._fetch_active({key_id for key_id, _ in secret_ids})
        return {
            (key_id, secret_id): _parse_identity(rows[key_id], secret_id)
            for key_id, secret_id in secret_ids
            if key_id in rows and secret_id in map(_compute_secret_id, _list_digests(rows[key_id]))
        }

    async def _fetch_active(self, key_ids: Collection[str]) -> Mapping[str, Mapping[Any, Any]]:
        if not key_ids:
            return {}
        query = _select_with_users().where(api_keys.c.id.in_(key_ids))
        rows = await self._database.fetch_all(query)
        return {row["id"]: row for row in rows if _is_active(row)}

    async def _record_use(self, key_id: str) -> None:
        used_at = now()
        statement = (
            api_keys.update()
            .where(api_keys.c.id == key_id, _is_unused_since(used_at - _USE_RECORD_INTERVAL))
            .values(last_used_at=used_at)
        )
        try:
            await self._database.execute(statement)
        except (SQLAlchemyError, OSError) as error:
            # The key is valid nevertheless. A refused connection raises OSError.
            _log.warning(
                "could not record the use of API key %s in the database: %s", key_id, error
            )

    async def get(self, key_id: str) -> ApiKey:
        """Return a key, or raise `NotFound`."""
        keys = await self._fetch_keys(api_keys.c.id == key_id)
        if not keys:
            raise _new_not_found_error(key_id)
        return keys[0]

    async def list_by_owner(
        self,
        owner: str,
        *,
        user: str | None = None,
        valid_only: bool = False,
        search: str = "",
        page: PageRequest = _ALL_KEYS,
    ) -> tuple[list[ApiKey], str | None]:
        """Return keys of a tenant and its users, newest first, and the cursor of the next page.

        Args:
            user: the id of the user whose keys are returned, or None for all keys.
            valid_only: True to leave out keys that were revoked or have expired.
            search: a text that the key's name must contain.
        """
        condition = api_keys.c.owner == owner
        if user is not None:
            condition &= api_keys.c.user_id == user
        if valid_only:
            expiry = api_keys.c.expires_at
            condition &= api_keys.c.revoked_at.is_(None) & (expiry.is_(None) | (expiry > now()))
        if search:
            condition &= build_search_condition(search, api_keys.c.name)
        rows, cursor = await fetch_page(self._database, api_keys, condition, page)
        return [_parse_key(row) for row in rows], cursor

    async def list_all(self) -> list[ApiKey]:
        """Return the keys of all tenants, oldest first."""
        return await self._fetch_keys(sa.true())

    async def revoke(self, key_id: str, *, transaction: Transaction | None = None) -> None:
        """Revoke a key, or raise `NotFound`; caches accept the key for a few more seconds."""
        statement = (
            api_keys.update()
            .where(api_keys.c.id == key_id)
            .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, now()))
        )
        if await self._database.execute(statement, transaction=transaction) == 0:
            raise _new_not_found_error(key_id)

    async def _fetch_keys(self, condition: sa.ColumnElement[bool]) -> list[ApiKey]:
        query = sa.select(api_keys).where(condition).order_by(api_keys.c.created_at, api_keys.c.id)
        return [_parse_key(row) for row in await self._database.fetch_all(query)]


async def is_key_valid(connection: Transaction, key_id: str, scopes: frozenset[str]) -> bool:
    """Return whether a key is valid, its user is not disabled, and it has all ``scopes``."""
    row = (await connection.execute(_select_with_user(key_id))).mappings().first()
    if row is None or not _is_active(row):
        return False
    allowed_scopes = _get_effective_scopes(row)
    return ALL in allowed_scopes or scopes <= allowed_scopes


async def get_key_expiry(connection: Transaction, key_id: str) -> datetime | None:
    """Return the time at which a key expires, or None if it never does."""
    query = sa.select(api_keys.c.expires_at).where(api_keys.c.id == key_id)
    return ensure_utc((await connection.execute(query)).scalar())


async def list_inherited_subjects(connection: Transaction, key_id: str) -> list[str]:
    """Return the subjects whose limits a key has inherited from the key that created it."""
    query = sa.select(inherited_limits.c.subject).where(inherited_limits.c.key_id == key_id)
    return list((await connection.execute(query.order_by(inherited_limits.c.subject))).scalars())


def _parse_key(row: Mapping[Any, Any]) -> ApiKey:
    return ApiKey(
        id=row["id"],
        owner=row["owner"],
        name=row["name"],
        scopes=frozenset(row["scopes"].split()),
        user=row["user_id"],
        created_at=ensure_utc(row["created_at"]),
        expires_at=ensure_utc(row["expires_at"]),
        revoked_at=ensure_utc(row["revoked_at"]),
        last_used_at=ensure_utc(row["last_used_at"]),
    )


def _parse_key_id(presented_key: str) -> str | None:
    """Return the id in a key's text, or None if the text has another format."""
    parts = presented_key.split("_", 2)
    # isalnum excludes NUL characters, which PostgreSQL rejects with an error.
    is_key = len(parts) == 3 and parts[0] == _PREFIX and parts[1].isalnum()
    return parts[1] if is_key else None


def _parse_identity(row: Mapping[Any, Any], secret_id: str) -> Identity:
    return Identity(
        owner=row["owner"],
        key_id=row["id"],
        scopes=_get_effective_scopes(row),
        user=row["user_id"],
        secret_id=secret_id,
    )


def _select_with_user(key_id: str) -> sa.Select[Any]:
    return _select_with_users().where(api_keys.c.id == key_id)


def _select_with_users() -> sa.Select[Any]:
    return sa.select(api_keys, users.c.role, users.c.disabled_at).outerjoin(
        users, users.c.id == api_keys.c.user_id
    )


def _generate_key_text(key_id: str) -> str:
    return f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"


def _is_active(row: Mapping[Any, Any]) -> bool:
    expires_at = ensure_utc(row["expires_at"])
    return (
        row["revoked_at"] is None
        and row["disabled_at"] is None
        and (expires_at is None or expires_at > now())
    )


def _is_unused_since(since: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < since)


def _matches_digest(row: Mapping[Any, Any], presented_digest: str) -> bool:
    return any(hmac.compare_digest(digest, presented_digest) for digest in _list_digests(row))


def _list_digests(row: Mapping[Any, Any]) -> list[str]:
    """Return the digests of a key's current secret and, during an overlap, of its old secret."""
    former_until = ensure_utc(row["former_until"])
    is_former_valid = former_until is not None and former_until > now()
    return [row["digest"], row["former_digest"]] if is_former_valid else [row["digest"]]


def _compute_secret_id(digest: str) -> str:
    """Return an id for a secret; tokens may contain the id, since it does not reveal the digest."""
    return compute_digest(digest)[:16]


def _get_effective_scopes(row: Mapping[Any, Any]) -> frozenset[str]:
    """Return the scopes of a key; for a user's key, only those that the user's role still has."""
    scopes = frozenset(row["scopes"].split())
    if row["role"] is None:
        return scopes
    allowed_scopes = ROLE_SCOPES[Role(row["role"])]
    return allowed_scopes if ALL in scopes else scopes & allowed_scopes


def _new_not_found_error(key_id: str) -> NotFound:
    return NotFound(f"API key {key_id!r} does not exist, or you may not see it")
