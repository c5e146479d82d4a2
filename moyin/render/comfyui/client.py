"""Calls the HTTP routes of one ComfyUI process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError
from yarl import URL

from moyin.errors import (
    BackendError,
    InvalidGraph,
    RenderFailed,
    ServiceUnavailable,
    WorkerLost,
)
from moyin.render.comfyui.paths import HostPathFilter
from moyin.render.comfyui.untrusted_json import (
    DEFAULT_LIMITS,
    ENTRY_LIMITS,
    GET_LIMITS,
    GRAPH_LIMITS,
    JsonLimits,
    MalformedResponse,
    ResponseTooDeep,
    ResponseTooLarge,
    make_size_error,
    normalize_untrusted_json,
    parse_untrusted_json,
    require_object,
)
from moyin.render.protocol.wire import PromptAccepted, PromptState, SystemStats

# 404: the bridge could not be loaded, so its routes are missing; 503: the executor is dead.
_EXPECTED_STATUSES = (200, 400, 404, 503)
# ComfyUI responds with 403 if the path is a folder.
_NOT_FOUND_STATUSES = (403, 404)
_GRAPH_ROUTES = ("/prompt", "/moyin/validate")
# Files of node packages may contain any JSON, which only browsers parse.
_FILE_PATHS = "/extensions/"
# Each request holds up to 32 MiB and the values in it, and takes a call of the actor.
_MAX_GETS = 4
_MAX_WAITING_GETS = 48
# Longer JSON is parsed and searched for paths in a thread, so that events and other calls do not
# wait.
_MAX_INLINE_BYTES = 256 * 1024
# Longer messages, which may contain names that a node chose, would not help.
_MAX_MESSAGE = 500
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


class ComfyClient:
    """Calls one ComfyUI process over HTTP, and checks its responses.

    Nodes of the process may be malicious. All JSON passes `parse_untrusted_json`, and paths of the
    machine are removed from responses (see `HostPathFilter`). Each method raises `NoResponse` if
    ComfyUI does not respond, and `MalformedResponse` if its response is malformed.

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
        self._gets = asyncio.Semaphore(_MAX_GETS)
        self._get_count = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            _URL,
            connector=aiohttp.UnixConnector(self._address),
            timeout=_TIMEOUT,
            # A compressed response could be a thousand times larger than what was read.
            auto_decompress=False,
            headers={"accept-encoding": "identity"},
            # ComfyUI sets no cookies, and a hostile node could set any number of them.
            cookie_jar=aiohttp.DummyCookieJar(),
        )
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
        Raises `MalformedResponse` if ComfyUI may have queued another prompt.

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
        # Not as in `validate`: a prompt whose response can't be read may be in ComfyUI's queue.
        status, response = await self._call(
            "POST", "/prompt", body, GRAPH_LIMITS, self._paths.hide_in_json
        )
        details = require_object(response, "response to POST /prompt")
        if status != 200:
            raise InvalidGraph(get_error_message(details), details=details)
        accepted_prompt = _parse_response(PromptAccepted, details)
        if accepted_prompt.prompt_id != prompt_id:
            raise MalformedResponse("ComfyUI has queued the prompt under another id")
        return accepted_prompt

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
        try:
            _, response = await self._call(
                "POST", "/moyin/validate", body, GRAPH_LIMITS, self._paths.hide_in_json
            )
        except (ResponseTooLarge, ResponseTooDeep):
            raise _make_description_error() from None
        return dict(require_object(response, "response to POST /moyin/validate"))

    async def get_prompt_state(self, prompt_id: str) -> PromptState:
        """Return the state of a prompt, with its history entry if the prompt has finished.

        ComfyUI keeps history entries in memory until a client drops them. The next call of this
        method, for any prompt, also drops the entry that this call returns. A separate request to
        drop the entry would add a tenth to the render time of a small picture.

        Raises:
            RenderFailed: The history entry exceeds 8 MiB, 500,000 values, or 300 digits of a number.
        """
        read_ids = tuple(self._read_ids)
        body = {"prompt_id": prompt_id, "forget": read_ids}
        try:
            _, response = await self._call(
                "POST", "/moyin/look", body, ENTRY_LIMITS, self._paths.hide_in_state
            )
        except ResponseTooLarge as error:
            self._read_ids.append(prompt_id)
            _, _, limit = error.message.partition("limit of ")
            raise RenderFailed(
                "the nodes' outputs (without files) and error messages exceed the limit of "
                f"{limit}: let the nodes save long outputs as files"
            ) from None
        state = _parse_response(PromptState, response)
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
        """Send a GET request, and return the body, or None if nothing exists at ``path``.

        JSON is returned as `normalize_untrusted_json` writes it, except for files of node packages.

        Raises:
            BackendError: The response is too large or nested too deeply, as an honest one may be.
            ServiceUnavailable: Too many requests wait for the process.
        """
        async with self._limit_gets():
            try:
                return await self._get_body(path)
            except (ResponseTooLarge, ResponseTooDeep) as error:
                raise BackendError(f"{error.message}: ask for less at once") from None

    async def _get_body(self, path: str) -> bytes | None:
        try:
            async with self.session.get(URL(path, encoded=True), allow_redirects=False) as response:
                if response.status in _NOT_FOUND_STATUSES:
                    return None
                if response.status != 200:
                    raise _make_status_error(response)
                body = await _read_body(response, GET_LIMITS, f"response to GET {path}")
                if response.content_type != "application/json":
                    return body
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoResponse(f"ComfyUI did not respond to GET {path}; try again") from error
        # The description of all nodes has megabytes, so a thread processes the response.
        return await asyncio.to_thread(self._process_json_body, body, path)

    def _process_json_body(self, body: bytes, path: str) -> bytes:
        if not path.startswith(_FILE_PATHS):
            body = normalize_untrusted_json(body, GET_LIMITS, f"response to GET {path}")
        return self._paths.hide_in_body(body)

    @asynccontextmanager
    async def _limit_gets(self) -> AsyncIterator[None]:
        """Wait until fewer than four requests of `get` are open, while the block runs."""
        if self._get_count >= _MAX_GETS + _MAX_WAITING_GETS:
            raise ServiceUnavailable(
                f"{_MAX_WAITING_GETS} requests wait for this ComfyUI process; try again",
                retry_after=1,
            )
        self._get_count += 1
        try:
            async with self._gets:
                yield
        finally:
            self._get_count -= 1

    async def list_volatile_classes(self) -> frozenset[str]:
        """Return the node classes that may return different outputs for the same inputs."""
        _, response = await self._call("GET", "/moyin/volatile")
        if not isinstance(response, list) or not all(isinstance(name, str) for name in response):
            raise MalformedResponse(
                "ComfyUI's response to GET /moyin/volatile is not a list of names"
            )
        return frozenset(response)

    async def read_total_memory(self) -> int | None:
        """Return the size of the GPU's memory in bytes, or None without a GPU."""
        _, response = await self._call("GET", "/system_stats")
        stats = _parse_response(SystemStats, response)
        return next((d.vram_total for d in stats.devices if d.type == "cuda"), None)

    async def is_executor_alive(self) -> bool:
        """Return whether the thread of ComfyUI that executes prompts says that it is alive.

        A node may have replaced the route, so True proves nothing.
        """
        status, _ = await self._call("GET", "/moyin/pulse")
        return status == 200

    async def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        limits: JsonLimits = DEFAULT_LIMITS,
        hide: Callable[[Any], Any] | None = None,
    ) -> tuple[int, Any]:
        """Send a request, and return the status and the JSON of the response.

        Args:
            hide: replaces the paths that may remain in the JSON, besides known folders.
        """
        source = f"response to {method} {path}"
        try:
            async with self.session.request(
                method, path, json=body, allow_redirects=False
            ) as response:
                if response.status == 500 and path in _GRAPH_ROUTES:
                    return 400, _MALFORMED_GRAPH
                if response.status not in _EXPECTED_STATUSES:
                    raise _make_status_error(response)
                # JSON is UTF-8, so the encoding need not be detected as aiohttp would.
                content = await _read_body(response, limits, source)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoResponse(f"ComfyUI did not respond to {method} {path}; try again") from error
        if not content:
            return response.status, None

        def process_content() -> Any:
            known_hidden = self._paths.hide_known_in_body(content)
            value = parse_untrusted_json(known_hidden, limits, source)
            return value if hide is None else hide(value)

        try:
            if len(content) <= _MAX_INLINE_BYTES:
                return response.status, process_content()
            return response.status, await asyncio.to_thread(process_content)
        except (ResponseTooLarge, ResponseTooDeep):
            if response.status == 400 and path in _GRAPH_ROUTES:
                raise _make_description_error() from None
            raise


