"""Sends webhooks, signed by version 1 of Standard Webhooks (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any, Self

import aiohttp
from pydantic_core import to_json

from moyin.errors import BackendRejected, BackendTimeout, BackendUnavailable
from moyin.http.client import LazySession
from moyin.http.public_addresses import AllowedNetworks, PublicConnector, check_url

_TIMEOUT = aiohttp.ClientTimeout(total=15, connect=5)
_CONNECTIONS = 50
_MAX_HEADER_BYTES = 8190
_PREFIX = "whsec_"


class WebhookSender:
    """Sends webhooks as signed POST requests, only to public addresses and to allowed networks.

    The sender follows no redirects, uses no proxy and no cookies, and never reads a response's
    body. Use the sender as an async context manager.
    """

    def __init__(self, *, signing_key: bytes, networks: AllowedNetworks) -> None:
        self._signing_key = signing_key
        self._networks = networks
        self._session = LazySession(self._new_session)

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=PublicConnector(self._networks, limit=_CONNECTIONS),
            timeout=_TIMEOUT,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            auto_decompress=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(
        self, url: str, *, owner: str, message_id: str, payload: Mapping[str, Any]
    ) -> None:
        """Send a webhook of the tenant ``owner``, with ``payload`` as JSON.

        Raises:
            InvalidRequest: the URL is not a valid http(s) URL.
            AddressNotAllowed: the URL leads into a network that webhooks may not reach.
            BackendRejected: the receiver responded with status 410, so a retry can't help.
            BackendUnavailable: the connection failed, or the status was not 2xx; retry later.
            BackendTimeout: the receiver did not respond in time; retry later.
        """
        check_url(url, field="webhook")
        self._networks.check_literal_address(url)
        body = to_json(payload)
        headers = build_signature_headers(
            derive_webhook_secret(self._signing_key, owner),
            message_id=message_id,
            timestamp=int(time.time()),
            body=body,
        )
        headers |= {"content-type": "application/json", "user-agent": "Moyin-Webhooks/1"}
        try:
            async with self._session.get().post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
        except TimeoutError:
            raise BackendTimeout(
                f"the webhook's receiver did not respond within {_TIMEOUT.total} seconds"
            ) from None
        except aiohttp.ClientError as error:
            raise BackendUnavailable(
                f"the webhook's receiver cannot be reached ({type(error).__name__}): check the webhook's URL"
            ) from error
        if status == 410:
            raise BackendRejected(
                "the webhook's receiver no longer exists (status 410); name another webhook in new jobs"
            )
        if not 200 <= status < 300:
            raise BackendUnavailable(
                f"the webhook's receiver responded with status {status} instead of 2xx"
            )


def derive_webhook_secret(signing_key: bytes, owner: str) -> str:
    """Return the secret that signs a tenant's webhooks: ``whsec_`` and 32 bytes in base64.

    Secrets are derived instead of stored: every process with the signing key computes the same
    secret, and no tenant can compute the secret of another.
    """
    derived_bytes = hmac.new(
        signing_key, b"moyin/webhook/" + owner.encode(), hashlib.sha256
    ).digest()
    return _PREFIX + base64.b64encode(derived_bytes).decode()


def build_signature_headers(
    secret: str, *, message_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """Return the three headers of Standard Webhooks for a delivery.

    Args:
        message_id: the id of the webhook, without a dot; receivers use it to recognise retries.
        timestamp: the time of this delivery, in Unix seconds.
    """
    secret_bytes = base64.b64decode(secret.removeprefix(_PREFIX))
    signed_content = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(secret_bytes, signed_content, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
