"""Authenticates API keys, access tokens of users, and service tokens.

A service token lets one of Moyin's own services act for a tenant, such as the worker of a job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import jwt
from sqlalchemy.exc import SQLAlchemyError

from moyin.access.gatekeeper.monitor import CredentialVerifier
from moyin.access.gatekeeper.tokens import ALGORITHM as EDDSA
from moyin.access.gatekeeper.tokens import TokenVerifier, verify_event_token
from moyin.domain.identity import ALL_SCOPES, JOBS_READ, Identity
from moyin.domain.limits import Limit
from moyin.errors import InvalidKey, ServiceUnavailable
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore
from moyin.store.sessions import SessionStore
from moyin.store.signing_keys import SigningKeyStore
from moyin.store.sql import Database
from moyin.system.bounded import BoundedDict

_log = logging.getLogger(__name__)
_ALGORITHM = "HS256"
_AUDIENCE = "moyin-internal"
# A cached identity older than the first number of seconds is verified again by one request, while
# others may use it for the second number of seconds. A revocation therefore takes effect on all
# replicas within the sum.
_FRESH_SECONDS = 4.0
_RENEWAL_SECONDS = 1.0
# Maximum age (seconds) at which cached identities are used while the database is unavailable.
_STALE_SECONDS = 600.0
_CACHE_SIZE = 10_000


class Authenticator(CredentialVerifier, Protocol):
    """Verifies the credentials of requests, with a cache or without."""

    async def authenticate(self, credential: str) -> Identity:
        """Return the identity of a credential; raise `InvalidKey` if it is not valid."""

    async def authenticate_event_token(self, token: str) -> Identity:
        """Return the identity of an event token; raise `InvalidToken` or `InvalidKey` if invalid."""


@dataclass(slots=True)
class _CachedIdentity:
    """The cached identity of a credential; times are seconds of the monotonic clock.

    Attributes:
        fresh_until: until this time, the identity is used without another verification.
        stale_until: until this time, the identity is used if the database is unavailable.
    """

    identity: Identity
    fresh_until: float
    stale_until: float


class KeyAuthenticator:
    """Authenticates API keys and tokens, and caches the identities for a few seconds.

    The cache is bounded and contains only valid credentials, so that guesses cannot fill it. While
    the database is unavailable, cached identities are used for longer.

    Args:
        signing_key: the secret that signs service tokens.
        token_verifier: verifies access tokens of users; if None, access tokens are rejected.
        sessions: the store of users' sessions; if None, access tokens are rejected.
        limits: the store of callers' limits; if None, no limits apply.
        uses_cache: True to cache identities. The accounts app sets False, so that a key that was just
            revoked cannot create another key.
    """

    def __init__(
        self,
        keys: KeyStore,
        signing_key: bytes,
        *,
        token_verifier: TokenVerifier | None = None,
        sessions: SessionStore | None = None,
        limits: LimitStore | None = None,
        uses_cache: bool = True,
    ) -> None:
        self._keys = keys
        self._signing_key = signing_key
        self._token_verifier = token_verifier
        self._sessions = sessions
        self._limits = limits
        self._uses_cache = uses_cache
        self._cache: BoundedDict[str, _CachedIdentity] = BoundedDict(_CACHE_SIZE)

    async def authenticate(self, credential: str) -> Identity:
        """Return the identity of an API key or token.

        Raises:
            InvalidKey: the credential is not valid.
            ServiceUnavailable: the database is unavailable, and the identity is not cached.
        """
        cached_identity = self._cache.get(credential)
        now = time.monotonic()
        if cached_identity is not None:
            if cached_identity.fresh_until > now:
                return cached_identity.identity
            cached_identity.fresh_until = min(now + _RENEWAL_SECONDS, cached_identity.stale_until)
        try:
            identity, expires_in = await self._verify(credential)
        except InvalidKey:
            self._cache.pop(credential, None)
            raise
        except (SQLAlchemyError, OSError) as error:
            _log.warning("could not verify a credential in the database: %s", type(error).__name__)
            if cached_identity is not None and cached_identity.stale_until > now:
                return cached_identity.identity
            raise _new_verification_error() from error
        if self._uses_cache:
            self._add_to_cache(credential, identity, now, expires_in)
        return identity

    async def authenticate_event_token(self, token: str) -> Identity:
        """Return the identity of an event token, whose key or session is verified without a cache.

        Raises:
            InvalidToken: the token has expired, or is not an event token.
            InvalidKey: the key or session that created the token has ended.
            ServiceUnavailable: the database is unavailable.
        """
        identity = verify_event_token(self._signing_key, token)
        try:
            valid_tokens = await self._add_limits(
                await self._filter_event_tokens({token: identity})
            )
        except (SQLAlchemyError, OSError) as error:
            raise _new_verification_error() from error
        if token not in valid_tokens:
            raise InvalidKey(
                "the API key or session that created this event token has ended, was rotated, or may not "
                "read jobs any more; request a new event token"
            )
        return valid_tokens[token]

    async def _filter_event_tokens(self, tokens: Mapping[str, Identity]) -> Mapping[str, Identity]:
        """Return those ``tokens`` whose creator's secret or session is valid and may read jobs.

        A token ends with the key's secret that created it. A rotation therefore ends it, although
        the key stays valid: tokens that were created with a leaked secret must not show a job any
        more.

        Args:
            tokens: the identities of event tokens, by token.
        """
        session_ids = {i.key_id for i in tokens.values() if i.is_session}
        secret_ids = {(i.key_id, i.secret_id) for i in tokens.values() if not i.is_session}
        active_keys = await self._keys.find_active(secret_ids)
        valid_secrets = {
            secret for secret, identity in active_keys.items() if identity.has_scope(JOBS_READ)
        }
        if session_ids and self._sessions is not None:
            valid_secrets |= {
                (key_id, "") for key_id in await self._sessions.filter_open(session_ids)
            }
        return {
            token: identity
            for token, identity in tokens.items()
            if (identity.key_id, identity.secret_id) in valid_secrets
        }

    async def recheck(self, credentials: Mapping[str, Identity]) -> Mapping[str, Identity]:
        """Return the current identities, by credential, of those ``credentials`` that are valid.

        This bypasses the cache and takes a few queries for any number of credentials. An expired
        access token counts as valid until its session ends, since only new requests need a new one.
        An expired event token counts as valid until its creator's secret or session ends.

        Raises:
            SQLAlchemyError, OSError: the database is unavailable.
        """
        event_tokens = {
            credential: identity for credential, identity in credentials.items() if identity.job
        }
        other_credentials = {
            credential: identity for credential, identity in credentials.items() if not identity.job
        }
        session_credentials = {
            credential: identity
            for credential, identity in other_credentials.items()
            if identity.is_session
        }
        valid_identities: dict[str, Identity] = dict(
            await self._keys.verify_all(
                credential
                for credential in other_credentials
                if credential not in session_credentials
            )
        )
        if event_tokens:
            valid_identities.update(await self._filter_event_tokens(event_tokens))
        if session_credentials and self._sessions is not None and self._token_verifier is not None:
            open_ids = await self._sessions.filter_open(
                {i.key_id for i in session_credentials.values()}
            )
            for credential, identity in session_credentials.items():
                if identity.key_id in open_ids and await self._token_verifier.has_known_key(
                    credential
                ):
                    valid_identities[credential] = identity
        return await self._add_limits(valid_identities)

    async def _add_limits(self, identities: Mapping[str, Identity]) -> Mapping[str, Identity]:
        """Return the identities with their current limits, by credential."""
        if self._limits is None or not identities:
            return identities
        limits_of_callers = await self._limits.list_for_callers(list(identities.values()))
        return {
            credential: replace(identity, limits=limits)
            for (credential, identity), limits in zip(
                identities.items(), limits_of_callers, strict=True
            )
        }

    def _add_to_cache(
        self, credential: str, identity: Identity, now: float, expires_in: float
    ) -> None:
        self._cache[credential] = _CachedIdentity(
            identity, now + min(_FRESH_SECONDS, expires_in), now + min(_STALE_SECONDS, expires_in)
        )
        self._cache.move_to_end(credential)

    async def _verify(self, credential: str) -> tuple[Identity, float]:
        """Return the identity with its limits, and the seconds until the credential expires."""
        expires_in = float("inf")
        if credential.count(".") == 2:
            identity, expires_at = await self._verify_token(credential)
            expires_in = expires_at - time.time()
        else:
            identity = await self._keys.verify(credential)
        if self._limits is not None:
            [limits] = await self._limits.list_for_callers([identity])
            if identity.service is not None:
                limits = tuple(map(_remove_request_limits, limits))
            if limits:
                identity = replace(identity, limits=limits)
        return identity, expires_in

    async def _verify_token(self, token: str) -> tuple[Identity, float]:
        """Return the identity of an access token or service token, and its expiry as Unix time."""
        try:
            algorithm = jwt.get_unverified_header(token).get("alg")
        except jwt.InvalidTokenError:
            raise InvalidKey("the token is not a valid JWT; check that it is complete") from None
        if algorithm == EDDSA and self._token_verifier is not None and self._sessions is not None:
            claims = await self._token_verifier.verify(token)
            if not await self._sessions.is_open(claims["sid"]):
                raise InvalidKey("the session has ended; sign in again")
            identity = Identity(
                owner=claims["own"],
                key_id=claims["sid"],
                scopes=frozenset(claims["scope"].split()),
                user=claims["sub"],
            )
            return identity, claims["exp"]
        return self._verify_service_token(token)

    def _verify_service_token(self, token: str) -> tuple[Identity, float]:
        try:
            claims = jwt.decode(
                token,
                self._signing_key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
        except jwt.InvalidTokenError:
            raise InvalidKey("the token is not a valid access token; sign in again") from None
        identity = Identity(
            owner=claims["sub"],
            key_id=claims.get("key") or f"internal:{claims['iss']}",
            scopes=frozenset(claims["scope"].split()) if "scope" in claims else ALL_SCOPES,
            user=claims.get("user"),
            service=claims["iss"],
        )
        return identity, claims["exp"]


def _new_verification_error() -> ServiceUnavailable:
    return ServiceUnavailable(
        "credentials cannot be verified at the moment; try again", retry_after=1
    )


def _remove_request_limits(limit: Limit) -> Limit:
    """Return ``limit`` without the limits on requests per minute and concurrent requests.

    A service acts for a caller whose request has already been counted.
    """
    return replace(limit, requests_per_minute=None, concurrent_requests=None)


def create_authenticator(
    database: Database, signing_key: bytes, *, uses_cache: bool = True
) -> KeyAuthenticator:
    """Create an authenticator that reads keys, sessions and limits from ``database``.

    Args:
        uses_cache: True to cache identities for a few seconds.
    """
    return KeyAuthenticator(
        KeyStore(database),
        signing_key,
        token_verifier=TokenVerifier(SigningKeyStore(database)),
        sessions=SessionStore(database),
        limits=LimitStore(database),
        uses_cache=uses_cache,
    )


def create_service_token(
    signing_key: bytes,
    owner: str,
    issuer: str,
    ttl_s: float = 300,
    *,
    key_id: str | None = None,
    user: str | None = None,
    scopes: Iterable[str] = ALL_SCOPES,
) -> str:
    """Return a token with which the service ``issuer`` acts for the tenant ``owner``.

    The limits of ``key_id`` and ``user`` apply in addition to the tenant's limits.

    Args:
        ttl_s: the seconds until the token expires.
        key_id: the key for whose holder the service acts; None if it acts for no key.
        user: the user for whom the service acts; None if it acts for none.
        scopes: the scopes of the token.
    """
    claims = {
        "sub": owner,
        "iss": issuer,
        "aud": _AUDIENCE,
        "exp": int(time.time() + ttl_s),
        "scope": " ".join(sorted(scopes)),
        "key": key_id,
        "user": user,
    }
    return jwt.encode(claims, signing_key, algorithm=_ALGORITHM)


def create_service_token_factory(signing_key: bytes, issuer: str) -> Callable[[Identity], str]:
    """Return a function that creates service tokens with the rights and limits of an identity."""
    return lambda identity: create_service_token(
        signing_key,
        identity.owner,
        issuer,
        key_id=identity.key_id,
        user=identity.user,
        scopes=identity.scopes,
    )