async def _read_body(response: aiohttp.ClientResponse, limits: JsonLimits, source: str) -> bytes:
    """Return the body of a response, or raise `ResponseTooLarge` if it has too many bytes."""
    chunks, total_bytes = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        total_bytes += len(chunk)
        if total_bytes > limits.max_bytes:
            raise make_size_error(limits, source)
    return b"".join(chunks)


def _make_description_error() -> InvalidGraph:
    """Return the error of a graph whose errors repeat values that are too many or too deep."""
    return InvalidGraph(
        "the description of the graph's errors is too large: correct the inputs of its nodes, or "
        "submit a part of the graph to see the errors of that part"
    )


def _make_status_error(response: aiohttp.ClientResponse) -> WorkerLost:
    path = response.url.path
    return WorkerLost(
        f"ComfyUI responded to {path} with the unexpected status {response.status}; see its log"
    )


def get_error_message(body: Mapping[str, Any]) -> str:
    """Return the error message in ComfyUI's response to an invalid graph, or a default message."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, Mapping) else None
    return str(message or "ComfyUI refused the graph and gave no reason")[:_MAX_MESSAGE]


def _parse_response(model: type[ModelT], response: Any) -> ModelT:
    try:
        return model.model_validate(response)
    except ValidationError as error:
        first_error = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first_error["loc"])
        message = f"ComfyUI's {model.__name__} response is malformed: {field}: {first_error['msg']}"
        raise MalformedResponse(message[:_MAX_MESSAGE]) from error
