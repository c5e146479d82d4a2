"""`PoolAnswers`: caches the pools' responses in memory, and the lasting ones on disk.

Responses stay valid while none of a pool's renderers is up, for example after the pool was scaled
down to zero. They are dropped when the pool runs with another configuration.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from moyin.errors import ServiceUnavailable
from moyin.system.bounded import BoundedDict

__all__ = [
    "FRESH_SECONDS",
    "NODES",
    "PATIENCE_SECONDS",
    "RULES",
    "Answer",
    "PoolAnswer",
    "PoolAnswers",
    "PoolClient",
    "PoolStarting",
]

NODES = "/object_info"
# The pool's own rules; this is not a path of ComfyUI.
RULES = "/moyin/rules"
FRESH_SECONDS = 10.0
# How long an old response is held back while a new one is fetched.
PATIENCE_SECONDS = 0.5
# Paths whose responses are also written to disk.
_LASTING = (NODES, RULES)
_REMEMBERED = 128
# Files of node packages: a page needs many of them; large ones are not cached.
_FILES = "/extensions/"
_REMEMBERED_FILES = 256
_MAX_CACHED_FILE_BYTES = 256 * 1024
_log = logging.getLogger(__name__)


class PoolStarting(ServiceUnavailable):
    """Raised for a pool that is starting and has not answered with its present configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolAnswer:
    """The response of a render pool to a GET request for its ComfyUIs.

    Attributes:
        version: fingerprint of the configuration, which decides the pool's nodes and models.
        state: ``up``: a renderer answered; ``starting``: one will soon; ``down``: none will.
        content: the body; None: there is nothing at this path, or no renderer is up.
    """

    version: str
    state: Literal["up", "starting", "down"]
    content: bytes | None = None


class PoolClient(Protocol):
    """Sends requests to the pools."""

    @property
    def pools(self) -> Sequence[str]: ...

    async def get(self, pool: str, path: str) -> PoolAnswer:
        """Send a GET request to one renderer of the pool.

        Raises:
            ServiceUnavailable: the pool cannot be reached, or its ComfyUI failed on the request.
        """
        ...

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        """Send a GET request to all renderers; return the bodies of those that answer, by name."""
        ...


@dataclass(slots=True)
class Answer:
    """A cached response.

    Attributes:
        at: time of the response by the monotonic clock; minus infinity if it was read from disk.
    """

    value: bytes | None
    at: float
    version: str


class PoolAnswers:
    """Sends one request to a pool for any number of callers, and caches the response.

    Args:
        folder: folder of the responses on disk; None: none are written.
        fresh: seconds for which a cached response is used without a new request.
        patience: seconds for which an older one is held back for a new one.
    """

    def __init__(
        self, client: PoolClient, *, folder: Path | None, fresh: float, patience: float
    ) -> None:
        self._client = client
        self._folder = folder
        self._fresh = fresh
        self._patience = patience
        self._answers: BoundedDict[tuple[str, str], Answer] = BoundedDict(_REMEMBERED)
        self._files: BoundedDict[tuple[str, str], Answer] = BoundedDict(_REMEMBERED_FILES)
        self._loading: dict[tuple[str, str], asyncio.Task[Answer]] = {}

    async def close(self) -> None:
        """Cancel the requests in progress."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def of(
        self, pool: str, path: str, fresh: float | None = None, patience: float | None = None
    ) -> Answer:
        """Return the pool's response to GET ``path``.

        Args:
            fresh: overrides the default of this cache.
            patience: overrides the default of this cache.

        Raises:
            PoolStarting: the pool is starting, and its response is not cached.
            ServiceUnavailable: the pool is down, and its response is not cached.
        """
        answers = self._cache(path)
        known = answers.get((pool, path))
        fresh = self._fresh if fresh is None else fresh
        if known is not None and time.monotonic() - known.at < fresh:
            return known
        task = self._loading.get((pool, path))
        if task is None:
            task = asyncio.create_task(self._load(pool, path))
            self._loading[pool, path] = task
            task.add_done_callback(lambda _: self._loading.pop((pool, path), None))
        if known is None:
            return await asyncio.shield(task)
        await asyncio.wait([task], timeout=self._patience if patience is None else patience)
        return task.result() if task.done() else known

    def _cache(self, path: str) -> BoundedDict[tuple[str, str], Answer]:
        return self._files if path.startswith(_FILES) else self._answers

    async def _load(self, pool: str, path: str) -> Answer:
        key, answers = (pool, path), self._cache(path)
        before = answers.get(key)
        try:
            response = await self._client.get(pool, path)
        except ServiceUnavailable:
            # The version of an unreachable pool is unknown: its last response is the best guess.
            before = before or await self._read(pool, path)
            if before is None:
                raise
            answer = replace(before, at=time.monotonic())
        else:
            answer = await self._current(pool, path, before, response)
        if answers is self._files and len(answer.value or b"") > _MAX_CACHED_FILE_BYTES:
            answers.pop(key, None)
        else:
            answers[key] = answer
        return answer

    async def _current(
        self, pool: str, path: str, before: Answer | None, response: PoolAnswer
    ) -> Answer:
        """Return the pool's response, or its last one while none of its renderers is up.

        Raises:
            ServiceUnavailable: none is up, and it never answered with its present configuration.
        """
        if response.state == "up":
            answer = Answer(response.content, time.monotonic(), response.version)
            if before is None or replace(before, at=answer.at) != answer:
                await self._save(pool, path, answer)
            return answer
        before = before or await self._read(pool, path)
        if before is not None and before.version == response.version:
            # Fresh again, because a new request would find no renderer either.
            return replace(before, at=time.monotonic())
        self._cache(path).pop((pool, path), None)
        error = PoolStarting if response.state == "starting" else ServiceUnavailable
        raise error(f"no renderer of pool {pool!r} is up", retry_after=5)

    async def _read(self, pool: str, path: str) -> Answer | None:
        file = self._file(pool, path)
        if file is None:
            return None
        try:
            version, _, content = (await asyncio.to_thread(file.read_bytes)).partition(b"\n")
        except OSError:
            return None
        return Answer(content, float("-inf"), version.decode(errors="replace"))

    async def _save(self, pool: str, path: str, answer: Answer) -> None:
        file = self._file(pool, path)
        if file is not None and answer.value is not None:
            try:
                content = answer.version.encode() + b"\n" + answer.value
                await asyncio.to_thread(_write, file, content)
            except OSError as error:
                _log.warning("the nodes of pool %s could not be saved: %s", pool, error)

    def _file(self, pool: str, path: str) -> Path | None:
        if self._folder is None or path not in _LASTING:
            return None
        kind = "" if path == NODES else ".rules"
        return self._folder / f"{hashlib.sha256(pool.encode()).hexdigest()[:16]}{kind}.json"


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(file)
