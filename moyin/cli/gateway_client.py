"""The command line's way to the door: JSON calls, events and files over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

from moyin.errors import MoyinError, StackError
from moyin.http.client import LazySession
from moyin.http.sse import FrameSplitter
from moyin.stack.profile import Profile

__all__ = ["Door", "Event", "Refused", "read_events"]

_CONNECT_SECONDS = 5.0
# Streams send a sign of life more often than this.
_SILENCE_SECONDS = 120.0


class Refused(MoyinError):
    """The door answered with an error; ``answer_code`` is its stable code."""

    def __init__(self, status: int, answer_code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.answer_code = answer_code


class Event:
    """One server-sent event; ``data`` is its JSON, or the text itself when it is none.

    ``comment`` is what stands after a leading colon: signs of life, and the cost of a stream.
    """

    __slots__ = ("comment", "data", "id", "type")

    def __init__(self, frame: bytes) -> None:
        fields: dict[str, str] = {}
        for line in frame.decode().strip().splitlines():
            name, _, value = line.partition(":")
            fields[name] = f"{fields[name]}\n{value.strip()}" if name in fields else value.strip()
        self.type = fields.get("event", "message")
        self.id = fields.get("id")
        self.comment = fields.get("", "")
        text = fields.get("data", "")
        try:
            self.data: Any = json.loads(text)
        except ValueError:
            self.data = text


class Door:
    """One session with the door. Use it in ``async with``."""

    def __init__(self, profile: Profile) -> None:
        self.url = profile.url
        self._headers = {"authorization": f"Bearer {profile.api_key}"} if profile.api_key else {}
        self._session = LazySession(self._new_session)

    def _new_session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
        )
        return aiohttp.ClientSession(headers=self._headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer.

        Raises:
            Refused: the door answers with an error.
            StackError: the door can't be reached.
        """
        async with self.open(method, path, body) as response:
            return await response.json()

    async def events(
        self, method: str, path: str, body: Any = None, *, after: str | None = None
    ) -> AsyncIterator[Event]:
        """The server-sent events of one answer, to its end."""
        headers = {"last-event-id": after} if after else {}
        async with self.open(method, path, body, headers) as response:
            async for event in read_events(response):
                if event.data != "":
                    yield event

    async def save(self, path: str, target: Path) -> None:
        """Download a file; ``target`` is there only when it is complete."""
        scratch = target.with_name(f".{target.name}.part")
        async with self.open("GET", path) as response:
            with scratch.open("wb") as file:
                async for piece in response.content.iter_chunked(256 * 1024):
                    file.write(piece)
        scratch.replace(target)

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer whose body is still to be read."""
        try:
            async with self._session.get().request(
                method, self.url + path, json=body, headers=headers
            ) as response:
                if response.status >= 400:
                    raise _refusal(response.status, await response.read())
                yield response
        except aiohttp.ClientConnectorError:
            raise StackError(f"nobody answers at {self.url}: is it up? (`moyin up`)") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StackError(f"the connection to {self.url} broke: {error}") from error


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """The server-sent events in ``response``; comments are events without data."""
    splitter = FrameSplitter()
    async for piece in response.content.iter_any():
        for frame in splitter.feed(piece):
            yield Event(frame.raw)


def _refusal(status: int, body: bytes) -> Refused:
    """Read any of the error shapes that the door speaks."""
    try:
        told = json.loads(body)
    except ValueError:
        return Refused(status, f"http_{status}", body.decode(errors="replace")[:300].strip())
    if not isinstance(told, dict):
        told = {"error": str(told)}
    inner = told.get("error", {})
    if not isinstance(inner, dict):
        inner = {"message": str(inner)}
    # Our own routes put the code at the top; a refused graph brings ComfyUI's body with it.
    code = told.get("code") or inner.get("code") or inner.get("type") or f"http_{status}"
    parts = [told.get("detail"), inner.get("message"), *_node_errors(told)]
    message = "; ".join(dict.fromkeys(str(part) for part in parts if part))
    return Refused(status, str(code), message or "no reason given")


def _node_errors(told: dict[str, Any]) -> list[str]:
    """What ComfyUI says about single nodes of a graph, in a few words."""
    nodes = told.get("node_errors")
    if not isinstance(nodes, dict):
        return []
    return [
        f"node {node}: {error.get('message', '')} {error.get('details', '')}".strip()
        for node, found in nodes.items()
        for error in found.get("errors", [])
    ]
