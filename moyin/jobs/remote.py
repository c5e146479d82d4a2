"""Submitting a job from a service that has no job store, through the door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic_core import from_json, to_json

from moyin import errors
from moyin.domain.identity import Identity
from moyin.sessions import LazySession

__all__ = ["Accepted", "RemoteJobs"]

_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
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
    """A client of ``POST /jobs``. Used from one event loop.

    Args:
        door: the gateway's address as this process reaches it.
        token: a bearer token with an identity's rights.
    """

    def __init__(self, door: str, token: Callable[[Identity], str]) -> None:
        self._url = f"{door.rstrip('/')}/jobs"
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
        headers = {
            "authorization": f"Bearer {self._token(identity)}",
            "content-type": "application/json",
        }
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        try:
            async with self._session.get().post(
                self._url, data=to_json(job), headers=headers
            ) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            raise errors.ServiceUnavailable("jobs can't be accepted now", retry_after=5) from None
        if response.status != 202:
            raise _error(body, response.headers.get("retry-after"))
        return Accepted(
            location=response.headers["location"],
            body=body,
            replayed="idempotent-replayed" in response.headers,
        )

    async def close(self) -> None:
        await self._session.close()


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar())


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
        return errors.ServiceUnavailable("jobs can't be accepted now", retry_after=5)


def _family(kind: type[errors.MoyinError]) -> Iterator[type[errors.MoyinError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


_KINDS = {kind.code: kind for kind in _family(errors.MoyinError)}
