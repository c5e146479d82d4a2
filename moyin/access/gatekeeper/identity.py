"""Proof of identity: API keys, tokens of people, and tokens that services sign for each other."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import jwt
from sqlalchemy.exc import SQLAlchemyError

from moyin.access.gatekeeper.tokens import ALGORITHM as EDDSA
from moyin.access.gatekeeper.tokens import TokenVerifier
from moyin.domain.identity import ALL_SCOPES, Identity
from moyin.domain.limits import Limit
from moyin.errors import InvalidKey, ServiceUnavailable
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore, subjects_of
from moyin.store.sessions import SessionStore
from moyin.store.signing_keys import SigningKeyStore
from moyin.store.sql import Database

__all__ = ["Authenticator", "KeyAuthenticator", "acting_for", "mint_token", "new_authenticator"]

_log = logging.getLogger(__name__)
_ALGORITHM = "HS256"
_AUDIENCE = "moyin-internal"
# Revoking takes effect within the sum of these, everywhere: a proof is looked up again when it is
# this old, by one request, while the others go on with it for at most …
_FRESH_SECONDS = 4.0
_RENEWAL_SECONDS = 1.0
# Without the database, who was known goes on for so long.
_STALE_SECONDS = 600.0
_CACHE_SIZE = 10_000


class Authenticator(Protocol):
    """Turns what the client presented into an identity."""

    async def authenticate(self, presented: str) -> Identity:
        """Raises InvalidKey when it proves nothing."""
        ...

    async def recheck(self, held: Mapping[str, Identity]) -> Mapping[str, Identity]:
        """See `moyin.access.gatekeeper.monitor.Rechecker`."""
        ...


@dataclass(slots=True)
class _Proof:
    """Times of the monotonic clock."""

    identity: Identity
    fresh_until: float
    stale_until: float


class KeyAuthenticator:
    """API keys and tokens, cached for seconds.

    The cache is keyed by the whole secret and bounded; it holds successes only, so guessing
    neither fills it nor is spared the look-up. While the database is away, it serves who it knows.

    Args:
        tokens, sessions: for access tokens of people; None: there are none.
        limits: where limits are found; None: nobody is limited.
        cached: False where what is done outlasts the cache: who has a secret that was replaced a
            moment ago must not make another with it.
    """

    def __init__(
        self,
        keys: KeyStore,
        signing_key: bytes,
        *,
        tokens: TokenVerifier | None = None,
        sessions: SessionStore | None = None,
        limits: LimitStore | None = None,
        cached: bool = True,
    ) -> None:
        self._keys = keys
        self._signing_key = signing_key
        self._tokens = tokens
        self._sessions = sessions
        self._limits = limits
        self._cached = cached
        self._cache: OrderedDict[str, _Proof] = OrderedDict()

    async def authenticate(self, presented: str) -> Identity:
        """
        Raises:
            InvalidKey: it proves nothing.
            ServiceUnavailable: the database is away, and this is not known from before.
        """
        proof = self._cache.get(presented)
        now = time.monotonic()
        if proof is not None:
            if proof.fresh_until > now:
                return proof.identity
            proof.fresh_until = min(now + _RENEWAL_SECONDS, proof.stale_until)
        try:
            identity, expires_in = await self._prove(presented)
        except InvalidKey:
            self._cache.pop(presented, None)
            raise
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the database can't be asked for identities: %s", type(error).__name__)
            if proof is not None and proof.stale_until > now:
                return proof.identity
            raise ServiceUnavailable(
                "identities can't be checked at the moment", retry_after=1
            ) from error
        if self._cached:
            self._keep(presented, identity, now, expires_in)
        return identity

    async def recheck(self, held: Mapping[str, Identity]) -> Mapping[str, Identity]:
        """Return the present identities of those credentials in ``held`` that still stand.

        Asks the database past the cache, in three queries for any number of credentials. A person's
        access token stands until its session ends: that the token itself runs out after minutes only
        means that new requests need another one.

        Raises:
            SQLAlchemyError, OSError: the database is away.
        """
        people = {p: identity for p, identity in held.items() if identity.is_session}
        standing: dict[str, Identity] = dict(
            await self._keys.verify_all(p for p in held if p not in people)
        )
        if people and self._sessions is not None and self._tokens is not None:
            still_open = await self._sessions.open_among({one.key_id for one in people.values()})
            for presented, identity in people.items():
                if identity.key_id in still_open and await self._tokens.is_by_us(presented):
                    standing[presented] = identity
        return await self._with_limits(standing)

    async def _with_limits(self, found: Mapping[str, Identity]) -> Mapping[str, Identity]:
        if self._limits is None or not found:
            return found
        subjects = {subject for one in found.values() for subject in subjects_of(one)}
        known = {limit.subject: limit for limit in await self._limits.of(sorted(subjects))}
        return {
            presented: replace(
                identity,
                limits=tuple(known[s] for s in subjects_of(identity) if s in known),
            )
            for presented, identity in found.items()
        }

    def _keep(self, presented: str, identity: Identity, now: float, expires_in: float) -> None:
        self._cache[presented] = _Proof(
            identity,
            now + min(_FRESH_SECONDS, expires_in),
            now + min(_STALE_SECONDS, expires_in),
        )
        self._cache.move_to_end(presented)
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)

    async def _prove(self, presented: str) -> tuple[Identity, float]:
        """The identity with its limits, and the seconds until the proof ends by itself."""
        expires_in = float("inf")
        if presented.count(".") == 2:
            identity, expires_at = await self._from_token(presented)
            expires_in = expires_at - time.time()
        else:
            identity = await self._keys.verify(presented)
        if self._limits is not None:
            limits = await self._limits.of(subjects_of(identity))
            if identity.service is not None:
                limits = tuple(map(_within, limits))
            if limits:
                identity = replace(identity, limits=limits)
        return identity, expires_in

    async def _from_token(self, token: str) -> tuple[Identity, float]:
        """Each kind of token has its own algorithm, its own key and its own audience."""
        try:
            algorithm = jwt.get_unverified_header(token).get("alg")
        except jwt.InvalidTokenError:
            raise InvalidKey("the token is not valid") from None
        if algorithm == EDDSA and self._tokens is not None and self._sessions is not None:
            claims = await self._tokens.claims(token)
            if not await self._sessions.is_open(claims["sid"]):
                raise InvalidKey("the session is over; sign in again")
            identity = Identity(
                owner=claims["own"],
                key_id=claims["sid"],
                scopes=frozenset(claims["scope"].split()),
                user=claims["sub"],
            )
            return identity, claims["exp"]
        return self._from_service(token)

    def _from_service(self, token: str) -> tuple[Identity, float]:
        try:
            claims = jwt.decode(
                token,
                self._signing_key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
        except jwt.InvalidTokenError:
            raise InvalidKey("the token is not valid") from None
        identity = Identity(
            owner=claims["sub"],
            key_id=claims.get("key") or f"internal:{claims['iss']}",
            scopes=frozenset(claims["scope"].split()) if "scope" in claims else ALL_SCOPES,
            user=claims.get("user"),
            service=claims["iss"],
        )
        return identity, claims["exp"]


def _within(limit: Limit) -> Limit:
    """For a service of ours: the request that it works for was counted at the door."""
    return replace(limit, requests_per_minute=None, concurrent_requests=None)


def new_authenticator(
    database: Database, signing_key: bytes, *, cached: bool = True
) -> KeyAuthenticator:
    """What every app with a door authenticates by."""
    return KeyAuthenticator(
        KeyStore(database),
        signing_key,
        tokens=TokenVerifier(SigningKeyStore(database)),
        sessions=SessionStore(database),
        limits=LimitStore(database),
        cached=cached,
    )


def mint_token(
    signing_key: bytes,
    owner: str,
    issuer: str,
    ttl_s: float = 300,
    *,
    key_id: str | None = None,
    user: str | None = None,
    scopes: Iterable[str] = ALL_SCOPES,
) -> str:
    """A token with which the service ``issuer`` acts for ``owner``, for ``ttl_s`` seconds.

    Args:
        key_id, user: whose limits hold; None: those of the owner alone.
        scopes: what the service may do for them.
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


def acting_for(signing_key: bytes, issuer: str) -> Callable[[Identity], str]:
    """Makes tokens of the service ``issuer`` that have no more rights than an identity has."""
    return lambda identity: mint_token(
        signing_key,
        identity.owner,
        issuer,
        key_id=identity.key_id,
        user=identity.user,
        scopes=identity.scopes,
    )
