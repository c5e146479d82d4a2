"""Sends GET requests to the renderers of a pool, and caches the responses in memory and on disk.

Cached responses stay valid while the pool has no running renderer, for example after it was scaled
down to zero. They are dropped when the pool's configuration changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from moyin.errors import ServiceUnavailable
from moyin.system.bounded import BoundedDict

NODES_PATH = "/object_info"
# The path at which a pool itself, not ComfyUI, returns its rules for graphs.
RULES_PATH = "/moyin/rules"
# The path at which a pool returns its `RenderTariff`.
TARIFF_PATH = "/moyin/tariff"
FRESH_RESPONSE_SECONDS = 10.0
# How long a request waits for a new response before the cached one is returned.
MAX_REFRESH_WAIT_SECONDS = 0.5
# Paths whose responses are also written to disk, and the endings of their files.
_PATHS_ON_DISK = {NODES_PATH: "", RULES_PATH: ".rules", TARIFF_PATH: ".tariff"}
_MAX_RESPONSES = 128
# The frontend's page loads many files of node packages. Only small ones are cached.
_FILE_PATHS = "/extensions/"
_MAX_FILE_RESPONSES = 256
_MAX_CACHED_FILE_BYTES = 256 * 1024
_log = logging.getLogger(__name__)


class PoolStarting(ServiceUnavailable):
    """Raised if a pool is starting and no response for its configuration is cached."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolResponse:
    """A pool's response to a GET request, which the pool forwards to one of its ComfyUI processes.

    Attributes:
        version: fingerprint of the pool's configuration, which determines its nodes and models.
        state: ``up`` if a renderer has responded, ``starting`` if a renderer is starting, or
            ``down`` if the pool has no renderer.
        content: body of the response, or None if nothing exists at the path or no renderer is up.
    """

    version: str
    state: Literal["up", "starting", "down"]
    content: bytes | None = None


class PoolClient(Protocol):
    """The interface of a client that sends requests to render pools."""

    @property
    def pools(self) -> Sequence[str]: ...

    async def get(self, pool: str, path: str) -> PoolResponse:
        """Send a GET request to a renderer of the pool.

        Raises `BackendError` if the response is too large, and `ServiceUnavailable` if there is
        none.
        """
        ...

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        """Send a GET request to all renderers of the pool, and return the bodies by renderer.

        Renderers that do not respond are left out.
        """
        ...


@dataclass(slots=True)
class CachedResponse:
    """A pool's response to a GET request, as the cache holds it.

    Attributes:
        value: body of the response, or None if the path does not exist.
        received_at: monotonic time of the response, or minus infinity if it was read from disk.
        version: fingerprint of the pool's configuration.
    """

    value: bytes | None
    received_at: float
    version: str


