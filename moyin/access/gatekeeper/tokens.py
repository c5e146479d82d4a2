"""Verifies access tokens of users by public keys, and signs and verifies links to artifacts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import jwt

from moyin.errors import InvalidKey, InvalidToken
from moyin.store.signing_keys import PublicKey, SigningKeyStore

ALGORITHM = "EdDSA"
ISSUER = AUDIENCE = "moyin"
TYPE = "at+jwt"
SIGNED_FILES_PREFIX = "/artifacts/signed/"
_REQUIRED_CLAIMS = ["exp", "iat", "iss", "aud", "sub", "sid", "own", "scope"]
_LINK_ALGORITHM = "HS256"
# An audience of their own, so that other tokens open no files, and links grant nothing else.
_LINK_AUDIENCE = "moyin-file"
_KEYS_SECONDS = 60.0
# Anybody can make tokens with unknown key ids, so each such token must not cost a query.
_UNKNOWN_KEY_SECONDS = 1.0


class TokenVerifier:
    """Verifies access tokens with public keys, which it caches and reads again every minute."""

    def __init__(self, keys: SigningKeyStore) -> None:
        self._store = keys
        self._keys: dict[str, PublicKey] = {}
        self._read_at = float("-inf")

    async def verify(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a valid access token, or raise `InvalidKey`."""
        try:
            header = jwt.get_unverified_header(token)
            key = await self._find_key(str(header.get("kid")))
            if key is None or header.get("typ") != TYPE:
                raise jwt.InvalidTokenError
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                # The issuing replica's clock may be slightly ahead, so `iat` is not checked.
                options={"require": _REQUIRED_CLAIMS, "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise InvalidKey("the access token has expired; refresh it") from None
        except jwt.InvalidTokenError:
            raise InvalidKey("the token is not a valid access token; sign in again") from None
        return claims

    async def has_known_key(self, token: str) -> bool:
        """Return whether the key of a token, which was verified before, still exists."""
        return await self._find_key(str(jwt.get_unverified_header(token).get("kid"))) is not None

    async def _find_key(self, kid: str) -> PublicKey | None:
        age = time.monotonic() - self._read_at
        if age > (_KEYS_SECONDS if kid in self._keys else _UNKNOWN_KEY_SECONDS):
            self._keys = {key.kid: key for key in await self._store.list_public_keys()}
            self._read_at = time.monotonic()
        return self._keys.get(kid)


def create_file_link(
    signing_key: bytes, owner: str, artifact_id: str, name: str, ttl_s: float
) -> str:
    """Return a URL path from which anybody may read an artifact for ``ttl_s`` seconds."""
    claims = {
        "aud": _LINK_AUDIENCE,
        "own": owner,
        "sub": artifact_id,
        "exp": int(time.time() + ttl_s),
    }
    token = jwt.encode(claims, signing_key, algorithm=_LINK_ALGORITHM)
    return f"{SIGNED_FILES_PREFIX}{token}/{quote(name, safe='')}"


def verify_file_link(signing_key: bytes, token: str) -> tuple[str, str]:
    """Return the owner and the artifact id in a file link's token, or raise `InvalidToken`."""
    try:
        claims = jwt.decode(
            token,
            signing_key,
            algorithms=[_LINK_ALGORITHM],
            audience=_LINK_AUDIENCE,
            options={"require": ["exp", "sub", "own", "aud"]},
        )
    except jwt.ExpiredSignatureError:
        raise InvalidToken("the link to the file has expired; request a new one") from None
    except jwt.InvalidTokenError:
        raise InvalidToken("the link to the file is not valid; check that it is complete") from None
    return str(claims["own"]), str(claims["sub"])
