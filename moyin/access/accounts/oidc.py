"""Signing in through OpenID providers: authorization code with PKCE, nonce and one-time state."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import aiohttp
import jwt
import redis.asyncio as redis
from redis.exceptions import RedisError

from moyin.access.accounts.throttle import Throttle
from moyin.errors import InvalidCredentials, InvalidRequest, NotFound, ServiceUnavailable
from moyin.http.client import BodyTooLong, read_up_to
from moyin.store.events import connect

__all__ = ["OpenIdSignIn", "Provider", "VerifiedIdentity"]

_STATE_SECONDS = 600
# Sign-ins that one address begins in a quarter of an hour and does not finish.
_BEGUN = 100
_METADATA_SECONDS = 3600.0
_UNKNOWN_KEY_SECONDS = 10.0
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_MAX_BYTES = 512 * 1024
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
# Signatures only: with a shared secret, whoever verifies could also sign.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """An OpenID provider that the operator trusts.

    Attributes:
        issuer: its URL; the rest is discovered from there.
        redirect_uris: where it may send people back to.
        registers: whether people whom it vouches for and nobody knows become players.
        links_emails: whether a verified email of its leads to the account with that email.
    """

    name: str
    issuer: str
    client_id: str
    redirect_uris: tuple[str, ...]
    client_secret: str = field(default="", repr=False)
    scopes: str = "openid email profile"
    registers: bool = True
    links_emails: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedIdentity:
    """Whom a provider vouches for. ``email`` only when the provider has verified it."""

    provider: Provider
    subject: str
    email: str | None
    name: str


@dataclass(slots=True)
class _Known:
    """What discovery told of a provider."""

    metadata: Mapping[str, Any]
    keys: jwt.PyJWKSet
    read_at: float


class OpenIdSignIn:
    """Talks to providers. What is begun is kept in Valkey, so any replica can finish it."""

    def __init__(self, redis_url: str, throttle: Throttle) -> None:
        self.providers: Mapping[str, Provider] = {}
        self._throttle = throttle
        self._redis: redis.Redis = connect(redis_url)
        self._known: dict[str, _Known] = {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        await self._redis.aclose()
        if self._session is not None:
            await self._session.close()

    async def begin(self, name: str, redirect_uri: str, address: str) -> tuple[str, str]:
        """Where to send the browser, and the state that must come back from there.

        Raises:
            TooManyAttempts: from this address; who signs in takes theirs back.
            NotFound: there is no such provider.
            InvalidRequest: the provider may not send anybody to ``redirect_uri``.
            ServiceUnavailable: the provider or Valkey is away.
        """
        if address:
            await self._throttle.limit(f"begin {address}", _BEGUN)
        provider = self._provider(name)
        if redirect_uri not in provider.redirect_uris:
            raise InvalidRequest(
                "redirect_uri must be one of those that are configured for the provider",
                field="redirect_uri",
            )
        metadata = (await self._discovered(provider)).metadata
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        begun = {"provider": name, "nonce": nonce, "verifier": verifier, "uri": redirect_uri}
        try:
            await self._redis.set(_kept(state), json.dumps(begun), ex=_STATE_SECONDS)
        except RedisError as error:
            raise ServiceUnavailable("signing in is not possible now", retry_after=1) from error
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        query = {
            "response_type": "code",
            "client_id": provider.client_id,
            "redirect_uri": redirect_uri,
            "scope": provider.scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge.rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        endpoint = metadata["authorization_endpoint"]
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}", state

    async def finish(self, *, state: str, code: str, address: str) -> VerifiedIdentity:
        """Whom the provider vouches for. A state is good once.

        Raises:
            InvalidCredentials: the state, the code or the provider's token is not valid.
            NotFound: the provider is not configured any more.
            ServiceUnavailable: the provider or Valkey is away.
        """
        try:
            kept = await self._redis.getdel(_kept(state))
        except RedisError as error:
            raise ServiceUnavailable("signing in is not possible now", retry_after=1) from error
        if kept is None:
            raise InvalidCredentials("the state is not valid; begin again", field="state")
        begun = json.loads(kept)
        provider = self._provider(begun["provider"])
        known = await self._discovered(provider)
        answer = await self._ask(
            known.metadata["token_endpoint"],
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": begun["uri"],
                "client_id": provider.client_id,
                "code_verifier": begun["verifier"],
                **({"client_secret": provider.client_secret} if provider.client_secret else {}),
            },
        )
        claims = await self._claims(provider, str(answer.get("id_token")))
        if not secrets.compare_digest(str(claims.get("nonce")), begun["nonce"]):
            raise InvalidCredentials("the provider's token answers another question")
        if address:
            await self._throttle.forgive_limit(f"begin {address}")
        email = claims.get("email") if claims.get("email_verified") is True else None
        return VerifiedIdentity(
            provider=provider,
            subject=claims["sub"],
            email=str(email).lower() if email else None,
            name=str(claims.get("name") or "")[:128],
        )

    async def _claims(self, provider: Provider, token: str) -> Mapping[str, Any]:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self._key(provider, kid)
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=provider.client_id,
                issuer=provider.issuer,
                leeway=30,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except (jwt.InvalidTokenError, jwt.PyJWKSetError, KeyError) as error:
            raise InvalidCredentials("the provider's token is not valid") from error
        if "azp" in claims and claims["azp"] != provider.client_id:
            raise InvalidCredentials("the provider's token is for another client")
        return claims

    async def _key(self, provider: Provider, kid: str | None) -> jwt.PyJWK:
        known = await self._discovered(provider)
        if kid is None and len(known.keys.keys) == 1:
            return known.keys.keys[0]
        try:
            return known.keys[str(kid)]
        except KeyError:
            if time.monotonic() - known.read_at < _UNKNOWN_KEY_SECONDS:
                raise
            del self._known[provider.issuer]
            return (await self._discovered(provider)).keys[str(kid)]

    async def _discovered(self, provider: Provider) -> _Known:
        known = self._known.get(provider.issuer)
        if known is None or time.monotonic() - known.read_at > _METADATA_SECONDS:
            base = provider.issuer.rstrip("/")
            metadata = await self._ask(f"{base}/.well-known/openid-configuration")
            if metadata.get("issuer") != provider.issuer:
                raise ServiceUnavailable("the provider says that it is another one")
            if not all(isinstance(metadata.get(name), str) for name in _ENDPOINTS):
                raise ServiceUnavailable("the provider does not say where to go", retry_after=5)
            try:
                keys = jwt.PyJWKSet.from_dict(dict(await self._ask(metadata["jwks_uri"])))
            except (jwt.PyJWTError, TypeError, AttributeError) as error:
                raise ServiceUnavailable(
                    "the provider has no usable keys", retry_after=5
                ) from error
            known = _Known(metadata, keys, time.monotonic())
            self._known[provider.issuer] = known
        return known

    async def _ask(self, url: str, form: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        method = "GET" if form is None else "POST"
        try:
            async with self._session.request(
                method,
                url,
                data=form,
                headers={"accept": "application/json"},
                allow_redirects=False,
            ) as response:
                content = await read_up_to(response, _MAX_BYTES)
        except BodyTooLong as error:
            raise ServiceUnavailable("the provider's answer is too large") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServiceUnavailable("the provider does not answer", retry_after=5) from error
        if form is not None and 400 <= response.status < 500:
            raise InvalidCredentials("the provider does not know the code", field="code")
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ServiceUnavailable("the provider's answer is not JSON", retry_after=5) from error
        if response.status != 200 or not isinstance(answer, dict):
            raise ServiceUnavailable("the provider does not answer as it should", retry_after=5)
        return answer

    def _provider(self, name: str) -> Provider:
        provider = self.providers.get(name)
        if provider is None:
            raise NotFound(f"there is no provider {name!r}")
        return provider


def _kept(state: str) -> str:
    return f"moyin:oidc:{hashlib.sha256(state.encode()).hexdigest()}"
