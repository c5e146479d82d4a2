"""Stores the key pairs that sign access tokens; the private keys are encrypted."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import timedelta

import sqlalchemy as sa
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from moyin.store.schema import signing_keys
from moyin.store.sql import Database, Transaction, ensure_utc, now
from moyin.store.tokens import generate_id

__all__ = ["PublicKey", "SigningKey", "SigningKeyStore"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicKey:
    """Verifies tokens. ``x`` is the raw key as in a JWK."""

    kid: str
    x: str
    key: Ed25519PublicKey


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningKey:
    """Signs tokens."""

    kid: str
    key: Ed25519PrivateKey = field(repr=False)


class SigningKeyStore:
    """Reads and writes rows of key pairs. Only issuing tokens needs the stack's ``secret``."""

    def __init__(self, database: Database, secret: bytes | None = None) -> None:
        self._database = database
        self._cipher = None if secret is None else _cipher(secret)

    async def list_public_keys(self) -> list[PublicKey]:
        """Return the public keys of all pairs, newest first."""
        query = sa.select(signing_keys.c.kid, signing_keys.c.public).order_by(
            signing_keys.c.created_at.desc()
        )
        rows = await self._database.read(lambda c: c.execute(query).all())
        return [
            PublicKey(
                kid=row.kid,
                x=row.public,
                key=Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(row.public + "=")),
            )
            for row in rows
        ]

    async def newest(self) -> SigningKey:
        """Return the newest key, which signs; create one if there is none."""
        query = sa.select(signing_keys).order_by(signing_keys.c.created_at.desc()).limit(1)
        row = await self._database.read(lambda c: c.execute(query).first())
        if row is None:
            return await self.add()
        private = self._secrets.decrypt(row.private.encode())
        return SigningKey(kid=row.kid, key=Ed25519PrivateKey.from_private_bytes(private))

    async def add(self, *, within: Transaction | None = None) -> SigningKey:
        """Create a pair, which signs from now on; older ones still verify."""
        pair = SigningKey(kid=generate_id("sig"), key=Ed25519PrivateKey.generate())
        public = base64.urlsafe_b64encode(pair.key.public_key().public_bytes_raw())
        latest = sa.select(sa.func.max(signing_keys.c.created_at))
        async with self._database.within(within) as connection:
            # Later than all others, even if another machine's clock was ahead.
            before = ensure_utc((await connection.execute(latest)).scalar())
            moment = now() if before is None else max(now(), before + timedelta(microseconds=1))
            await connection.execute(
                signing_keys.insert().values(
                    kid=pair.kid,
                    public=public.rstrip(b"=").decode(),
                    private=self._secrets.encrypt(pair.key.private_bytes_raw()).decode(),
                    created_at=moment,
                )
            )
        return pair

    async def delete(self, kid: str, *, within: Transaction | None = None) -> None:
        """Delete a pair, so that its tokens are refused; caches accept them for another minute."""
        async with self._database.within(within) as connection:
            await connection.execute(signing_keys.delete().where(signing_keys.c.kid == kid))

    @property
    def _secrets(self) -> Fernet:
        if self._cipher is None:
            raise RuntimeError(
                "SigningKeyStore needs the secret for signing keys; without it, it can only verify"
            )
        return self._cipher


def _cipher(secret: bytes) -> Fernet:
    derived = HKDF(SHA256(), length=32, salt=None, info=b"moyin signing keys").derive(secret)
    return Fernet(base64.urlsafe_b64encode(derived))
