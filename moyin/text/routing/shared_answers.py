"""Detects follow-ups to answers of other replicas, outside the request path."""

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
# One batch per interval. Requests beyond its size are matched with this replica's answers only.
_INTERVAL_SECONDS = 0.5
_MAX_LOOKUPS = 100
_BY_FINGERPRINT, _BY_PREVIOUS = b"a", b"n"
# Version, ability, start time and fingerprint; the request id follows.
_VERSION = 1
_HEADER = struct.Struct("<Bdd16s")
# Records a follow-up to one of this replica's own answers.
Fallback: TypeAlias = Callable[[], None]


class AnswerStore(Protocol):
    """Stores answers in Valkey. It never raises because of an outage, and never takes long."""

    @property
    def is_unavailable(self) -> bool: ...

    async def get(self, names: Sequence[bytes]) -> list[bytes | None] | None: ...

    async def pop(self, names: Sequence[bytes]) -> list[bytes | None] | None: ...

    async def put(self, values: Mapping[bytes, bytes], seconds: int) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """Holds what is stored of an answer; its decision's database row has the rest."""

    request_id: str
    ability: float
    at: float
    fingerprint: bytes

    @property
    def name(self) -> bytes:
        return _BY_FINGERPRINT + self.fingerprint


class SharedAnswers:
    """Shares answers with all replicas through Valkey, in batches.

    When Valkey is unavailable or a batch is full, each replica detects follow-ups to its own
    answers.
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
        """Queue a search for the answer that a request follows up; return False if impossible now.

        Args:
            fallback: called if Valkey turns out to be unavailable.
        """
        if self._store.is_unavailable or len(self._lookups) >= _MAX_LOOKUPS:
            return False
        self._lookups.append((lookup, fallback))
        self._wake_up()
        return True

    def remember(
        self, fingerprint: bytes, previous: bytes | None, request_id: str, ability: float, at: float
    ) -> bool:
        """Queue an answer that began ``at`` for sharing; return False if impossible now."""
        if self._store.is_unavailable or len(self._answers) >= 2 * _MAX_LOOKUPS:
            return False
        value = _HEADER.pack(_VERSION, ability, at, fingerprint) + request_id.encode()
        self._answers[_BY_FINGERPRINT + fingerprint] = value
        if previous is not None:
            self._answers[_BY_PREVIOUS + previous] = value
        self._wake_up()
        return True

    async def close(self) -> None:
        """Process what is queued and close the store."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._process_safely()
        await self._store.close()

    async def process_pending(self) -> None:
        """Process the queued lookups, then share the queued answers."""
        lookups, self._lookups = self._lookups, []
        answers, self._answers = self._answers, {}
        # Lookups first: a request's own answer would replace the answer that it follows up.
        try:
            if lookups and not await self._match(lookups):
                for _, fallback in lookups:
                    fallback()
        finally:
            # Even if the database failed.
            if answers:
                await self._store.put(answers, int(MAX_SECONDS))

    def _wake_up(self) -> None:
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_INTERVAL_SECONDS)
            self._wake.clear()
            await self._process_safely()

    async def _process_safely(self) -> None:
        try:
            await self.process_pending()
        except Exception:
            _log.exception("follow-ups could not be recorded")

    async def _match(self, lookups: Sequence[tuple[Lookup, Fallback]]) -> bool:
        """Record signals for matched lookups; return False if Valkey is unavailable."""
        names = [name for lookup, _ in lookups for name in _keys(lookup)]
        values = await self._store.get(names)
        if values is None:
            return False
        stored = dict(zip(names, values, strict=True))
        matches: list[tuple[Lookup, Evidence, _Answer]] = []
        for lookup, _ in lookups:
            match = self._evidence(lookup, stored)
            if match is not None:
                matches.append((lookup, *match))
        if not matches:
            return True
        taken = await self._store.pop([answer.name for _, _, answer in matches])
        if taken is None:
            return False
        for (lookup, evidence, answer), value in zip(matches, taken, strict=True):
            if value is not None and _decode(value) == answer:
                await self._record(lookup, evidence, answer)
        return True

    def _evidence(
        self, lookup: Lookup, stored: Mapping[bytes, bytes | None]
    ) -> tuple[Evidence, _Answer] | None:
        """Return the evidence that a request gives, and the answer that it is about."""
        repeated, *rest = (_recent_answer(stored[name], lookup.at) for name in _keys(lookup))
        if repeated is not None:
            return evidence_of_repeat(lookup, repeated.ability), repeated
        if not rest:
            return None
        previous, sibling = rest
        if previous is not None:
            return evidence_of_next_message(lookup), previous
        return None if sibling is None else (EDITED, sibling)

    async def _record(self, lookup: Lookup, evidence: Evidence, answer: _Answer) -> None:
        row = await self._learning.find_decision(lookup.owner, answer.request_id)
        if row is None:
            # The decision was not written because the database was unavailable.
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
    """Return the store's keys for a lookup.

    They find a repeat of the request, the answer before its newest message, and an answer to
    another version of that message.
    """
    if lookup.previous is None:
        return [_BY_FINGERPRINT + lookup.fingerprint]
    return [
        _BY_FINGERPRINT + lookup.fingerprint,
        _BY_FINGERPRINT + lookup.previous,
        _BY_PREVIOUS + lookup.previous,
    ]


def _recent_answer(value: bytes | None, at: float) -> _Answer | None:
    """Return the stored answer if a request that arrived ``at`` may follow it up."""
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
