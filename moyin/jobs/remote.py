"""Submitting and following jobs from a service that has no job store, through the door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic_core import from_json, to_json

from moyin import errors
from moyin.domain.identity import Identity
from moyin.domain.job import EventType
from moyin.http.client import LazySession
from moyin.http.sse import FrameSplitter

__all__ = ["Accepted", "RemoteJobs", "error_of"]

_log = logging.getLogger(__name__)
_OUTAGES = (aiohttp.ClientError, OSError, TimeoutError)
_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
# Events tell that they are alive more often than this.
_FOLLOWING = aiohttp.ClientTimeout(total=None, connect=5, sock_read=60)
_AGAIN_SECONDS = 0.5
_LARGEST_FILE = 64 * 1024 * 1024
_FINAL = frozenset(kind.value for kind in EventType if kind.is_final)
# The member of a job that holds the client's request; the client knows nothing of it.
_WRAPPED = "request."


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """A job that was accepted.

    Attributes:
        location: path of the job behind the door.
        body: the job as JSON.
        replayed: it was there already, under the same idempotency key.
    """

    location: str
    body: bytes
    replayed: bool


class RemoteJobs:
    """A client of ``/jobs`` and what belongs to them. Used from one event loop.

    Args:
        door: the gateway's address as this process reaches it.
        token: a bearer token with an identity's rights.
    """

    def __init__(self, door: str, token: Callable[[Identity], str]) -> None:
        self._door = door.rstrip("/")
        self._token = token
        self._session = LazySession(_new_session)

    async def submit(
        self, identity: Identity, job: Mapping[str, Any], *, idempotency_key: str | None
    ) -> Accepted:
        """The accepted job.

        Raises:
            MoyinError: what the jobs API says is wrong, in its own type.
            ServiceUnavailable: it can't be reached.
        """
        headers = {**self._headers(identity), "content-type": "application/json"}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        try:
            async with self._session.get().post(
                f"{self._door}/jobs", data=to_json(job), headers=headers
            ) as response:
                body = await response.read()
        except _OUTAGES:
            raise _away() from None
        if response.status != 202:
            raise _error(body, response.headers.get("retry-after"))
        return Accepted(
            location=response.headers["location"],
            body=body,
            replayed="idempotent-replayed" in response.headers,
        )

    async def cancel(self, identity: Identity, location: str) -> None:
        """Ask for the end of the job whose path behind the door is ``location``.

        Raises:
            JobFinished: it has ended.
            MoyinError: what the door says is wrong, in its own type.
            ServiceUnavailable: it can't be reached.
        """
        try:
            async with self._session.get().post(
                f"{self._door}{location}/cancel", headers=self._headers(identity)
            ) as response:
                if response.status != 202:
                    raise _error(await response.read(), response.headers.get("retry-after"))
        except _OUTAGES:
            raise _away() from None

    async def read(self, identity: Identity, path: str) -> Any:
        """The JSON at ``path`` behind the door.

        Raises:
            MoyinError: what the door says is wrong, in its own type.
            ServiceUnavailable: it can't be reached.
        """
        return from_json(await self.content(identity, path))

    async def content(self, identity: Identity, path: str) -> bytes:
        """The bytes at ``path`` behind the door; errors as of `read`.

        Raises:
            StepFailed: there are more than 64 MiB.
        """
        try:
            async with self._session.get().get(
                self._door + path, headers=self._headers(identity)
            ) as response:
                if response.status != 200:
                    raise _error(await response.read(), response.headers.get("retry-after"))
                if (response.content_length or 0) > _LARGEST_FILE:
                    raise errors.StepFailed(f"{path} is larger than {_LARGEST_FILE} bytes")
                return await response.read()
        except _OUTAGES:
            raise _away() from None

    async def ended(self, identity: Identity, job_id: str) -> dict[str, Any]:
        """The job once it has ended, however long that takes; outages of the door only delay it.

        Raises:
            MoyinError: the door says that there is no such job, or that it may not be seen.
        """
        while True:
            try:
                async with self._session.get().get(
                    f"{self._door}/jobs/{job_id}/events",
                    headers=self._headers(identity),
                    timeout=_FOLLOWING,
                ) as response:
                    if response.status >= 400:
                        raise _error(await response.read(), response.headers.get("retry-after"))
                    job = await _last_event(response)
                if job is not None:
                    return job
            except _OUTAGES as error:
                _log.info("events of job %s broke: %s", job_id, type(error).__name__)
            except errors.MoyinError as error:
                if not error.retryable:
                    raise
                _log.info("events of job %s: %s", job_id, error)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def close(self) -> None:
        await self._session.close()

    def _headers(self, identity: Identity) -> dict[str, str]:
        return {"authorization": f"Bearer {self._token(identity)}"}


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar())


async def _last_event(response: aiohttp.ClientResponse) -> dict[str, Any] | None:
    """The job that the last event tells; None when the stream breaks off before.

    The end of an attempt that was followed by another is not the last.
    """
    splitter, ended = FrameSplitter(), None
    async for piece in response.content.iter_any():
        for frame in splitter.feed(piece):
            if frame.data:
                data = from_json(frame.data)
                ended = dict(data) if data.get("status") in _FINAL else None
    return ended


def error_of(code: str, message: str) -> errors.MoyinError:
    """The error that a code of ours stands for."""
    return _KINDS.get(code, errors.StepFailed)(message)


def _away() -> errors.ServiceUnavailable:
    return errors.ServiceUnavailable("jobs can't be accepted now", retry_after=5)


def _error(body: bytes, retry_after: str | None) -> errors.MoyinError:
    """The error that a problem body stands for."""
    try:
        problem = from_json(body)
        wait = float(retry_after) if retry_after and retry_after.isdecimal() else None
        error = _KINDS[problem["code"]](problem["detail"], retry_after=wait)
        if (field := problem.get("field")) is not None:
            error.field = field.removeprefix(_WRAPPED)
        return error
    except (ValueError, KeyError, TypeError, AttributeError):
        return _away()


def _family(kind: type[errors.MoyinError]) -> Iterator[type[errors.MoyinError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


_KINDS = {kind.code: kind for kind in _family(errors.MoyinError)}
