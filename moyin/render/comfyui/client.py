"""ComfyUI's HTTP routes, as far as a renderer needs them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError
from yarl import URL

from moyin.errors import InvalidGraph, RenderFailed, WorkerLost
from moyin.render.comfyui.paths import HostPaths
from moyin.render.protocol.wire import PromptAccepted, PromptState, SystemStats

__all__ = ["ComfyClient", "NoAnswer"]

# 404: the bridge's routes, when it could not be loaded; 503: its word for a dead executor.
_EXPECTED = (200, 400, 404, 503)
# 403: a folder of files.
_NOTHING_THERE = (403, 404)
_TAKES_GRAPHS = ("/prompt", "/moyin/validate")
# Files of node packages, and the descriptions of all nodes.
_LARGEST_FILE = 32 * 1024 * 1024
_LARGEST_ANSWER = 256 * 1024 * 1024
# What a prompt's nodes put out besides files. It is stored, and clients are given hundreds at once.
_LARGEST_ENTRY = 8 * 1024 * 1024
# For the header Host: the socket has no name.
_URL = "http://comfyui"
# ComfyUI stumbles over graphs that are not even shaped like one; said in its own words.
_UNREADABLE = {
    "error": {
        "type": "invalid_prompt",
        "message": "Cannot execute because a node is not an object with class_type and inputs.",
        "details": "",
        "extra_info": {},
    },
    "node_errors": {},
}
Shape = TypeVar("Shape", bound=BaseModel)
# The server shares its process with the nodes, and those hold Python's lock for seconds.
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=5)


class NoAnswer(WorkerLost):
    """Nobody answers on the process's port, or not in time."""


class TooLarge(WorkerLost):
    """An answer is larger than it may be."""


