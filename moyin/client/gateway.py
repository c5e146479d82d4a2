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
from urllib.parse import urlencode

import aiohttp
from pydantic_core import from_json, to_json
from yarl import URL

from moyin.client.errors import GatewayUnreachable, RequestRefused
from moyin.domain.identity import Identity
from moyin.domain.job import EventType
from moyin.errors import MoyinError, StepFailed
from moyin.http.client import BodyTooLong, LazySession, read_up_to
from moyin.http.sse import Frame, FrameSplitter

_log = logging.getLogger(__name__)
_CONNECT_SECONDS = 5.0
_LARGEST_FILE = 64 * 1024 * 1024
_LARGEST_ERROR = 64 * 1024
_FINAL = frozenset(kind.value for kind in EventType if kind.is_final)


class ServerSentEvent:
    """A server-sent event from the gateway.

    Attributes:
        text: the event's data lines, joined; None if there are none, as in a comment.
        comment: the text of a comment, such as the cost of a stream; empty for an event.
    """

    __slots__ = ("comment", "id", "text", "type")

    def __init__(self, raw_event: bytes) -> None:
        fields: dict[str, str] = {}
        for line in raw_event.decode().strip().splitlines():
            name, _, value = line.partition(":")
            fields[name] = f"{fields[name]}\n{value.strip()}" if name in fields else value.strip()
        self.type = fields.get("event", "message")
        self.id = fields.get("id")
        self.comment = fields.get("", "")
        self.text = fields.get("data")

    @property
    def data(self) -> Any:
        """The data parsed as JSON, or the text itself if the text is not JSON."""
        try:
            return json.loads(self.text or "")
        except ValueError:
            return self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedJob:
    """The response to a job's submission.

    Attributes:
        location: the path of the job on the gateway.
        body: the job as JSON bytes.
        replayed: True if an earlier request with the same idempotency key created the job.
    """

    location: str
    body: bytes
    replayed: bool


