"""Verifies users' access tokens; signs and verifies file links and event tokens."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import jwt

from moyin.domain.identity import JOBS_READ, Identity
from moyin.errors import InvalidKey, InvalidToken
from moyin.store.signing_keys import PublicKey, SigningKeyStore

ALGORITHM = "EdDSA"
ISSUER = AUDIENCE = "moyin"
TYPE = "at+jwt"
SIGNED_FILES_PREFIX = "/artifacts/signed/"
SIGNED_ARCHIVES_PREFIX = f"{SIGNED_FILES_PREFIX}archive/"
_REQUIRED_CLAIMS = ["exp", "iat", "iss", "aud", "sub", "sid", "own", "scope"]
_SIGNING_ALGORITHM = "HS256"
# Each kind of token has its own audience, so that it cannot be used as another kind.
_LINK_AUDIENCE = "moyin-file"
_ARCHIVE_AUDIENCE = "moyin-archive"
_EVENT_AUDIENCE = "moyin-events"
_KEYS_SECONDS = 60.0
# Anybody can create tokens with unknown key ids, so such tokens must not cost a query each.
_UNKNOWN_KEY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedFiles:
    """Names the files of an archive: either by the files' ids, or all files of a job."""

    artifact_ids: Sequence[str] = ()
    job_id: str | None = None


class TokenVerifier:
    """Verifies access tokens with public keys, which are cached and reloaded every minute."""

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
        """Return True if the key that signed a token, which was verified before, still exists."""
        return await self._find_key(str(jwt.get_unverified_header(token).get("kid"))) is not None

    async def _find_key(self, kid: str) -> PublicKey | None:
        age_seconds = time.monotonic() - self._read_at
        if age_seconds > (_KEYS_SECONDS if kid in self._keys else _UNKNOWN_KEY_SECONDS):
            self._keys = {key.kid: key for key in await self._store.list_public_keys()}
            self._read_at = time.monotonic()
        return self._keys.get(kid)


def create_file_link(
    signing_key: bytes, owner: str, artifact_id: str, name: str, ttl_s: float
) -> str:
    """Return a URL path that serves an artifact without a key for ``ttl_s`` seconds."""
    token = _sign_token(signing_key, _LINK_AUDIENCE, ttl_s, own=owner, sub=artifact_id)
    return f"{SIGNED_FILES_PREFIX}{token}/{quote(name, safe='')}"


def verify_file_link(signing_key: bytes, token: str) -> tuple[str, str]:
    """Return the owner and the artifact id in a file link's token, or raise `InvalidToken`."""
    claims = _verify_token(signing_key, token, _LINK_AUDIENCE, "link to the file", ("own", "sub"))
    return claims["own"], claims["sub"]


def create_archive_link(
    signing_key: bytes, owner: str, files: ArchivedFiles, name: str, ttl_s: float
) -> str:
    """Return a URL path that serves an archive of files without a key for ``ttl_s`` seconds."""
    packed_ids = b"".join(map(_pack_artifact_id, files.artifact_ids))
    token = _sign_token(
        signing_key, _ARCHIVE_AUDIENCE, ttl_s,
        own=owner, ids=base64.b64encode(packed_ids).decode(), job=files.job_id or "",
    )  # fmt: skip
    return f"{SIGNED_ARCHIVES_PREFIX}{token}/{quote(name, safe='')}"


def verify_archive_link(signing_key: bytes, token: str) -> tuple[str, ArchivedFiles]:
    """Return the owner and the files in an archive link's token, or raise `InvalidToken`."""
    claims = _verify_token(
        signing_key, token, _ARCHIVE_AUDIENCE, "link to the archive", ("own", "ids", "job")
    )
    packed_ids = base64.b64decode(claims["ids"])
    ids = [f"art_{packed_ids[start : start + 16].hex()}" for start in range(0, len(packed_ids), 16)]
    return claims["own"], ArchivedFiles(artifact_ids=ids, job_id=claims["job"] or None)


def _pack_artifact_id(artifact_id: str) -> bytes:
    """Return the random part of an id as bytes, so that links with many ids stay short."""
    return bytes.fromhex(artifact_id.removeprefix("art_"))


def create_event_token(signing_key: bytes, creator: Identity, job_id: str, ttl_s: float) -> str:
    """Return a token that opens a job's event streams without a key for ``ttl_s`` seconds."""
    return _sign_token(
        signing_key, _EVENT_AUDIENCE, ttl_s,
        own=creator.owner, sub=job_id, key=creator.key_id, user=creator.user or "",
        sec=creator.secret_id,
    )  # fmt: skip


def verify_event_token(signing_key: bytes, token: str) -> Identity:
    """Return the identity of an event token, or raise `InvalidToken`.

    The token ends when its creator's session or key secret ends; the caller must check that.
    """
    claim_names = ("own", "sub", "key", "user", "sec")
    claims = _verify_token(signing_key, token, _EVENT_AUDIENCE, "event token", claim_names)
    return Identity(
        owner=claims["own"],
        key_id=claims["key"],
        scopes=frozenset({JOBS_READ}),
        user=claims["user"] or None,
        job=claims["sub"],
        secret_id=claims["sec"],
    )


def _sign_token(signing_key: bytes, audience: str, ttl_s: float, **claims: str) -> str:
    claims_with_expiry = {"aud": audience, **claims, "exp": int(time.time() + ttl_s)}
    return jwt.encode(claims_with_expiry, signing_key, algorithm=_SIGNING_ALGORITHM)


def _verify_token(
    signing_key: bytes, token: str, audience: str, token_kind: str, claim_names: tuple[str, ...]
) -> Mapping[str, str]:
    """Return the values of ``claim_names`` in a token, by name, or raise `InvalidToken`.

    Args:
        token: a token that `_sign_token` created.
        audience: the purpose that the token must state.
        token_kind: the name of the kind of token in error messages, such as ``event token``.
    """
    try:
        claims = jwt.decode(
            token,
            signing_key,
            algorithms=[_SIGNING_ALGORITHM],
            audience=audience,
            options={"require": ["exp", "aud", *claim_names]},
        )
    except jwt.ExpiredSignatureError:
        raise InvalidToken(f"the {token_kind} has expired; request a new one") from None
    except jwt.InvalidTokenError:
        raise InvalidToken(f"the {token_kind} is not valid; check that it is complete") from None
    return {name: str(claims[name]) for name in claim_names}
