"""Delivers one webhook, once; retries are the caller's business."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

import aiohttp
from pydantic_core import to_json

from moyin.errors import BackendRejected, BackendTimeout, BackendUnavailable
from moyin.http.client import LazySession
from moyin.http.public_addresses import AllowedNetworks, PublicConnector, check_url
from moyin.jobs.webhooks.signing import signature_headers, webhook_secret

__all__ = ["WebhookSender"]

_TIMEOUT = aiohttp.ClientTimeout(total=15, connect=5)
_CONNECTIONS = 50
_MAX_HEADER_BYTES = 8190


class WebhookSender:
    """An HTTP client that signs what it sends and reaches allowed addresses only.

    It follows no redirect, uses no proxy and no cookie, and never reads an answer's body.
    Use it as an async context manager.
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
        """POST ``payload`` as JSON.

        Raises:
            InvalidRequest: no server can be at the URL.
            AddressNotAllowed: the URL leads into a network that webhooks may not reach.
            BackendRejected: the receiver is gone for good (410).
            BackendUnavailable: it could not be reached or did not answer 2xx; try again later.
            BackendTimeout: it took too long; try again later.
        """
        check_url(url, field="webhook")
        self._networks.check_literal(url)
        body = to_json(payload)
        headers = signature_headers(
            webhook_secret(self._signing_key, owner),
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
            raise BackendTimeout("the webhook's receiver took too long") from None
        except aiohttp.ClientError as error:
            raise BackendUnavailable(
                f"the webhook's receiver could not be reached ({type(error).__name__})"
            ) from error
        _judge(status)


def _judge(status: int) -> None:
    if status == 410:
        raise BackendRejected("the webhook's receiver is gone (410)")
    if not 200 <= status < 300:
        raise BackendUnavailable(f"the webhook's receiver answered {status}")