class GatewayClient:
    """Sends requests to the gateway: single calls, jobs, event streams and downloads.

    A client belongs to one event loop. Use it as an async context manager, or call `close`.

    Args:
        url: the gateway's address as this process reaches it.
        api_key: the key for every request; if it is empty, requests need an ``identity`` or
            credentials in ``headers``.
        token_for: a function that makes a bearer token with the rights of an identity.
        silence_seconds: the longest wait for the next byte of a response.
        total_seconds: the longest duration of a request that is not a stream; None means no limit.
        reconnect_seconds: the pause before a broken event stream is opened again.
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
        timeouts = {"sock_connect": _CONNECT_SECONDS, "sock_read": silence_seconds}
        self._timeout = aiohttp.ClientTimeout(total=total_seconds, **timeouts)
        self._stream_timeout = aiohttp.ClientTimeout(total=None, **timeouts)
        self._reconnect_seconds = reconnect_seconds
        self._follow_redirects = follow_redirects
        self._session = LazySession(_new_session)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
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
        expected_status: int | None = None,
        is_encoded: bool = False,
        is_stream: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield the response, whose body must be read inside the block.

        Args:
            body: the request's body; bytes, iterators of bytes and forms are sent unchanged, other
                values as JSON.
            identity: the identity with whose rights the request is made.
            expected_status: the only status that means success; None means any status below 400.
            is_encoded: True if ``path`` is percent-encoded already and must be sent unchanged.
            is_stream: True if the response may take longer than ``total_seconds``.

        Raises:
            RequestRefused: the gateway responded with an error status.
            GatewayUnreachable: the connection failed or broke.
        """
        request_url = self.url + path
        is_raw = body is None or isinstance(body, bytes | AsyncIterator | aiohttp.FormData)
        body_argument = {"data" if is_raw else "json": body}
        try:
            async with self._session.get().request(
                method,
                URL(request_url, encoded=True) if is_encoded else request_url,
                headers={**self._build_credentials(identity), **(headers or {})},
                timeout=self._stream_timeout if is_stream else self._timeout,
                allow_redirects=self._follow_redirects,
                **body_argument,
            ) as response:
                status = response.status
                if status >= 400 or (expected_status is not None and status != expected_status):
                    raise RequestRefused(status, response.headers, await _read_error_body(response))
                yield response
        # A ConnectionError comes from the caller's block, for example from the broken pipe of
        # `moyin chat | head`. aiohttp's own connection errors are ClientErrors.
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
        """Send a request and return the response's JSON; raises the errors of `open`."""
        async with self.open(method, path, body, headers=headers) as response:
            return await response.json()

    async def post_form(self, path: str, file: Path, fields: Mapping[str, str]) -> Any:
        """Send a file and fields as a form, and return the response's JSON, like `call`."""
        with file.open("rb") as content:
            form = aiohttp.FormData(fields)
            form.add_field("file", content, filename=file.name)
            return await self.call("POST", path, form)

    async def download(self, path: str, target: Path) -> None:
        """Download a file to ``target``, which exists only when complete.

        Raises the errors of `open`.
        """
        temporary_path = target.with_name(f".{target.name}.part")
        async with self.open("GET", path) as response:
            with temporary_path.open("wb") as file:
                async for chunk in response.content.iter_chunked(256 * 1024):
                    file.write(chunk)
        temporary_path.replace(target)

    async def read(self, path: str, *, identity: Identity | None = None) -> bytes:
        """Return the content of the file at ``path`` on the gateway.

        Raises:
            StepFailed: the file is larger than 64 MiB.
            MoyinError: the gateway refused the request; the subclass matches the error code.
            ServiceUnavailable: the gateway is unavailable.
        """
        try:
            async with self.open("GET", path, identity=identity, expected_status=200) as response:
                return await read_up_to(response, _LARGEST_FILE)
        except BodyTooLong:
            raise StepFailed(f"{path} is larger than the limit of {_LARGEST_FILE} bytes") from None
        except RequestRefused as error:
            raise error.to_typed_error() from None

    async def read_json(self, path: str, *, identity: Identity | None = None) -> Any:
        """Return the JSON document at ``path``; raises the errors of `read`."""
        return from_json(await self.read(path, identity=identity))

    async def upload(
        self,
        content: AsyncIterator[bytes],
        name: str,
        media_type: str,
        *,
        identity: Identity | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Store a file and return the id of its artifact; raises the errors of `read`.

        Args:
            idempotency_key: if an earlier upload used the same key, the id of its artifact is
                returned.
        """
        headers = {"content-type": media_type or "application/octet-stream"}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        path = f"/artifacts?{urlencode({'name': name})}" if name else "/artifacts"
        try:
            async with self.open(
                "POST", path, content, headers=headers, identity=identity, expected_status=201,
                is_encoded=True, is_stream=True,
            ) as response:  # fmt: skip
                artifact = await response.json()
                return str(artifact["id"])
        except RequestRefused as error:
            raise error.to_typed_error() from None

    async def submit_job(
        self,
        job: Mapping[str, Any],
        *,
        identity: Identity | None = None,
        idempotency_key: str | None = None,
    ) -> AcceptedJob:
        """Submit a job; the mapping ``job`` is the body of ``POST /jobs``.

        Raises the `MoyinError` subclass that matches the error code in the gateway's response.
        """
        headers = {"content-type": "application/json"}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        try:
            async with self.open(
                "POST",
                "/jobs",
                to_json(job),
                headers=headers,
                identity=identity,
                expected_status=202,
            ) as response:
                return AcceptedJob(
                    location=response.headers["location"],
                    body=await response.read(),
                    replayed="idempotent-replayed" in response.headers,
                )
        except RequestRefused as error:
            raise error.to_typed_error() from None

    async def cancel_job(self, location: str, *, identity: Identity | None = None) -> None:
        """Cancel the job at the path ``location``; raises JobFinished if the job has ended."""
        try:
            async with self.open(
                "POST", f"{location}/cancel", identity=identity, expected_status=202
            ):
                return
        except RequestRefused as error:
            raise error.to_typed_error() from None

    async def follow_job(
        self, job_id: str, *, identity: Identity | None = None, max_reconnects: int | None = None
    ) -> AsyncGenerator[ServerSentEvent, None]:
        """Yield the events of a job until it has ended; if the stream breaks, continue it.

        A final event alone does not end the job, because a retried job has several final events.
        The job has ended when the gateway closes the stream after a final event.

        Raises:
            MoyinError: the gateway refused the request; the subclass matches the error code.
            GatewayUnreachable: the stream broke more often than ``max_reconnects`` allows.
        """
        headers: dict[str, str] = {}
        path, has_ended, reconnect_count = f"/jobs/{job_id}/events", False, 0
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
                failure = error.to_typed_error()
                if not failure.retryable:
                    raise failure from None
            reconnect_count += 1
            if max_reconnects is not None and reconnect_count > max_reconnects:
                raise failure
            _log.info("resuming the broken event stream of job %s: %s", job_id, failure)
            await asyncio.sleep(self._reconnect_seconds)

    async def wait_for_job(
        self, job_id: str, *, identity: Identity | None = None
    ) -> dict[str, Any]:
        """Wait until the job has ended, and return its JSON; raises the errors of `follow_job`."""
        last_event: ServerSentEvent | None = None
        async with aclosing(self.follow_job(job_id, identity=identity)) as events:
            async for event in events:
                last_event = event
        assert last_event is not None
        return dict(last_event.data)

    def _build_credentials(self, identity: Identity | None) -> dict[str, str]:
        if identity is not None:
            assert self._token_for is not None, "a GatewayClient needs token_for to use an identity"
            return {"authorization": f"Bearer {self._token_for(identity)}"}
        return {"authorization": f"Bearer {self._api_key}"} if self._api_key else {}


async def read_frames(response: aiohttp.ClientResponse) -> AsyncIterator[Frame]:
    """Yield the server-sent events of a response, not parsed yet, including comments."""
    splitter = FrameSplitter()
    async for chunk in response.content.iter_any():
        for frame in splitter.feed(chunk):
            yield frame


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[ServerSentEvent]:
    """Yield the server-sent events of a response, parsed, including comments."""
    async for frame in read_frames(response):
        yield ServerSentEvent(frame.raw)


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
    )


async def _read_error_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the first 64 KiB of an error response's body."""
    chunks, bytes_left = [], _LARGEST_ERROR
    while bytes_left and (chunk := await response.content.read(bytes_left)):
        chunks.append(chunk)
        bytes_left -= len(chunk)
    return b"".join(chunks)
