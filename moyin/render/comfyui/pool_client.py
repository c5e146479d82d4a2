"""`PoolAnswers`: what each pool has answered, kept, and the last of it for the next start.

Answers are kept while none of a pool's renderers is up, such as after it was scaled down to nothing.
They are dropped as soon as the pool runs with another configuration.
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
from moyin.render.comfyui.prompts import BoundedDict

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
# What a pool says of itself there; it is none of ComfyUI's paths.
RULES = "/moyin/rules"
FRESH_SECONDS = 10.0
# How long an old answer is held back for a new one.
PATIENCE_SECONDS = 0.5
# Kept for the next start.
_LASTING = (NODES, RULES)
_REMEMBERED = 128
# Files of node packages, of which a page asks for many; large ones are fetched each time.
_FILES = "/extensions/"
_REMEMBERED_FILES = 256
_KEPT_BYTES = 256 * 1024
_log = logging.getLogger(__name__)


class PoolStarting(ServiceUnavailable):
    """Raised for a pool that is starting and has not answered with its present configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolAnswer:
    """What a render pool answered to a GET request for its ComfyUIs.

    Attributes:
        version: fingerprint of the configuration that decides which nodes and models the pool has.
        state: ``up``: a renderer answered; ``starting``: one will soon; ``down``: none will.
        content: the body; None: there is nothing at this path, or no renderer is up.
    """

    version: str
    state: Literal["up", "starting", "down"]
    content: bytes | None = None


class PoolClient(Protocol):
    """Reaches the pools."""

    @property
    def pools(self) -> Sequence[str]: ...

    async def ask(self, pool: str, path: str) -> PoolAnswer:
        """Ask one renderer of the pool by GET.

        Raises:
            ServiceUnavailable: the pool cannot be reached, or its ComfyUI stumbled over the request.
        """
        ...

    async def ask_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        """What all of them answer, by name; those that don't answer miss."""
        ...


@dataclass(slots=True)
class Answer:
    """``at``: of the monotonic clock; infinitely long ago for what a file remembered."""

    value: bytes | None
    at: float
    version: str


class PoolAnswers:
    """Asks each pool once for what many want to know.

    Args:
        folder: where what lasts is kept.
    """

    def __init__(
        self, asker: PoolClient, *, folder: Path | None, fresh: float, patience: float
    ) -> None:
        self._asker = asker
        self._folder = folder
        self._fresh = fresh
        self._patience = patience
        self._answers: BoundedDict[tuple[str, str], Answer] = BoundedDict(_REMEMBERED)
        self._files: BoundedDict[tuple[str, str], Answer] = BoundedDict(_REMEMBERED_FILES)
        self._loading: dict[tuple[str, str], asyncio.Task[Answer]] = {}

    async def close(self) -> None:
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def of(
        self, pool: str, path: str, fresh: float | None = None, patience: float | None = None
    ) -> Answer:
        """What the pool answers to GET ``path``.

        Args:
            fresh: seconds for which an answer is as good as a new one; None: the usual.
            patience: seconds for which an older one is held back for a new one; None: the usual.

        Raises:
            PoolStarting: the pool is starting, and its answer is not known.
            ServiceUnavailable: the pool is down, and its answer is not known.
        """
        answers = self._kind(path)
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

    def _kind(self, path: str) -> BoundedDict[tuple[str, str], Answer]:
        return self._files if path.startswith(_FILES) else self._answers

    async def _load(self, pool: str, path: str) -> Answer:
        key, answers = (pool, path), self._kind(path)
        before = answers.get(key)
        try:
            fetched = await self._asker.ask(pool, path)
        except ServiceUnavailable:
            # A pool that can't be reached tells no version: its last answer is the best guess.
            before = before or await self._remembered(pool, path)
            if before is None:
                raise
            answer = replace(before, at=time.monotonic())
        else:
            answer = await self._current(pool, path, before, fetched)
        if answers is self._files and len(answer.value or b"") > _KEPT_BYTES:
            answers.pop(key, None)
        else:
            answers[key] = answer
        return answer

    async def _current(
        self, pool: str, path: str, before: Answer | None, fetched: PoolAnswer
    ) -> Answer:
        """Return the pool's answer, or its last one while none of its renderers is up.

        Raises:
            ServiceUnavailable: none is up, and it never answered with its present configuration.
        """
        if fetched.state == "up":
            answer = Answer(fetched.content, time.monotonic(), fetched.version)
            if before is None or replace(before, at=answer.at) != answer:
                await self._remember(pool, path, answer)
            return answer
        before = before or await self._remembered(pool, path)
        if before is not None and before.version == fetched.version:
            # Ask again only after a while: the pool has no renderer that could answer.
            return replace(before, at=time.monotonic())
        self._kind(path).pop((pool, path), None)
        error = PoolStarting if fetched.state == "starting" else ServiceUnavailable
        raise error(f"no renderer of pool {pool!r} is up", retry_after=5)

    async def _remembered(self, pool: str, path: str) -> Answer | None:
        file = self._file(pool, path)
        if file is None:
            return None
        try:
            version, _, content = (await asyncio.to_thread(file.read_bytes)).partition(b"\n")
        except OSError:
            return None
        return Answer(content, float("-inf"), version.decode(errors="replace"))

    async def _remember(self, pool: str, path: str, answer: Answer) -> None:
        file = self._file(pool, path)
        if file is not None and answer.value is not None:
            try:
                content = answer.version.encode() + b"\n" + answer.value
                await asyncio.to_thread(_write, file, content)
            except OSError as error:
                _log.warning("the nodes of pool %s could not be kept: %s", pool, error)

    def _file(self, pool: str, path: str) -> Path | None:
        if self._folder is None or path not in _LASTING:
            return None
        kind = "" if path == NODES else ".rules"
        return self._folder / f"{hashlib.sha256(pool.encode()).hexdigest()[:16]}{kind}.json"


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".new")
    scratch.write_bytes(content)
    scratch.replace(file)
