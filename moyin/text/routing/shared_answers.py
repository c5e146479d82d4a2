"""Follow-ups to answers of other replicas, noticed beside the requests and never in front of them."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from moyin.text.quality.estimator import Signal
from moyin.text.routing.followup_evidence import (
    EDITED,
    MAX_SECONDS,
    MIN_SECONDS,
    Evidence,
    Lookup,
    evidence_of_next_message,
    evidence_of_repeat,
)
from moyin.text.routing.learning import Learning
from moyin.text.routing.request_quality import question_from_json

__all__ = ["AnswerStore", "SharedAnswers"]

_log = logging.getLogger(__name__)
# So often Valkey is asked, for at most so many requests; of more only their own replica knows.
_EVERY_SECONDS = 0.5
_MAX_LOOKUPS = 100
_PLACE, _NEWEST = b"a", b"n"
# A version, the ability, when it began, and the name of its conversation; the request's id follows.
_VERSION = 1
_HEADER = struct.Struct("<Bdd16s")
# Notes a follow-up that the replica knows of by itself.
Fallback: TypeAlias = Callable[[], None]


class AnswerStore(Protocol):
    """Never raises for an outage, and never takes long."""

    @property
    def away(self) -> bool: ...

    async def get(self, names: Sequence[bytes]) -> list[bytes | None] | None: ...

    async def take(self, names: Sequence[bytes]) -> list[bytes | None] | None: ...

    async def put(self, values: Mapping[bytes, bytes], seconds: int) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is kept of an answer; the rest is in the row of its decision."""

    request_id: str
    ability: float
    at: float
    fingerprint: bytes

    @property
    def name(self) -> bytes:
        return _PLACE + self.fingerprint


class SharedAnswers:
    """Keeps the answers of all replicas where each finds them, in batches.

    When Valkey is away, or there is more to do than fits, each replica notices what it answered itself.
    """

    def __init__(
        self, store: AnswerStore, learning: Learning, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._learning = learning
        self._clock = clock
        self._lookups: list[tuple[Lookup, Fallback]] = []
        self._answers: dict[bytes, bytes] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def look_up(self, lookup: Lookup, fallback: Fallback) -> bool:
        """Look beside the request whether it follows up an answer of any replica; False: not now.

        Args:
            fallback: called when Valkey turns out to be away.
        """
        if self._store.away or len(self._lookups) >= _MAX_LOOKUPS:
            return False
        self._lookups.append((lookup, fallback))
        self._wake_up()
        return True

    def remember(
        self, fingerprint: bytes, previous: bytes | None, request_id: str, ability: float, at: float
    ) -> bool:
        """Let other replicas know of an answer that began ``at``; False: not now."""
        if self._store.away or len(self._answers) >= 2 * _MAX_LOOKUPS:
            return False
        value = _HEADER.pack(_VERSION, ability, at, fingerprint) + request_id.encode()
        self._answers[_PLACE + fingerprint] = value
        if previous is not None:
            self._answers[_NEWEST + previous] = value
        self._wake_up()
        return True

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._process_safely()
        await self._store.close()

    async def process_pending(self) -> None:
        """Do what waits."""
        lookups, self._lookups = self._lookups, []
        answers, self._answers = self._answers, {}
        # In this order: a request is looked up before its own answer takes the place of the other.
        try:
            if lookups and not await self._match(lookups):
                for _, fallback in lookups:
                    fallback()
        finally:
            # Whatever the database said.
            if answers:
                await self._store.put(answers, int(MAX_SECONDS))

    def _wake_up(self) -> None:
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_EVERY_SECONDS)
            self._wake.clear()
            await self._process_safely()

    async def _process_safely(self) -> None:
        try:
            await self.process_pending()
        except Exception:
            _log.exception("follow-ups could not be noted")

    async def _match(self, lookups: Sequence[tuple[Lookup, Fallback]]) -> bool:
        """Note what follows up an answer; False when Valkey is away."""
        names = [name for lookup, _ in lookups for name in _keys(lookup)]
        values = await self._store.get(names)
        if values is None:
            return False
        known = dict(zip(names, values, strict=True))
        found: list[tuple[Lookup, Evidence, _Answer]] = []
        for lookup, _ in lookups:
            hit = self._evidence(lookup, known)
            if hit is not None:
                found.append((lookup, *hit))
        if not found:
            return True
        taken = await self._store.take([answer.name for _, _, answer in found])
        if taken is None:
            return False
        for (lookup, evidence, answer), value in zip(found, taken, strict=True):
            if value is not None and _decode(value) == answer:
                await self._record(lookup, evidence, answer)
        return True

    def _evidence(
        self, lookup: Lookup, known: Mapping[bytes, bytes | None]
    ) -> tuple[Evidence, _Answer] | None:
        """What the request says, and of which answer."""
        same, *others = (_recent_answer(known[name], lookup.at) for name in _keys(lookup))
        if same is not None:
            return evidence_of_repeat(lookup, same.ability), same
        if not others:
            return None
        previous, sibling = others
        if previous is not None:
            return evidence_of_next_message(lookup), previous
        return None if sibling is None else (EDITED, sibling)

    async def _record(self, lookup: Lookup, evidence: Evidence, answer: _Answer) -> None:
        row = await self._learning.find_decision(lookup.owner, answer.request_id)
        if row is None:
            # The database was away when it was decided.
            return
        signal = Signal(
            model=row.model,
            question=question_from_json(row.question),
            score=evidence.score,
            weight=evidence.weight,
            source=evidence.source,
            key=lookup.key_id,
            at=self._clock(),
        )
        self._learning.record_signal(lookup.owner, answer.request_id, signal, p_good=row.p_good)


def _keys(lookup: Lookup) -> list[bytes]:
    """Of the same conversation, then of the one before the newest message, and of what was said
    there instead."""
    if lookup.previous is None:
        return [_PLACE + lookup.fingerprint]
    return [_PLACE + lookup.fingerprint, _PLACE + lookup.previous, _NEWEST + lookup.previous]


def _recent_answer(value: bytes | None, at: float) -> _Answer | None:
    """The answer, where a request that came at ``at`` may follow it up."""
    answer = None if value is None else _decode(value)
    if answer is None:
        return None
    return answer if MIN_SECONDS <= at - answer.at <= MAX_SECONDS else None


def _decode(value: bytes) -> _Answer | None:
    if len(value) <= _HEADER.size:
        return None
    version, ability, at, fingerprint = _HEADER.unpack_from(value)
    if version != _VERSION:
        return None
    return _Answer(value[_HEADER.size :].decode(errors="replace"), ability, at, fingerprint)
