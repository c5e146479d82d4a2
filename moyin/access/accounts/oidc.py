"""Signs people in through OpenID providers: authorization code, PKCE, nonce, one-time state."""

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
from moyin.store.valkey import connect

__all__ = ["OpenIdSignIn", "Provider", "VerifiedIdentity"]

_STATE_SECONDS = 600
# Unfinished sign-ins that one client address may begin in a quarter of an hour.
_UNFINISHED_PER_ADDRESS = 100
_METADATA_SECONDS = 3600.0
_UNKNOWN_KEY_SECONDS = 10.0
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_MAX_BYTES = 512 * 1024
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
# Asymmetric only: a shared secret would let every verifier sign.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """Describes an OpenID provider that the operator trusts.

    Attributes:
        issuer: the provider's URL, from which its endpoints are discovered.
        redirect_uris: the URIs that the provider may redirect browsers to.
        registers: whether unknown people who sign in through the provider become players.
        links_emails: whether an email that the provider has verified signs in to the account with
            that email.
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
    """Describes the person that a provider has verified. ``email`` is None if it is unverified."""

    provider: Provider
    subject: str
    email: str | None
    name: str


@dataclass(slots=True)
class _Discovery:
    """Caches the metadata and keys of a provider."""

    metadata: Mapping[str, Any]
    keys: jwt.PyJWKSet
    read_at: float


class OpenIdSignIn:
    """Performs sign-ins. Valkey holds those under way, so that any replica can finish them."""

    def __init__(self, redis_url: str, throttle: Throttle) -> None:
        self.providers: Mapping[str, Provider] = {}
        self._throttle = throttle
        self._redis: redis.Redis = connect(redis_url)
        self._discoveries: dict[str, _Discovery] = {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        await self._redis.aclose()
        if self._session is not None:
            await self._session.close()

    async def begin(self, name: str, redirect_uri: str, address: str) -> tuple[str, str]:
        """Begin a sign-in; return the URL for the browser and the state to pass to `finish`.

        Raises:
            TooManyAttempts: too many unfinished sign-ins from this address.
            NotFound: the provider is not configured.
            InvalidRequest: ``redirect_uri`` is not one of the provider's.
            ServiceUnavailable: the provider or Valkey is unavailable.
        """
        if address:
            await self._throttle.limit(f"begin {address}", _UNFINISHED_PER_ADDRESS)
        provider = self._provider(name)
        if redirect_uri not in provider.redirect_uris:
            raise InvalidRequest(
                "redirect_uri must be one of the redirect_uris configured for the provider",
                field="redirect_uri",
            )
        metadata = (await self._discover(provider)).metadata
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        pending = {"provider": name, "nonce": nonce, "verifier": verifier, "uri": redirect_uri}
        try:
            await self._redis.set(_state_key(state), json.dumps(pending), ex=_STATE_SECONDS)
        except RedisError as error:
            raise ServiceUnavailable(
                "signing in is unavailable at the moment; try again", retry_after=1
            ) from error
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
        """Return the identity that the provider has verified. A state works once.

        Raises:
            InvalidCredentials: the state, the code or the provider's token is not valid.
            NotFound: the provider is no longer configured.
            ServiceUnavailable: the provider or Valkey is unavailable.
        """
        try:
            stored = await self._redis.getdel(_state_key(state))
        except RedisError as error:
            raise ServiceUnavailable(
                "signing in is unavailable at the moment; try again", retry_after=1
            ) from error
        if stored is None:
            raise InvalidCredentials(
                "state is unknown, used or expired; begin the sign-in again", field="state"
            )
        pending = json.loads(stored)
        provider = self._provider(pending["provider"])
        discovery = await self._discover(provider)
        response = await self._fetch(
            discovery.metadata["token_endpoint"],
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": pending["uri"],
                "client_id": provider.client_id,
                "code_verifier": pending["verifier"],
                **({"client_secret": provider.client_secret} if provider.client_secret else {}),
            },
        )
        claims = await self._claims(provider, str(response.get("id_token")))
        if not secrets.compare_digest(str(claims.get("nonce")), pending["nonce"]):
            raise InvalidCredentials(
                "the provider's token has a wrong nonce; begin the sign-in again"
            )
        if address:
            await self._throttle.uncount_limit(f"begin {address}")
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
        discovery = await self._discover(provider)
        if kid is None and len(discovery.keys.keys) == 1:
            return discovery.keys.keys[0]
        try:
            return discovery.keys[str(kid)]
        except KeyError:
            if time.monotonic() - discovery.read_at < _UNKNOWN_KEY_SECONDS:
                raise
            del self._discoveries[provider.issuer]
            return (await self._discover(provider)).keys[str(kid)]

    async def _discover(self, provider: Provider) -> _Discovery:
        """Return the provider's metadata and keys, read within the last hour."""
        discovery = self._discoveries.get(provider.issuer)
        if discovery is None or time.monotonic() - discovery.read_at > _METADATA_SECONDS:
            base = provider.issuer.rstrip("/")
            metadata = await self._fetch(f"{base}/.well-known/openid-configuration")
            if metadata.get("issuer") != provider.issuer:
                raise ServiceUnavailable("the provider's metadata names another issuer")
            if not all(isinstance(metadata.get(name), str) for name in _ENDPOINTS):
                raise ServiceUnavailable(
                    f"the provider's metadata must name {', '.join(_ENDPOINTS)}", retry_after=5
                )
            try:
                keys = jwt.PyJWKSet.from_dict(dict(await self._fetch(metadata["jwks_uri"])))
            except (jwt.PyJWTError, TypeError, AttributeError) as error:
                raise ServiceUnavailable(
                    "the provider has no usable keys", retry_after=5
                ) from error
            discovery = _Discovery(metadata, keys, time.monotonic())
            self._discoveries[provider.issuer] = discovery
        return discovery

    async def _fetch(self, url: str, form: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        """Return the JSON object at ``url``; with a ``form``, send that by POST."""
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
            raise ServiceUnavailable("the provider's response is too large") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServiceUnavailable("the provider does not respond", retry_after=5) from error
        if form is not None and 400 <= response.status < 500:
            raise InvalidCredentials(
                "the provider rejected the code; begin the sign-in again", field="code"
            )
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ServiceUnavailable(
                "the provider's response is not JSON", retry_after=5
            ) from error
        if response.status != 200 or not isinstance(body, dict):
            raise ServiceUnavailable("the provider returned an unexpected response", retry_after=5)
        return body

    def _provider(self, name: str) -> Provider:
        provider = self.providers.get(name)
        if provider is None:
            raise NotFound(f"there is no provider {name!r}")
        return provider


def _state_key(state: str) -> str:
    return f"moyin:oidc:{hashlib.sha256(state.encode()).hexdigest()}"
