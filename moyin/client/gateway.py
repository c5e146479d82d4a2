"""Defines `GatewayClient`, the only HTTP client of Moyin's own API."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
from pydantic_core import from_json, to_json
from yarl import URL

from moyin.client.errors import GatewayUnreachable, RequestRefused
from moyin.domain.identity import Identity
from moyin.domain.job import EventType
from moyin.errors import MoyinError, StepFailed
from moyin.http.client import BodyTooLong, LazySession, read_up_to
from moyin.http.sse import Frame, FrameSplitter

__all__ = ["AcceptedJob", "Event", "GatewayClient", "read_events", "read_frames"]

_log = logging.getLogger(__name__)
_CONNECT_SECONDS = 5.0
_LARGEST_FILE = 64 * 1024 * 1024
_LARGEST_ERROR = 64 * 1024
_FINAL = frozenset(kind.value for kind in EventType if kind.is_final)


class Event:
    """One server-sent event.

    Attributes:
        text: its data lines, joined; None for a comment.
        comment: the text after a leading colon, such as a keep-alive or the cost of a stream.
    """

    __slots__ = ("comment", "id", "text", "type")

    def __init__(self, raw: bytes) -> None:
        fields: dict[str, str] = {}
        for line in raw.decode().strip().splitlines():
            name, _, value = line.partition(":")
            fields[name] = f"{fields[name]}\n{value.strip()}" if name in fields else value.strip()
        self.type = fields.get("event", "message")
        self.id = fields.get("id")
        self.comment = fields.get("", "")
        self.text = fields.get("data")

    @property
    def data(self) -> Any:
        """The data as JSON; the text itself if it is not JSON."""
        try:
            return json.loads(self.text or "")
        except ValueError:
            return self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedJob:
    """The response to a job's submission.

    Attributes:
        location: path of the job on the gateway.
        body: the job as JSON.
        replayed: an earlier request with the same idempotency key created the job.
    """

    location: str
    body: bytes
    replayed: bool


class GatewayClient:
    """Sends requests to the gateway: single calls, jobs, event streams and downloads.

    Belongs to one event loop. Use it as an async context manager, or call `close`.

    Args:
        url: the gateway's address as this process reaches it.
        api_key: sent with every request; empty: requests carry an identity or credentials of
            their own in ``headers``.
        token_for: makes a bearer token with the rights of an identity that a request names.
        silence_seconds: longest time without a byte of the response.
        total_seconds: longest time of a request, event streams excepted; None: no limit.
        reconnect_seconds: pause before a broken event stream is opened again.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        token_for: Callable[[Identity], str] | None = None,
        silence_seconds: float = 120.0,
        total_seconds: float | None = None,
        reconnect_seconds: float = 0.5,
        follow_redirects: bool = False,
    ) -> None:
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._token_for = token_for
        limits = {"sock_connect": _CONNECT_SECONDS, "sock_read": silence_seconds}
        self._timeout = aiohttp.ClientTimeout(total=total_seconds, **limits)
        self._stream_timeout = aiohttp.ClientTimeout(total=None, **limits)
        self._reconnect_seconds = reconnect_seconds
        self._follow_redirects = follow_redirects
        self._session = LazySession(_new_session)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        identity: Identity | None = None,
        expected: int | None = None,
        is_encoded: bool = False,
        is_stream: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the caller reads the response's body inside the block.

        Args:
            body: bytes are sent as they are, anything else as JSON.
            identity: the request has the rights of this identity.
            expected: the only status that means success; None: any below 400.
            is_encoded: ``path`` is percent-encoded and sent exactly as it is.

        Raises:
            RequestRefused: the gateway answered with an error status.
            GatewayUnreachable: it cannot be connected to, or the connection broke.
        """
        address = self.url + path
        content = {"data": body} if body is None or isinstance(body, bytes) else {"json": body}
        try:
            async with self._session.get().request(
                method,
                URL(address, encoded=True) if is_encoded else address,
                headers={**self._credentials(identity), **(headers or {})},
                timeout=self._stream_timeout if is_stream else self._timeout,
                allow_redirects=self._follow_redirects,
                **content,
            ) as response:
                status = response.status
                if status >= 400 or (expected is not None and status != expected):
                    raise RequestRefused(status, response.headers, await _read_start(response))
                yield response
        # No ConnectionError: aiohttp's are ClientErrors, and the block may meet one of its own, such as
        # the broken pipe of `moyin chat | head`.
        except (aiohttp.ClientError, TimeoutError) as error:
            raise GatewayUnreachable(self.url) from error

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Return the JSON of a response; raises as `open`."""
        async with self.open(method, path, body, headers=headers) as response:
            return await response.json()

    async def download(self, path: str, target: Path) -> None:
        """Download a file; ``target`` appears only when it is complete. Raises as `open`."""
        scratch = target.with_name(f".{target.name}.part")
        async with self.open("GET", path) as response:
            with scratch.open("wb") as file:
                async for piece in response.content.iter_chunked(256 * 1024):
                    file.write(piece)
        scratch.replace(target)

    async def read(self, path: str, *, identity: Identity | None = None) -> bytes:
        """Return the content of a file.

        Raises:
            StepFailed: the file is larger than 64 MiB.
            MoyinError: the gateway refused the request, in the type of the reported code.
            ServiceUnavailable: the gateway is unavailable.
        """
        try:
            async with self.open("GET", path, identity=identity, expected=200) as response:
                return await read_up_to(response, _LARGEST_FILE)
        except BodyTooLong:
            raise StepFailed(f"{path} is larger than {_LARGEST_FILE} bytes") from None
        except RequestRefused as error:
            raise error.typed() from None

    async def read_json(self, path: str, *, identity: Identity | None = None) -> Any:
        """Return the JSON document at ``path``; raises as `read`."""
        return from_json(await self.read(path, identity=identity))

    async def submit_job(
        self,
        job: Mapping[str, Any],
        *,
        identity: Identity | None = None,
        idempotency_key: str | None = None,
    ) -> AcceptedJob:
        """Submit a job with the body of ``POST /jobs``.

        Raises:
            MoyinError: the gateway refused the job, in the type of the reported code.
            ServiceUnavailable: the gateway is unavailable.
        """
        headers = {"content-type": "application/json"}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        try:
            async with self.open(
                "POST", "/jobs", to_json(job), headers=headers, identity=identity, expected=202
            ) as response:
                return AcceptedJob(
                    location=response.headers["location"],
                    body=await response.read(),
                    replayed="idempotent-replayed" in response.headers,
                )
        except RequestRefused as error:
            raise error.typed() from None

    async def cancel_job(self, location: str, *, identity: Identity | None = None) -> None:
        """Cancel the job at the path ``location``.

        Raises:
            JobFinished: the job has ended already.
            MoyinError: the gateway refused the request, in the type of the reported code.
            ServiceUnavailable: the gateway is unavailable.
        """
        try:
            async with self.open("POST", f"{location}/cancel", identity=identity, expected=202):
                return
        except RequestRefused as error:
            raise error.typed() from None

    async def follow_job(
        self, job_id: str, *, identity: Identity | None = None, max_reconnects: int | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the job's events until it has ended; a broken stream is resumed.

        An attempt's final event that is followed by further events belongs to a retried attempt,
        so the job has ended only when the gateway ends the stream after a final event.

        Raises:
            MoyinError: the gateway refused the request, in the type of the reported code.
            GatewayUnreachable: the stream broke more often than ``max_reconnects``.
        """
        headers: dict[str, str] = {}
        path, has_ended, reconnects = f"/jobs/{job_id}/events", False, 0
        while True:
            failure: MoyinError = GatewayUnreachable(self.url)
            try:
                async with self.open(
                    "GET", path, headers=headers, identity=identity, is_stream=True
                ) as response:
                    async for event in read_events(response):
                        if event.text:
                            if event.id:
                                headers["last-event-id"] = event.id
                            has_ended = event.type in _FINAL
                            yield event
                if has_ended:
                    return
            except GatewayUnreachable as error:
                failure = error
            except RequestRefused as error:
                failure = error.typed()
                if not failure.retryable:
                    raise failure from None
            reconnects += 1
            if max_reconnects is not None and reconnects > max_reconnects:
                raise failure
            _log.info("the events of job %s are resumed: %s", job_id, failure)
            await asyncio.sleep(self._reconnect_seconds)

    async def wait_for_job(
        self, job_id: str, *, identity: Identity | None = None
    ) -> dict[str, Any]:
        """Return the job once it has ended, however long that takes; raises as `follow_job`."""
        last_event: Event | None = None
        async with aclosing(self.follow_job(job_id, identity=identity)) as events:
            async for event in events:
                last_event = event
        assert last_event is not None
        return dict(last_event.data)

    def _credentials(self, identity: Identity | None) -> dict[str, str]:
        if identity is not None:
            assert self._token_for is not None, "this client has no token_for"
            return {"authorization": f"Bearer {self._token_for(identity)}"}
        return {"authorization": f"Bearer {self._api_key}"} if self._api_key else {}


async def read_frames(response: aiohttp.ClientResponse) -> AsyncIterator[Frame]:
    """Yield the server-sent events of a response as bytes, comments included."""
    splitter = FrameSplitter()
    async for piece in response.content.iter_any():
        for frame in splitter.feed(piece):
            yield frame


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """Yield the server-sent events of a response; comments are events without text."""
    async for frame in read_frames(response):
        yield Event(frame.raw)


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
    )


async def _read_start(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of an error response, cut off after 64 KiB."""
    pieces, left = [], _LARGEST_ERROR
    while left and (piece := await response.content.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
