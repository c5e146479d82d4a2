"""Calls the HTTP routes of one ComfyUI process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError
from yarl import URL

from moyin.errors import InvalidGraph, RenderFailed, WorkerLost
from moyin.render.comfyui.paths import HostPathFilter
from moyin.render.protocol.wire import PromptAccepted, PromptState, SystemStats

# 404: the bridge could not be loaded, so its routes are missing; 503: the executor is dead.
_EXPECTED_STATUSES = (200, 400, 404, 503)
# ComfyUI responds with 403 if the path is a folder.
_NOT_FOUND_STATUSES = (403, 404)
_GRAPH_ROUTES = ("/prompt", "/moyin/validate")
# The limits of files of node packages, and of other responses such as the list of all nodes.
_MAX_FILE_BYTES = 32 * 1024 * 1024
_MAX_RESPONSE_BYTES = 256 * 1024 * 1024
# History entries are stored, and a client may request hundreds of them at once.
_MAX_ENTRY_BYTES = 8 * 1024 * 1024
# The value of the header Host; a Unix socket has no host name.
_URL = "http://comfyui"
# The error body for a malformed graph; ComfyUI itself would respond with status 500.
_MALFORMED_GRAPH = {
    "error": {
        "type": "invalid_prompt",
        "message": "Cannot execute because a node is not an object with class_type and inputs.",
        "details": "",
        "extra_info": {},
    },
    "node_errors": {},
}
ModelT = TypeVar("ModelT", bound=BaseModel)
# Long timeouts, because nodes run in the server's process and may hold Python's GIL for seconds.
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=5)


class NoResponse(WorkerLost):
    """Raised when ComfyUI does not respond, or not in time."""


class ResponseTooLarge(WorkerLost):
    """Raised when a response of ComfyUI exceeds its size limit."""


class ComfyClient:
    """Calls one ComfyUI process over HTTP, and checks its responses.

    Nodes of the process may be malicious. Paths of the machine are removed from responses (see
    `HostPathFilter`). Each method raises `WorkerLost` if ComfyUI does not respond or if its
    response is malformed.

    Args:
        address: path of ComfyUI's Unix socket.
        client_id: the id under which ComfyUI sends events to the socket of `EventStream`.
        paths: the paths to remove from responses.
    """

    def __init__(self, address: str, client_id: str, paths: HostPathFilter) -> None:
        self._address = address
        self._paths = paths
        self.client_id = client_id
        self._session: aiohttp.ClientSession | None = None
        # The ids of prompts whose history entries have been read, so ComfyUI can drop the entries.
        self._read_ids: list[str] = []

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(self._address)
        self._session = aiohttp.ClientSession(_URL, connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            raise WorkerLost(
                "the connection to ComfyUI is closed, because its process has ended; try again"
            )
        return self._session

    async def submit(
        self,
        prompt_id: str,
        graph: Mapping[str, Any],
        *,
        extra_data: Mapping[str, Any] | None = None,
        targets: Sequence[str] | None = None,
    ) -> PromptAccepted:
        """Add a prompt to ComfyUI's queue.

        Raises `InvalidGraph` with the body of ComfyUI's response if ComfyUI refuses the graph.

        Args:
            extra_data: further data of the prompt, which its nodes can read.
            targets: ids of the output nodes to execute, or None for all.
        """
        body: dict[str, Any] = {
            "prompt": graph,
            "prompt_id": prompt_id,
            "client_id": self.client_id,
            "extra_data": dict(extra_data or {}),
        }
        if targets is not None:
            body["partial_execution_targets"] = list(targets)
        if prompt_id in self._read_ids:
            # Drop the entry of an earlier try now: dropping it later would drop the new entry of
            # this id.
            await self.get_prompt_state(prompt_id)
        status, response = await self._call("POST", "/prompt", body)
        response = self._paths.hide_in_json(response)
        if status != 200:
            raise InvalidGraph(get_error_message(response), details=response)
        return _parse_response(PromptAccepted, response)

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Validate a graph without executing it, and return ComfyUI's response body.

        For an invalid graph the body has the member ``error``. If ``targets`` is not None, ComfyUI
        validates only the output nodes with these ids.
        """
        body: dict[str, Any] = {"prompt": graph}
        if targets is not None:
            body["partial_execution_targets"] = list(targets)
        _, response = await self._call("POST", "/moyin/validate", body)
        return dict(self._paths.hide_in_json(response))

    async def get_prompt_state(self, prompt_id: str) -> PromptState:
        """Return the state of a prompt, with its history entry if the prompt has finished.

        ComfyUI keeps history entries in memory until a client drops them. The next call of this
        method, for any prompt, also drops the entry that this call returns. A separate request to
        drop the entry would add a tenth to the render time of a small picture.

        Raises:
            RenderFailed: The history entry exceeds 8 MiB.
        """
        read_ids = tuple(self._read_ids)
        body = {"prompt_id": prompt_id, "forget": read_ids}
        try:
            _, response = await self._call("POST", "/moyin/look", body, _MAX_ENTRY_BYTES)
        except ResponseTooLarge:
            self._read_ids.append(prompt_id)
            raise RenderFailed(
                "the nodes' outputs (without files) and error messages exceed the limit of "
                f"{_MAX_ENTRY_BYTES:,} bytes: let the nodes save long outputs as files"
            ) from None
        state = _parse_response(PromptState, self._paths.hide_in_state(response))
        self._read_ids = [entry for entry in self._read_ids if entry not in read_ids]
        if state.entry is not None:
            self._read_ids.append(prompt_id)
        return state

    async def interrupt(self, prompt_id: str) -> None:
        """Remove a prompt from ComfyUI's queue, or interrupt its execution."""
        await self._call("POST", "/queue", {"delete": [prompt_id]})
        await self._call("POST", "/interrupt", {"prompt_id": prompt_id})

    async def unload_models(self) -> None:
        """Make ComfyUI drop all cached results and loaded models before the next prompt."""
        await self._call("POST", "/free", {"unload_models": True, "free_memory": True})

    async def get(self, path: str) -> bytes | None:
        """Send a GET request, and return the body, or None if nothing exists at ``path``."""
        try:
            async with self.session.get(URL(path, encoded=True)) as response:
                if response.status in _NOT_FOUND_STATUSES:
                    return None
                if response.status != 200:
                    raise _make_status_error(response)
                body = await _read_body(response, _MAX_FILE_BYTES)
                if response.content_type != "application/json":
                    return body
                # The description of all nodes has megabytes, so a thread processes the response.
                return await asyncio.to_thread(self._paths.hide_in_body, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoResponse(f"ComfyUI did not respond to GET {path}; try again") from error

    async def list_volatile_classes(self) -> frozenset[str]:
        """Return the node classes that may return different outputs for the same inputs."""
        _, response = await self._call("GET", "/moyin/volatile")
        return frozenset(response)

    async def read_total_memory(self) -> int | None:
        """Return the size of the GPU's memory in bytes, or None without a GPU."""
        _, response = await self._call("GET", "/system_stats")
        stats = _parse_response(SystemStats, response)
        return next((d.vram_total for d in stats.devices if d.type == "cuda"), None)

    async def is_executor_alive(self) -> bool:
        """Return whether the thread of ComfyUI that executes prompts is alive."""
        status, _ = await self._call("GET", "/moyin/pulse")
        return status == 200

    async def _call(
        self, method: str, path: str, body: Any = None, max_bytes: int = _MAX_RESPONSE_BYTES
    ) -> tuple[int, Any]:
        try:
            async with self.session.request(method, path, json=body) as response:
                if response.status == 500 and path in _GRAPH_ROUTES:
                    return 400, _MALFORMED_GRAPH
                if response.status not in _EXPECTED_STATUSES:
                    raise _make_status_error(response)
                # JSON is UTF-8, so the encoding need not be detected as aiohttp would.
                content = self._paths.hide_known_in_body(await _read_body(response, max_bytes))
                return response.status, json.loads(content) if content else None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoResponse(f"ComfyUI did not respond to {method} {path}; try again") from error
        except ValueError as error:
            raise WorkerLost(
                f"ComfyUI's response to {method} {path} is not JSON; a custom node may have replaced "
                "the route"
            ) from error


async def _read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the body of a response, or raise `ResponseTooLarge` if it exceeds ``max_bytes``."""
    chunks, total_bytes = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        total_bytes += len(chunk)
        if total_bytes > max_bytes:
            path = response.url.path
            raise ResponseTooLarge(
                f"ComfyUI's response from {path} exceeds the limit of {max_bytes:,} bytes"
            )
    return b"".join(chunks)


def _make_status_error(response: aiohttp.ClientResponse) -> WorkerLost:
    path = response.url.path
    return WorkerLost(
        f"ComfyUI responded to {path} with the unexpected status {response.status}; see its log"
    )


def get_error_message(body: Mapping[str, Any]) -> str:
    """Return the error message in ComfyUI's response to an invalid graph, or a default message."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, Mapping) else None
    return str(message or "ComfyUI refused the graph and gave no reason")


def _parse_response(model: type[ModelT], response: Any) -> ModelT:
    try:
        return model.model_validate(response)
    except ValidationError as error:
        first_error = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first_error["loc"])
        message = f"ComfyUI's {model.__name__} response is malformed: {field}: {first_error['msg']}"
        raise WorkerLost(message) from error
