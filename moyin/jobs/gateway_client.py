"""Calls through our own door, with the rights of who submitted the job."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Self

import aiohttp
from pydantic_core import from_json
from yarl import URL

from moyin.domain.identity import Identity
from moyin.errors import BackendTimeout, BackendUnavailable, StepFailed
from moyin.http.client import LazySession
from moyin.jobs.protocol.paths import check_path

__all__ = ["Answer", "DoorClient"]

_MAX_ANSWER_BYTES = 32 * 1024 * 1024
# The caller's activity has a deadline of its own; this bounds silence, not the whole answer.
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=5, sock_read=600)
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
# Set by us or by the connection; a client's own would speak for somebody else, or ask for an answer
# in an encoding that we can't read.
_OURS = frozenset(
    {
        "accept-encoding", "authorization", "connection", "content-length", "cookie", "expect",
        "forwarded", "host", "idempotency-key", "keep-alive", "proxy-authorization", "te",
        "trailer", "transfer-encoding", "upgrade", "x-api-key", "x-request-disconnect-disabled",
        "x-request-id", "x-request-timeout-seconds",
    }
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A 2xx or 3xx answer.

    Attributes:
        media_type: without parameters, lower case.
        cost_usd: what the door says that the call cost.
        backend: who did it, when the door says so.
    """

    status: int
    media_type: str
    content: bytes
    cost_usd: Decimal
    backend: str | None

    def json(self) -> Any:
        """The content as JSON, as an output keeps it: with a mark where half a character stands,
        which is what a model leaves that was cut off in an emoji.

        Raises:
            StepFailed: it is not, or lies in more brackets than an output may.
        """
        try:
            plain = json.dumps({"body": json.loads(self.content)}, ensure_ascii=False)
            return from_json(plain.encode(errors="replace"))["body"]
        except (ValueError, RecursionError):
            raise StepFailed("the service's answer is not JSON") from None


class DoorClient:
    """An HTTP client of the gateway and what is behind it. Use as an async context manager.

    Args:
        door: the gateway's address as this process reaches it.
        token: a bearer token with an identity's rights.
    """

    def __init__(self, door: str, token: Callable[[Identity], str]) -> None:
        self._door = URL(door)
        self._token = token
        self._session = LazySession(_new_session)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(
        self,
        identity: Identity,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str,
    ) -> Answer:
        """Call a route as ``identity``. Bytes go as they are, a string as text, anything else as JSON.

        Raises:
            InvalidRequest: the path leads elsewhere.
            StepFailed: a header holds what none can, or the service refused; ``details`` has its
                status and answer.
            BackendUnavailable, BackendTimeout: it can be tried again.
        """
        check_path(path, field="path")
        sent = {k: v for k, v in (headers or {}).items() if k.lower() not in _OURS}
        for name, value in sent.items():
            if _CONTROL.search(value):
                # Such as the line breaks of an earlier step's text.
                raise StepFailed(f"the header {name} must not contain control characters")
        sent["authorization"] = f"Bearer {self._token(identity)}"
        sent["idempotency-key"] = idempotency_key
        data = _encoded(body, sent)
        # Joined as text and taken as encoded: what was checked is what is sent.
        url = URL(str(self._door).rstrip("/") + path, encoded=True)
        try:
            async with self._session.get().request(
                method, url, data=data, headers=sent, allow_redirects=False
            ) as response:
                content = await _read(response)
        except TimeoutError:
            raise BackendTimeout(f"{method} {_shown(path)} took too long") from None
        except aiohttp.ClientError as error:
            raise BackendUnavailable(
                f"{method} {_shown(path)} could not be reached ({type(error).__name__})"
            ) from error
        if response.status >= 400:
            raise _failure(method, path, response, content)
        return Answer(
            status=response.status,
            media_type=response.content_type,
            content=content,
            cost_usd=_cost(response.headers.get("x-moyin-cost-usd")),
            backend=response.headers.get("x-moyin-backend"),
        )


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=_TIMEOUT,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _encoded(body: Any, headers: dict[str, str]) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    typed = any(name.lower() == "content-type" for name in headers)
    if isinstance(body, str):
        if not typed:
            headers["content-type"] = "text/plain; charset=utf-8"
        return body.encode()
    if not typed:
        headers["content-type"] = "application/json"
    return json.dumps(body).encode()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for chunk in response.content.iter_chunked(256 * 1024):
        size += len(chunk)
        if size > _MAX_ANSWER_BYTES:
            raise StepFailed(f"the service's answer is larger than {_MAX_ANSWER_BYTES} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _failure(
    method: str, path: str, response: aiohttp.ClientResponse, content: bytes
) -> BackendUnavailable | StepFailed:
    said = content[:2_000].decode(errors="replace")
    message = f"{method} {_shown(path)} answered {response.status}"
    details = {"status": response.status, "answer": said}
    if response.status in _TRY_AGAIN:
        after = response.headers.get("retry-after", "")
        return BackendUnavailable(
            message,
            details=details,
            retry_after=float(after) if after.isdecimal() and len(after) < 6 else None,
        )
    return StepFailed(message, details=details)


def _shown(path: str) -> str:
    """The path without its query, which may carry secrets."""
    return path.partition("?")[0][:200]


def _cost(header: str | None) -> Decimal:
    try:
        cost = Decimal(header or 0)
    except InvalidOperation:
        return Decimal(0)
    return cost if cost.is_finite() and cost > 0 else Decimal(0)