class PoolResponseCache:
    """Caches the pools' responses, and sends equal concurrent requests only once.

    Args:
        folder: folder of the cached responses on disk, or None to cache in memory only.
        fresh_seconds: seconds until a cached response is too old to be returned without a new request.
        wait_seconds: seconds to wait for a new response before an older cached one is returned.
    """

    def __init__(
        self, client: PoolClient, *, folder: Path | None, fresh_seconds: float, wait_seconds: float
    ) -> None:
        self._client = client
        self._folder = folder
        self._fresh = fresh_seconds
        self._patience = wait_seconds
        # What each pool reports of itself. Requests for other paths, which clients choose, must not
        # displace these responses.
        self._reports: dict[tuple[str, str], CachedResponse] = {}
        self._responses: BoundedDict[tuple[str, str], CachedResponse] = BoundedDict(_MAX_RESPONSES)
        self._files: BoundedDict[tuple[str, str], CachedResponse] = BoundedDict(_MAX_FILE_RESPONSES)
        self._loading: dict[tuple[str, str], asyncio.Task[CachedResponse]] = {}

    async def close(self) -> None:
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def fetch(
        self,
        pool: str,
        path: str,
        fresh_seconds: float | None = None,
        wait_seconds: float | None = None,
    ) -> CachedResponse:
        """Return the pool's response to GET ``path``, from the cache if it is fresh.

        The arguments ``fresh_seconds`` and ``wait_seconds`` override those of the constructor. Raises
        `PoolStarting` or `ServiceUnavailable` if no response is available, and `BackendError` if it
        is too large.
        """
        cache = self._choose_cache(path)
        cached_response = cache.get((pool, path))
        fresh_seconds = self._fresh if fresh_seconds is None else fresh_seconds
        if (
            cached_response is not None
            and time.monotonic() - cached_response.received_at < fresh_seconds
        ):
            return cached_response
        task = self._loading.get((pool, path))
        if task is None:
            task = asyncio.create_task(self._send_request(pool, path))
            self._loading[pool, path] = task
            task.add_done_callback(lambda _: self._loading.pop((pool, path), None))
        if cached_response is None:
            return await asyncio.shield(task)
        await asyncio.wait([task], timeout=self._patience if wait_seconds is None else wait_seconds)
        return task.result() if task.done() else cached_response

    def _choose_cache(self, path: str) -> dict[tuple[str, str], CachedResponse]:
        if path in _PATHS_ON_DISK:
            return self._reports
        return self._files if path.startswith(_FILE_PATHS) else self._responses

    async def _send_request(self, pool: str, path: str) -> CachedResponse:
        key, cache = (pool, path), self._choose_cache(path)
        cached_response = cache.get(key)
        try:
            response = await self._client.get(pool, path)
        except ServiceUnavailable:
            # An unreachable pool's configuration is unknown, so assume that the cached response is
            # valid.
            cached_response = cached_response or await self._read_from_disk(pool, path)
            if cached_response is None:
                raise
            new_response = replace(cached_response, received_at=time.monotonic())
        else:
            new_response = await self._merge_response(pool, path, cached_response, response)
        if cache is self._files and len(new_response.value or b"") > _MAX_CACHED_FILE_BYTES:
            cache.pop(key, None)
        else:
            cache[key] = new_response
        return new_response

    async def _merge_response(
        self, pool: str, path: str, cached_response: CachedResponse | None, response: PoolResponse
    ) -> CachedResponse:
        """Return the new response, or the cached one if no renderer is up.

        Raises `PoolStarting` or `ServiceUnavailable` if there is neither.
        """
        if response.state == "up":
            new_response = CachedResponse(response.content, time.monotonic(), response.version)
            if (
                cached_response is None
                or replace(cached_response, received_at=new_response.received_at) != new_response
            ):
                await self._write_to_disk(pool, path, new_response)
            return new_response
        cached_response = cached_response or await self._read_from_disk(pool, path)
        if cached_response is not None and cached_response.version == response.version:
            # Mark the cached response as fresh, because a new request would find no renderer
            # either.
            return replace(cached_response, received_at=time.monotonic())
        self._choose_cache(path).pop((pool, path), None)
        error_class = PoolStarting if response.state == "starting" else ServiceUnavailable
        raise error_class(f"pool {pool!r} has no running renderer; try again", retry_after=5)

    async def _read_from_disk(self, pool: str, path: str) -> CachedResponse | None:
        file = self._find_file(pool, path)
        if file is None:
            return None
        try:
            version, _, content = (await asyncio.to_thread(file.read_bytes)).partition(b"\n")
        except OSError:
            return None
        return CachedResponse(content, float("-inf"), version.decode(errors="replace"))

    async def _write_to_disk(self, pool: str, path: str, response: CachedResponse) -> None:
        file = self._find_file(pool, path)
        if file is not None and response.value is not None:
            try:
                content = response.version.encode() + b"\n" + response.value
                await asyncio.to_thread(_write_file, file, content)
            except OSError as error:
                _log.warning("pool %s: the response to %s is not cached: %s", pool, path, error)

    def _find_file(self, pool: str, path: str) -> Path | None:
        if self._folder is None or path not in _PATHS_ON_DISK:
            return None
        suffix = _PATHS_ON_DISK[path]
        return self._folder / f"{hashlib.sha256(pool.encode()).hexdigest()[:16]}{suffix}.json"


def _write_file(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Several processes of a machine write the same file.
    temporary_file = file.with_suffix(f".{os.getpid()}.new")
    temporary_file.write_bytes(content)
    temporary_file.replace(file)
