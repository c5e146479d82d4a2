"""API keys: ``moyin_<id>_<secret>``. The id finds the row; only a digest of the whole is stored.

The secret is 256 random bits, so a plain SHA-256 is as hard to invert as any slow hash; slow
hashes are for what people choose.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from moyin.domain.identity import Identity
from moyin.errors import InvalidKey, NotFound
from moyin.store.schema import api_keys
from moyin.store.sql import Database, aware, now

__all__ = ["ApiKey", "KeyStore"]

_PREFIX = "moyin"


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """What may be shown of a key."""

    id: str
    owner: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


class KeyStore:
    """Key rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, owner: str, name: str) -> tuple[str, str]:
        """A new key of ``owner``; returns its id and its text, which is not kept anywhere."""
        key_id = secrets.token_hex(8)
        text = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
        async with self._database.writing() as connection:
            await connection.execute(
                api_keys.insert().values(
                    id=key_id, owner=owner, name=name, digest=_digest(text), created_at=now()
                )
            )
        return key_id, text

    async def verify(self, presented: str) -> Identity:
        """The identity behind a key.

        Raises:
            InvalidKey: unknown, altered or revoked; which of them is not told.
        """
        parts = presented.split("_", 2)
        if len(parts) == 3 and parts[0] == _PREFIX:
            query = sa.select(api_keys).where(api_keys.c.id == parts[1])
            async with self._database.reading() as connection:
                row = (await connection.execute(query)).mappings().first()
            if (
                row is not None
                and row["revoked_at"] is None
                and hmac.compare_digest(row["digest"], _digest(presented))
            ):
                return Identity(owner=row["owner"], key_id=row["id"])
        raise InvalidKey("the API key is not valid")

    async def all(self) -> list[ApiKey]:
        query = sa.select(api_keys).order_by(api_keys.c.created_at)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            ApiKey(
                id=row["id"],
                owner=row["owner"],
                name=row["name"],
                created_at=aware(row["created_at"]) or now(),
                revoked_at=aware(row["revoked_at"]),
            )
            for row in rows
        ]

    async def revoke(self, key_id: str) -> None:
        """Refuse the key from now on (caches let it through for a few seconds more).

        Raises:
            NotFound: there is no such key.
        """
        statement = (
            api_keys.update()
            .where(api_keys.c.id == key_id)
            .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, now()))
        )
        async with self._database.writing() as connection:
            changed = await connection.execute(statement)
        if changed.rowcount == 0:
            raise NotFound(f"there is no key {key_id!r}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
