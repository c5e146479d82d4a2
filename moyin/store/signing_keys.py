"""Stores the key pairs that sign access tokens; the private keys are encrypted."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import timedelta

import sqlalchemy as sa
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from moyin.store.schema import signing_keys
from moyin.store.sql import Database, Transaction, ensure_utc, now
from moyin.store.tokens import generate_id


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicKey:
    """Holds a public key that verifies access tokens; ``x`` is its base64url form in a JWK."""

    kid: str
    x: str
    key: Ed25519PublicKey


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningKey:
    """Holds a private key that signs access tokens."""

    kid: str
    key: Ed25519PrivateKey = field(repr=False)


class SigningKeyStore:
    """Creates, reads and deletes key pairs.

    Args:
        secret: the secret of the stack, which encrypts the private keys. Without it, only the public
            keys can be read.
    """

    def __init__(self, database: Database, secret: bytes | None = None) -> None:
        self._database = database
        self._cipher = None if secret is None else _create_cipher(secret)

    async def list_public_keys(self) -> list[PublicKey]:
        """Return the public keys of all pairs, newest first."""
        query = sa.select(signing_keys.c.kid, signing_keys.c.public).order_by(
            signing_keys.c.created_at.desc()
        )
        return [
            PublicKey(
                kid=row.kid,
                x=row.public,
                key=Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(row.public + "=")),
            )
            for row in await self._database.read(lambda c: c.execute(query).all())
        ]

    async def get_newest(self) -> SigningKey:
        """Return the newest private key, which signs all new tokens, or create the first one."""
        query = sa.select(signing_keys).order_by(signing_keys.c.created_at.desc()).limit(1)
        row = await self._database.read(lambda c: c.execute(query).first())
        if row is None:
            return await self.add()
        private_key = self._required_cipher.decrypt(row.private.encode())
        return SigningKey(kid=row.kid, key=Ed25519PrivateKey.from_private_bytes(private_key))

    async def has_unreadable_key(self) -> bool:
        """Return True if the newest private key was encrypted with another secret."""
        try:
            query = sa.select(signing_keys.c.private).order_by(signing_keys.c.created_at.desc())
            encrypted_key = await self._database.fetch_value(query.limit(1))
            if encrypted_key is not None:
                self._required_cipher.decrypt(encrypted_key.encode())
        except InvalidToken:
            return True
        return False

    async def add(self, *, transaction: Transaction | None = None) -> SigningKey:
        """Create a key pair, which signs all new tokens; older pairs still verify tokens."""
        signing_key = SigningKey(kid=generate_id("sig"), key=Ed25519PrivateKey.generate())
        public_key = base64.urlsafe_b64encode(signing_key.key.public_key().public_bytes_raw())
        query = sa.select(sa.func.max(signing_keys.c.created_at))
        async with self._database.join_or_begin(transaction) as connection:
            # Later than all other pairs, even if another machine's clock was ahead.
            newest_created_at = ensure_utc((await connection.execute(query)).scalar())
            created_at = (
                now()
                if newest_created_at is None
                else max(now(), newest_created_at + timedelta(microseconds=1))
            )
            await connection.execute(
                signing_keys.insert().values(
                    kid=signing_key.kid,
                    public=public_key.rstrip(b"=").decode(),
                    private=self._required_cipher.encrypt(
                        signing_key.key.private_bytes_raw()
                    ).decode(),
                    created_at=created_at,
                )
            )
        return signing_key

    async def delete(self, kid: str, *, transaction: Transaction | None = None) -> None:
        """Delete a key pair; caches accept the access tokens that it signed for one more minute."""
        statement = signing_keys.delete().where(signing_keys.c.kid == kid)
        await self._database.execute(statement, transaction=transaction)

    @property
    def _required_cipher(self) -> Fernet:
        if self._cipher is None:
            raise RuntimeError(
                "SigningKeyStore was created without a secret, which private keys need; pass the secret"
            )
        return self._cipher


def _create_cipher(secret: bytes) -> Fernet:
    derived_key = HKDF(SHA256(), length=32, salt=None, info=b"moyin signing keys").derive(secret)
    return Fernet(base64.urlsafe_b64encode(derived_key))