class ComfyClient:
    """Speaks with one ComfyUI on this machine, whose nodes may be hostile.

    What it says comes without the machine's paths (see `HostPaths`). Every method raises `WorkerLost`
    when the process does not answer, or not as ComfyUI does.

    Args:
        address: path of the Unix socket on which it serves.
    """

    def __init__(self, address: str, client_id: str, paths: HostPaths) -> None:
        self._address = address
        self._paths = paths
        self.client_id = client_id
        self._session: aiohttp.ClientSession | None = None
        # Prompts whose history entries have been read, and may go.
        self._read: list[str] = []

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(self._address)
        self._session = aiohttp.ClientSession(_URL, connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            raise WorkerLost("ComfyUI has ended")
        return self._session

    async def submit(
        self,
        prompt_id: str,
        graph: Mapping[str, Any],
        *,
        extra_data: Mapping[str, Any] | None = None,
        targets: Sequence[str] | None = None,
    ) -> PromptAccepted:
        """Queue a prompt.

        Raises:
            InvalidGraph: with ComfyUI's own body.
        """
        body: dict[str, Any] = {
            "prompt": graph,
            "prompt_id": prompt_id,
            "client_id": self.client_id,
            "extra_data": dict(extra_data or {}),
        }
        if targets is not None:
            body["partial_execution_targets"] = list(targets)
        if prompt_id in self._read:
            # Else its next entry would be taken for the one that may go.
            await self.look(prompt_id)
        status, answer = await self._call("POST", "/prompt", body)
        answer = self._paths.hide_answer(answer)
        if status != 200:
            raise InvalidGraph(refusal(answer), details=answer)
        return _shaped(PromptAccepted, answer)

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """See `moyin.domain.renderer.Renderer`."""
        body: dict[str, Any] = {"prompt": graph}
        if targets is not None:
            body["partial_execution_targets"] = list(targets)
        _, answer = await self._call("POST", "/moyin/validate", body)
        return dict(self._paths.hide_answer(answer))

    async def look(self, prompt_id: str) -> PromptState:
        """How a prompt stands.

        Its entry in the history, which ComfyUI keeps in memory, goes with the look at the next one:
        a request of its own would be a tenth of what a small picture costs.

        Raises:
            RenderFailed: the entry is larger than 8 MiB.
        """
        read = tuple(self._read)
        body = {"prompt_id": prompt_id, "forget": read}
        try:
            _, answer = await self._call("POST", "/moyin/look", body, _LARGEST_ENTRY)
        except TooLarge:
            self._read.append(prompt_id)
            raise RenderFailed(
                "what the nodes put out besides files, or say of their failure, is larger than "
                f"{_LARGEST_ENTRY} bytes"
            ) from None
        standing = _shaped(PromptState, self._paths.standing(answer))
        self._read = [seen for seen in self._read if seen not in read]
        if standing.entry is not None:
            self._read.append(prompt_id)
        return standing

    async def interrupt(self, prompt_id: str) -> None:
        """Take the prompt from the queue, or interrupt it if it is the one that runs."""
        await self._call("POST", "/queue", {"delete": [prompt_id]})
        await self._call("POST", "/interrupt", {"prompt_id": prompt_id})

    async def free(self) -> None:
        """Have it forget every cached result and model before the next prompt."""
        await self._call("POST", "/free", {"unload_models": True, "free_memory": True})

    async def object_info(self) -> dict[str, Any]:
        _, answer = await self._call("GET", "/object_info")
        return dict(answer)

    async def ask(self, path: str) -> bytes | None:
        """The body of what GET answers; None: there is nothing there."""
        try:
            async with self.session.get(URL(path, encoded=True)) as response:
                if response.status in _NOTHING_THERE:
                    return None
                if response.status != 200:
                    raise WorkerLost(f"ComfyUI answered {path} with status {response.status}")
                body = await _read(response, _LARGEST_FILE)
                if response.content_type != "application/json":
                    return body
                # Of all nodes it is megabytes.
                return await asyncio.to_thread(self._paths.hide_in, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoAnswer("ComfyUI does not answer") from error

    async def volatile(self) -> frozenset[str]:
        """Classes of nodes that may make something else of the same inputs."""
        _, answer = await self._call("GET", "/moyin/volatile")
        return frozenset(answer)

    async def memory(self) -> int | None:
        """Bytes of the card's memory; None without a card."""
        _, answer = await self._call("GET", "/system_stats")
        stats = _shaped(SystemStats, answer)
        return next((d.vram_total for d in stats.devices if d.type == "cuda"), None)

    async def pulse(self) -> bool:
        """Whether the thread that executes prompts is alive."""
        status, _ = await self._call("GET", "/moyin/pulse")
        return status == 200

    async def _call(
        self, method: str, path: str, body: Any = None, limit: int = _LARGEST_ANSWER
    ) -> tuple[int, Any]:
        try:
            async with self.session.request(method, path, json=body) as response:
                if response.status == 500 and path in _TAKES_GRAPHS:
                    return 400, _UNREADABLE
                if response.status not in _EXPECTED:
                    raise WorkerLost(f"ComfyUI answered {path} with status {response.status}")
                # JSON is UTF-8: aiohttp would look for the encoding first.
                answer = await _read(response, limit)
                answer = self._paths.hide_known_in(answer)
                return response.status, json.loads(answer) if answer else None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoAnswer("ComfyUI does not answer") from error
        except ValueError as error:
            raise WorkerLost(f"ComfyUI answered {path} with something that is not JSON") from error


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body, which is no larger than ``limit`` bytes."""
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"ComfyUI answered {response.url.path} with more than {limit} bytes")
    return b"".join(chunks)


def refusal(body: Mapping[str, Any]) -> str:
    """The sentence in a validation body."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, Mapping) else None
    return str(message or "ComfyUI refuses this graph")


def _shaped(shape: type[Shape], answer: Any) -> Shape:
    try:
        return shape.model_validate(answer)
    except ValidationError as error:
        raise WorkerLost(f"ComfyUI answered nonsense: {error.error_count()} errors") from error
