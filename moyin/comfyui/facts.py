"""`FarmFacts`: what the farm's ComfyUIs say of themselves, kept, so that nobody waits for them.

Facts of a pool are kept while none of its renderers is up, such as after it was scaled down to
nothing: its nodes can still be used, and the next job starts one. They are dropped as soon as the
pool runs with another configuration.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import unquote

from pydantic_core import from_json

from moyin.comfyui.prompts import Memory
from moyin.errors import NotFound, ServiceUnavailable
from moyin.protocols.comfyui.facts import union_of_nodes
from moyin.protocols.comfyui.offers import Offer, has_all, has_nodes, offer_of

__all__ = ["Asker", "FarmFacts", "PoolAnswer"]

_log = logging.getLogger(__name__)
_FRESH_SECONDS = 10.0
# How long an old answer is held back for a new one.
_PATIENCE_SECONDS = 0.5
# A graph waits this long for the nodes of a pool that is starting, and looks this often.
_START_SECONDS = 20.0
_LOOK_SECONDS = 0.5
_REMEMBERED = 128
# Files of node packages, of which a page asks for many; large ones are fetched each time.
_FILES = "/extensions/"
_REMEMBERED_FILES = 256
_KEPT_BYTES = 256 * 1024
_NODES = "/object_info"
T = TypeVar("T")


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


class Asker(Protocol):
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
class _Answer:
    """``at``: of the monotonic clock; infinitely long ago for what a file remembered."""

    value: bytes | None
    at: float
    version: str


class _Starting(ServiceUnavailable):
    """Raised for a pool that is starting and whose facts are not known."""


class FarmFacts:
    """One per gateway replica.

    Args:
        folder: where the nodes of every pool are kept for the next start.
        start: seconds that a graph waits for the nodes of a pool that is starting.
    """

    def __init__(
        self,
        asker: Asker,
        *,
        folder: Path | None = None,
        fresh: float = _FRESH_SECONDS,
        patience: float = _PATIENCE_SECONDS,
        start: float = _START_SECONDS,
    ) -> None:
        self._asker = asker
        self._folder = folder
        self._fresh = fresh
        self._patience = patience
        self._start = start
        self._answers: Memory[tuple[str, str], _Answer] = Memory(_REMEMBERED)
        self._files: Memory[tuple[str, str], _Answer] = Memory(_REMEMBERED_FILES)
        self._loading: dict[tuple[str, str], asyncio.Task[_Answer]] = {}
        self._offers: Memory[str, tuple[bytes, Offer]] = Memory(_REMEMBERED)
        self._merged: Memory[str, tuple[list[bytes], Any]] = Memory(_REMEMBERED)

    async def nodes(self) -> dict[str, Any]:
        """``/object_info`` of all pools together. Leave it as it is.

        Raises:
            ServiceUnavailable: no pool ever said what it has.
        """
        return await self.union(_NODES, union_of_nodes)

    async def union(self, path: str, merge: Callable[[list[Any]], T]) -> T:
        """What all pools say at ``path``, as JSON, put together. Leave it as it is.

        Raises:
            ServiceUnavailable: no pool said anything yet.
            NotFound: they have nothing there.
        """
        said = await self._said(path)
        known = self._merged.get(path)
        if known is not None and known[0] == said:
            merged: T = known[1]
            return merged
        try:
            merged = await asyncio.to_thread(lambda: merge([from_json(one) for one in said]))
        except ValueError:
            raise ServiceUnavailable("a render pool answered nonsense") from None
        self._merged[path] = (said, merged)
        return merged

    async def first(self, path: str) -> bytes:
        """What the first pool says that has something at ``path``.

        Raises:
            ServiceUnavailable, NotFound: see `union`.
        """
        return (await self._said(path))[0]

    async def each(self, path: str) -> list[Any]:
        """What every renderer of every pool says now, as JSON."""
        found = await asyncio.gather(
            *(self._asker.ask_all(pool, path) for pool in self._asker.pools)
        )
        return [from_json(said) for pool in found for _, said in sorted(pool.items())]

    async def pool_for(self, graph: Mapping[str, Any]) -> str:
        """Return the first pool that has every node and file of the graph.

        When no pool lists all of them, return the first that has its nodes, which may take more
        files than they list, and else the very first: it says best itself what it lacks. A pool
        that is starting is waited for, so that its graphs do not run on another one meanwhile.

        Raises:
            ServiceUnavailable: a pool is still starting, and a pool before it does not have it all.
        """
        pools = self._asker.pools
        if len(pools) == 1:
            return pools[0]
        able: list[str] = []
        deadline = time.monotonic() + self._start
        for pool in pools:
            offer = await self._offer(pool, deadline)
            if offer is not None and has_all(offer, graph):
                return pool
            if offer is not None and has_nodes(offer, graph):
                able.append(pool)
        return able[0] if able else pools[0]

    async def close(self) -> None:
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _said(self, path: str) -> list[bytes]:
        segments = path.partition("?")[0].split("/")[1:]
        if any(unquote(segment) in ("", ".", "..") for segment in segments):
            # It would be another route of the worker's, such as that of everybody's prompts.
            raise NotFound(f"there is no {path}")
        pools = self._asker.pools
        found = await asyncio.gather(
            *(self._answer(pool, path) for pool in pools), return_exceptions=True
        )
        answers = [one for one in found if isinstance(one, _Answer)]
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, ServiceUnavailable):
                raise one
        if not answers:
            raise ServiceUnavailable("no render pool has answered yet", retry_after=5)
        said = [one.value for one in answers if one.value is not None]
        if not said:
            raise NotFound(f"there is no {path}")
        return said

    async def _offer(self, pool: str, deadline: float) -> Offer | None:
        """Return what the pool has; None when it is down and never said so.

        Raises:
            ServiceUnavailable: it is starting, and the deadline has passed.
        """
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    said = (await self._answer(pool, _NODES)).value
                break
            except (_Starting, TimeoutError):
                if time.monotonic() >= deadline:
                    raise ServiceUnavailable(
                        f"render pool {pool!r} is starting, and its nodes are not known yet;"
                        " try again later",
                        retry_after=5,
                    ) from None
            except ServiceUnavailable:
                return None
            await asyncio.sleep(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        known = self._offers.get(pool)
        if said is None or (known is not None and known[0] == said):
            return None if known is None else known[1]
        try:
            offer = await asyncio.to_thread(lambda: offer_of(from_json(said)))
        except ValueError:
            return None
        self._offers[pool] = (said, offer)
        return offer

    async def _answer(self, pool: str, path: str) -> _Answer:
        answers = self._kind(path)
        known = answers.get((pool, path))
        if known is not None and time.monotonic() - known.at < self._fresh:
            return known
        task = self._loading.get((pool, path))
        if task is None:
            task = asyncio.create_task(self._load(pool, path))
            self._loading[pool, path] = task
            task.add_done_callback(lambda _: self._loading.pop((pool, path), None))
        if known is None:
            return await asyncio.shield(task)
        await asyncio.wait([task], timeout=self._patience)
        return task.result() if task.done() else known

    def _kind(self, path: str) -> Memory[tuple[str, str], _Answer]:
        return self._files if path.startswith(_FILES) else self._answers

    async def _load(self, pool: str, path: str) -> _Answer:
        key, answers = (pool, path), self._kind(path)
        before = answers.get(key)
        try:
            fetched = await self._asker.ask(pool, path)
        except ServiceUnavailable:
            # A pool that can't be reached tells no version: its last facts are the best guess.
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
        self, pool: str, path: str, before: _Answer | None, fetched: PoolAnswer
    ) -> _Answer:
        """Return the pool's answer, or its last one while none of its renderers is up.

        Raises:
            ServiceUnavailable: none is up, and it never answered with its present configuration.
        """
        if fetched.state == "up":
            answer = _Answer(fetched.content, time.monotonic(), fetched.version)
            if before is None or replace(before, at=answer.at) != answer:
                await self._remember(pool, path, answer)
            return answer
        before = before or await self._remembered(pool, path)
        if before is not None and before.version == fetched.version:
            # Ask again only after a while: the pool has no renderer that could answer.
            return replace(before, at=time.monotonic())
        self._kind(path).pop((pool, path), None)
        error = _Starting if fetched.state == "starting" else ServiceUnavailable
        raise error(f"no renderer of pool {pool!r} is up", retry_after=5)

    async def _remembered(self, pool: str, path: str) -> _Answer | None:
        file = self._file(pool, path)
        if file is None:
            return None
        try:
            version, _, content = (await asyncio.to_thread(file.read_bytes)).partition(b"\n")
        except OSError:
            return None
        return _Answer(content, float("-inf"), version.decode(errors="replace"))

    async def _remember(self, pool: str, path: str, answer: _Answer) -> None:
        file = self._file(pool, path)
        if file is not None and answer.value is not None:
            try:
                content = answer.version.encode() + b"\n" + answer.value
                await asyncio.to_thread(_write, file, content)
            except OSError as error:
                _log.warning("the nodes of pool %s could not be kept: %s", pool, error)

    def _file(self, pool: str, path: str) -> Path | None:
        if self._folder is None or path != _NODES:
            return None
        return self._folder / f"{hashlib.sha256(pool.encode()).hexdigest()[:16]}.json"


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".new")
    scratch.write_bytes(content)
    scratch.replace(file)
