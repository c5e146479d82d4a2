"""Signs people in through OpenID providers, with authorization codes, PKCE, nonce and state."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
import jwt
import redis.asyncio as redis
from redis.exceptions import RedisError

from moyin.access.accounts.rules import OpenIdProvider
from moyin.access.accounts.throttle import Throttle
from moyin.errors import InvalidCredentials, InvalidRequest, NotFound, ServiceUnavailable
from moyin.http.client import BodyTooLong, read_up_to
from moyin.store.valkey import connect

_STATE_SECONDS = 600
# Unfinished sign-ins that one IP address may start in 15 minutes.
_UNFINISHED_PER_ADDRESS = 100
_METADATA_SECONDS = 3600.0
# The minimum time between two reads of the metadata because of tokens with unknown keys.
_UNKNOWN_KEY_SECONDS = 10.0
_log = logging.getLogger(__name__)
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_MAX_BYTES = 512 * 1024
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
# Only asymmetric algorithms, because a shared secret that verifies tokens can also sign them.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedIdentity:
    """Describes a person whose identity an OpenID provider has verified.

    Attributes:
        subject: the provider's id of the person.
        email: the email in lower case, or None if the provider has not verified it.
    """

    provider: OpenIdProvider
    subject: str
    email: str | None
    name: str


@dataclass(slots=True)
class _ProviderMetadata:
    """The cached metadata and public keys of a provider."""

    metadata: Mapping[str, Any]
    keys: jwt.PyJWKSet
    read_at: float


class OpenIdSignIn:
    """Starts and finishes sign-ins; Valkey stores their state, so that any replica can finish them.

    Attributes:
        providers: the providers by name; the accounts app replaces them when they are reconfigured.
    """

    def __init__(self, redis_url: str, throttle: Throttle) -> None:
        self.providers: Mapping[str, OpenIdProvider] = {}
        self._throttle = throttle
        self._redis: redis.Redis = connect(redis_url)
        self._discoveries: dict[str, _ProviderMetadata] = {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        await self._redis.aclose()
        if self._session is not None:
            await self._session.close()

    async def begin_sign_in(
        self, provider_name: str, redirect_uri: str, address: str
    ) -> tuple[str, str]:
        """Return the URL to open in the browser, and the state to pass to `finish_sign_in`.

        Args:
            provider_name: the name of the provider.
            redirect_uri: the URI to which the provider sends the browser afterwards.
            address: the client's IP address.

        Raises:
            TooManyAttempts: the IP address has begun too many sign-ins without finishing them.
            NotFound: the provider is not configured.
            InvalidRequest: ``redirect_uri`` is not configured for the provider.
            ServiceUnavailable: the provider or Valkey is unavailable.
        """
        if address:
            await self._throttle.count_event(f"begin {address}", _UNFINISHED_PER_ADDRESS)
        provider = self._get_provider(provider_name)
        if redirect_uri not in provider.redirect_uris:
            raise InvalidRequest(
                f"redirect_uri must be one of the redirect_uris configured for provider {provider_name!r}",
                field="redirect_uri",
            )
        metadata = (await self._load_metadata(provider)).metadata
        state, nonce, code_verifier = (secrets.token_urlsafe(32) for _ in range(3))
        pending_sign_in = {
            "provider": provider_name,
            "nonce": nonce,
            "verifier": code_verifier,
            "uri": redirect_uri,
        }
        try:
            await self._redis.set(
                _build_state_key(state), json.dumps(pending_sign_in), ex=_STATE_SECONDS
            )
        except RedisError as error:
            raise _new_valkey_error() from error
        challenge = base64.urlsafe_b64encode(hashlib.sha256(code_verifier.encode()).digest())
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

    async def finish_sign_in(self, *, state: str, code: str, address: str) -> VerifiedIdentity:
        """Exchange an authorization code for the identity that the provider has verified.

        A state from `begin_sign_in` can be used once.

        Raises:
            InvalidCredentials: the state, the code or the provider's ID token is not valid.
            NotFound: the provider is no longer configured.
            ServiceUnavailable: the provider or Valkey is unavailable.
        """
        try:
            encoded_sign_in = await self._redis.getdel(_build_state_key(state))
        except RedisError as error:
            raise _new_valkey_error() from error
        if encoded_sign_in is None:
            raise InvalidCredentials(
                "state is unknown, was used before or has expired; begin the sign-in again",
                field="state",
            )
        pending_sign_in = json.loads(encoded_sign_in)
        provider = self._get_provider(pending_sign_in["provider"])
        discovery = await self._load_metadata(provider)
        response = await self._fetch_json(
            discovery.metadata["token_endpoint"],
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": pending_sign_in["uri"],
                "client_id": provider.client_id,
                "code_verifier": pending_sign_in["verifier"],
                **({"client_secret": provider.client_secret} if provider.client_secret else {}),
            },
        )
        claims = await self._verify_id_token(provider, str(response.get("id_token")))
        if not secrets.compare_digest(str(claims.get("nonce")), pending_sign_in["nonce"]):
            raise InvalidCredentials(
                f"the ID token of {provider.issuer} has a wrong nonce; begin the sign-in again"
            )
        if address:
            await self._throttle.subtract_event(f"begin {address}")
        email = claims.get("email") if claims.get("email_verified") is True else None
        return VerifiedIdentity(
            provider=provider,
            subject=claims["sub"],
            email=str(email).lower() if email else None,
            name=str(claims.get("name") or "")[:128],
        )

    async def _verify_id_token(self, provider: OpenIdProvider, token: str) -> Mapping[str, Any]:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self._find_key(provider, kid)
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
            raise InvalidCredentials(
                f"the ID token of {provider.issuer} is not valid; begin the sign-in again"
            ) from error
        if "azp" in claims and claims["azp"] != provider.client_id:
            raise InvalidCredentials(
                f"the ID token of {provider.issuer} was issued to another client; begin the "
                "sign-in again"
            )
        return claims

    async def _find_key(self, provider: OpenIdProvider, kid: str | None) -> jwt.PyJWK:
        discovery = await self._load_metadata(provider)
        if kid is None and len(discovery.keys.keys) == 1:
            return discovery.keys.keys[0]
        try:
            return discovery.keys[str(kid)]
        except KeyError:
            if time.monotonic() - discovery.read_at < _UNKNOWN_KEY_SECONDS:
                raise
            del self._discoveries[provider.issuer]
            return (await self._load_metadata(provider)).keys[str(kid)]

    async def _load_metadata(self, provider: OpenIdProvider) -> _ProviderMetadata:
        """Return the provider's metadata and keys, which are read again after an hour."""
        discovery = self._discoveries.get(provider.issuer)
        if discovery is None or time.monotonic() - discovery.read_at > _METADATA_SECONDS:
            issuer_url = provider.issuer.rstrip("/")
            metadata = await self._fetch_json(f"{issuer_url}/.well-known/openid-configuration")
            if metadata.get("issuer") != provider.issuer:
                raise _new_provider_error("sent metadata of another issuer", issuer_url)
            missing_endpoints = [
                name for name in _ENDPOINTS if not isinstance(metadata.get(name), str)
            ]
            if missing_endpoints:
                raise _new_provider_error(
                    f"sent metadata without {', '.join(missing_endpoints)}", issuer_url
                )
            try:
                keys = jwt.PyJWKSet.from_dict(dict(await self._fetch_json(metadata["jwks_uri"])))
            except (jwt.PyJWTError, TypeError, AttributeError) as error:
                raise _new_provider_error("has no valid JWK Set", metadata["jwks_uri"]) from error
            discovery = _ProviderMetadata(metadata, keys, time.monotonic())
            self._discoveries[provider.issuer] = discovery
        return discovery

    async def _fetch_json(
        self, url: str, form: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        """Send a GET, or a POST if there is a ``form``, and return the JSON object received."""
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
            raise _new_provider_error(f"sent more than {_MAX_BYTES} bytes", url) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _new_provider_error("does not respond", url) from error
        if form is not None and 400 <= response.status < 500:
            raise InvalidCredentials(
                "the OpenID provider rejected the code; begin the sign-in again", field="code"
            )
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _new_provider_error("sent a response that is not JSON", url) from error
        if response.status != 200 or not isinstance(body, dict):
            raise _new_provider_error(
                f"must respond with status 200 and a JSON object; its status was {response.status}",
                url,
            )
        return body

    def _get_provider(self, name: str) -> OpenIdProvider:
        provider = self.providers.get(name)
        if provider is None:
            raise NotFound(
                f"provider {name!r} is not configured; GET /accounts/oidc lists the providers"
            )
        return provider


def _new_valkey_error() -> ServiceUnavailable:
    return ServiceUnavailable(
        "the state of sign-ins cannot be stored or read at the moment; try again", retry_after=1
    )


def _new_provider_error(problem: str, url: str) -> ServiceUnavailable:
    """Return the error for a provider's fault, and log the fault with the URL.

    Clients must not see the URL, because it may be internal.

    Args:
        problem: the end of the message, such as "does not respond".
    """
    _log.warning("the OpenID provider at %s %s", url, problem)
    return ServiceUnavailable(f"the OpenID provider {problem}; try again later", retry_after=5)


def _build_state_key(state: str) -> str:
    return f"moyin:oidc:{hashlib.sha256(state.encode()).hexdigest()}"
