"""`ComfyClient`: calls the HTTP routes of one ComfyUI that a renderer needs."""

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

# 404: the bridge could not be loaded, so its routes are missing; 503: the executor is dead.
_EXPECTED_STATUSES = (200, 400, 404, 503)
# 403: the path is a folder.
_NOT_FOUND_STATUSES = (403, 404)
_GRAPH_ROUTES = ("/prompt", "/moyin/validate")
# Files of node packages, and the descriptions of all nodes.
_MAX_FILE_BYTES = 32 * 1024 * 1024
_MAX_RESPONSE_BYTES = 256 * 1024 * 1024
# A prompt's history entry is stored, and clients get hundreds of them at once.
_MAX_ENTRY_BYTES = 8 * 1024 * 1024
# For the header Host: the Unix socket has no host name.
_URL = "http://comfyui"
# ComfyUI answers 500 to a graph of the wrong shape; this is the body of its own error.
_MALFORMED_GRAPH = {
    "error": {
        "type": "invalid_prompt",
        "message": "Cannot execute because a node is not an object with class_type and inputs.",
        "details": "",
        "extra_info": {},
    },
    "node_errors": {},
}
Model = TypeVar("Model", bound=BaseModel)
# Long, because nodes run in the server's process and may hold Python's lock for seconds.
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=5)


class NoAnswer(WorkerLost):
    """Raised when the process does not answer on its socket, or not in time."""


class TooLarge(WorkerLost):
    """Raised when a response is larger than its limit."""


class ComfyClient:
    """Calls one ComfyUI on this machine, whose nodes may be hostile.

    Responses contain no paths of the machine (see `HostPaths`). Every method raises `WorkerLost`
    when the process does not answer, or when its response is not one of ComfyUI's.

    Args:
        address: path of ComfyUI's Unix socket.
    """

    def __init__(self, address: str, client_id: str, paths: HostPaths) -> None:
        self._address = address
        self._paths = paths
        self.client_id = client_id
        self._session: aiohttp.ClientSession | None = None
        # Prompts whose history entries have been read, and can be dropped.
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
            InvalidGraph: ComfyUI refuses the graph; ``details`` is its body.
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
            # Otherwise its next entry would be dropped together with the one that was read.
            await self.prompt_state(prompt_id)
        status, response = await self._call("POST", "/prompt", body)
        response = self._paths.hide_in_json(response)
        if status != 200:
            raise InvalidGraph(error_message(response), details=response)
        return _parse(PromptAccepted, response)

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """See `ComfyRenderer.validate`."""
        body: dict[str, Any] = {"prompt": graph}
        if targets is not None:
            body["partial_execution_targets"] = list(targets)
        _, response = await self._call("POST", "/moyin/validate", body)
        return dict(self._paths.hide_in_json(response))

    async def prompt_state(self, prompt_id: str) -> PromptState:
        """Return whether a prompt is queued, and its history entry.

        ComfyUI keeps entries in memory. An entry that was read is dropped by the next call of this
        method, because a request of its own would be a tenth of the cost of a small picture.

        Raises:
            RenderFailed: the entry is larger than 8 MiB.
        """
        read = tuple(self._read)
        body = {"prompt_id": prompt_id, "forget": read}
        try:
            _, response = await self._call("POST", "/moyin/look", body, _MAX_ENTRY_BYTES)
        except TooLarge:
            self._read.append(prompt_id)
            raise RenderFailed(
                "the nodes' outputs other than files, or their error messages, are larger than "
                f"{_MAX_ENTRY_BYTES} bytes"
            ) from None
        state = _parse(PromptState, self._paths.hide_in_state(response))
        self._read = [entry for entry in self._read if entry not in read]
        if state.entry is not None:
            self._read.append(prompt_id)
        return state

    async def interrupt(self, prompt_id: str) -> None:
        """Remove the prompt from the queue, or interrupt it if it is executing."""
        await self._call("POST", "/queue", {"delete": [prompt_id]})
        await self._call("POST", "/interrupt", {"prompt_id": prompt_id})

    async def unload(self) -> None:
        """Drop every cached result and model before the next prompt."""
        await self._call("POST", "/free", {"unload_models": True, "free_memory": True})

    async def get(self, path: str) -> bytes | None:
        """Return the body of a GET response; None if there is nothing at ``path``."""
        try:
            async with self.session.get(URL(path, encoded=True)) as response:
                if response.status in _NOT_FOUND_STATUSES:
                    return None
                if response.status != 200:
                    raise WorkerLost(f"ComfyUI answered {path} with status {response.status}")
                body = await _read(response, _MAX_FILE_BYTES)
                if response.content_type != "application/json":
                    return body
                # In a thread: the descriptions of all nodes are megabytes.
                return await asyncio.to_thread(self._paths.hide_in_body, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoAnswer("ComfyUI does not answer") from error

    async def volatile_classes(self) -> frozenset[str]:
        """Return the node classes whose output may differ for the same inputs."""
        _, response = await self._call("GET", "/moyin/volatile")
        return frozenset(response)

    async def total_memory(self) -> int | None:
        """Return the bytes of the GPU's memory; None without a GPU."""
        _, response = await self._call("GET", "/system_stats")
        stats = _parse(SystemStats, response)
        return next((d.vram_total for d in stats.devices if d.type == "cuda"), None)

    async def is_executor_alive(self) -> bool:
        """Return whether the thread that executes prompts is alive."""
        status, _ = await self._call("GET", "/moyin/pulse")
        return status == 200

    async def _call(
        self, method: str, path: str, body: Any = None, limit: int = _MAX_RESPONSE_BYTES
    ) -> tuple[int, Any]:
        try:
            async with self.session.request(method, path, json=body) as response:
                if response.status == 500 and path in _GRAPH_ROUTES:
                    return 400, _MALFORMED_GRAPH
                if response.status not in _EXPECTED_STATUSES:
                    raise WorkerLost(f"ComfyUI answered {path} with status {response.status}")
                # JSON is UTF-8; aiohttp's own decoding would detect the encoding first.
                content = self._paths.hide_known_in_body(await _read(response, limit))
                return response.status, json.loads(content) if content else None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoAnswer("ComfyUI does not answer") from error
        except ValueError as error:
            raise WorkerLost(f"ComfyUI answered {path} with a body that is not JSON") from error


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the whole body; raise `TooLarge` when it has more than ``limit`` bytes."""
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"ComfyUI answered {response.url.path} with more than {limit} bytes")
    return b"".join(chunks)


def error_message(body: Mapping[str, Any]) -> str:
    """Return the error message in a validation body."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, Mapping) else None
    return str(message or "ComfyUI refuses this graph")


def _parse(model: type[Model], response: Any) -> Model:
    try:
        return model.model_validate(response)
    except ValidationError as error:
        count = error.error_count()
        raise WorkerLost(f"ComfyUI returned a malformed response: {count} errors") from error
