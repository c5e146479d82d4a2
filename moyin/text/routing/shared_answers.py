"""Shares answers among replicas through Valkey, so that follow-ups in any replica are detected."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from moyin.text.routing.followup_evidence import (
    EDITED,
    MAX_SECONDS,
    MIN_SECONDS,
    Evidence,
    FollowUpQuery,
    evidence_from_next_message,
    evidence_from_repeat,
)
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.request_quality import question_from_json

_log = logging.getLogger(__name__)
# One batch is processed per interval. Further requests are matched only with this replica's answers.
_BATCH_INTERVAL_SECONDS = 0.5
_MAX_QUERIES = 100
_BY_FINGERPRINT, _BY_PREVIOUS = b"a", b"n"
# A stored answer begins with version, ability, time and fingerprint, and ends with its request id.
_VERSION = 1
_HEADER = struct.Struct("<Bdd16s")
# Callback that records a follow-up to one of this replica's own answers if Valkey is unavailable.
Fallback: TypeAlias = Callable[[], None]


class AnswerStore(Protocol):
    """Storage of answers in Valkey; `get` and `pop` return None during an outage.

    Values that `put` stores expire after ``seconds``.
    """

    @property
    def is_unavailable(self) -> bool: ...

    async def get(self, names: Sequence[bytes]) -> list[bytes | None] | None: ...

    async def pop(self, names: Sequence[bytes]) -> list[bytes | None] | None: ...

    async def put(self, values: Mapping[bytes, bytes], lifetime_seconds: int) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _StoredAnswer:
    """The part of an answer's data that is in Valkey.

    The model and the features of the question are in the database.
    """

    request_id: str
    ability: float
    at: float
    fingerprint: bytes

    @property
    def key(self) -> bytes:
        return _BY_FINGERPRINT + self.fingerprint


class SharedAnswers:
    """Background service that stores answers in Valkey and looks them up, in batches.

    If Valkey is unavailable or a batch is full, the replica detects only follow-ups to its own
    answers.
    """

    def __init__(
        self,
        store: AnswerStore,
        learning: QualityLearner,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._learning = learning
        self._clock = clock
        self._queries: list[tuple[FollowUpQuery, Fallback]] = []
        self._answers: dict[bytes, bytes] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def queue_query(self, query: FollowUpQuery, fallback: Fallback) -> bool:
        """Queue the search for the answer that a request follows up.

        Args:
            fallback: called if Valkey turns out to be unavailable when the query is processed.

        Returns:
            False if the query was not queued: Valkey is unavailable, or the batch is full.
        """
        if self._store.is_unavailable or len(self._queries) >= _MAX_QUERIES:
            return False
        self._queries.append((query, fallback))
        self._wake_up()
        return True

    def queue_answer(
        self,
        fingerprint: bytes,
        previous_fingerprint: bytes | None,
        request_id: str,
        ability: float,
        arrived_at: float,
    ) -> bool:
        """Queue an answer for storage; return False if Valkey is unavailable or the batch is full.

        Args:
            fingerprint: keyed hash of the answered request's conversation.
            previous_fingerprint: keyed hash of the conversation without its newest message; None if
                it has no other message.
            ability: ability of the model that answered, in logits.
            arrived_at: the Unix time at which the request arrived.
        """
        if self._store.is_unavailable or len(self._answers) >= 2 * _MAX_QUERIES:
            return False
        encoded_answer = (
            _HEADER.pack(_VERSION, ability, arrived_at, fingerprint) + request_id.encode()
        )
        self._answers[_BY_FINGERPRINT + fingerprint] = encoded_answer
        if previous_fingerprint is not None:
            self._answers[_BY_PREVIOUS + previous_fingerprint] = encoded_answer
        self._wake_up()
        return True

    async def close(self) -> None:
        """Process the queued queries and answers, and close the store."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._process_and_log_errors()
        await self._store.close()

    async def process_batch(self) -> None:
        """Look up the answers that the queued queries search for, then store the queued answers."""
        queries, self._queries = self._queries, []
        answers, self._answers = self._answers, {}
        # Queries run first, because a request's own answer would replace the answer that it follows
        # up.
        try:
            if queries and not await self._match_queries(queries):
                for _, fallback in queries:
                    fallback()
        finally:
            # The answers are stored even if the queries failed.
            if answers:
                await self._store.put(answers, int(MAX_SECONDS))

    def _wake_up(self) -> None:
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_batches())

    async def _run_batches(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_BATCH_INTERVAL_SECONDS)
            self._wake.clear()
            await self._process_and_log_errors()

    async def _process_and_log_errors(self) -> None:
        try:
            await self.process_batch()
        except Exception:
            _log.exception("a batch of follow-ups could not be recorded and is lost")

    async def _match_queries(self, queries: Sequence[tuple[FollowUpQuery, Fallback]]) -> bool:
        """Record a signal for each query whose answer is found in Valkey.

        Returns:
            False if Valkey is unavailable.
        """
        keys = [name for query, _ in queries for name in _build_keys(query)]
        values = await self._store.get(keys)
        if values is None:
            return False
        stored_values = dict(zip(keys, values, strict=True))
        matches: list[tuple[FollowUpQuery, Evidence, _StoredAnswer]] = []
        for query, _ in queries:
            answer_match = self._find_evidence(query, stored_values)
            if answer_match is not None:
                matches.append((query, *answer_match))
        if not matches:
            return True
        popped_values = await self._store.pop([answer.key for _, _, answer in matches])
        if popped_values is None:
            return False
        for (query, evidence, answer), value in zip(matches, popped_values, strict=True):
            if value is not None and _decode_answer(value) == answer:
                await self._record_signal(query, evidence, answer)
        return True

    def _find_evidence(
        self, query: FollowUpQuery, stored_values: Mapping[bytes, bytes | None]
    ) -> tuple[Evidence, _StoredAnswer] | None:
        """Return the answer that a request follows up and the evidence about it, or None.

        Args:
            stored_values: the values in Valkey, by the keys that `_build_keys` returns.
        """
        repeated_answer, *earlier_answers = (
            _decode_recent_answer(stored_values[name], query.at) for name in _build_keys(query)
        )
        if repeated_answer is not None:
            return evidence_from_repeat(query, repeated_answer.ability), repeated_answer
        if not earlier_answers:
            return None
        previous_answer, sibling_answer = earlier_answers
        if previous_answer is not None:
            return evidence_from_next_message(query), previous_answer
        return None if sibling_answer is None else (EDITED, sibling_answer)

    async def _record_signal(
        self, query: FollowUpQuery, evidence: Evidence, answer: _StoredAnswer
    ) -> None:
        row = await self._learning.find_decision(query.owner, answer.request_id)
        if row is None:
            # The decision was dropped while the database was unavailable.
            return
        question = question_from_json(row.question)
        signal = evidence.to_signal(row.model, question, query, self._clock())
        self._learning.record_signal(query.owner, answer.request_id, signal, p_good=row.p_good)


def _build_keys(query: FollowUpQuery) -> list[bytes]:
    """Return the keys under which the answer that a request follows up may be stored.

    The first key finds the answer if the client repeats the request. The second key finds it if the
    newest message replies to it, and the third if the client has edited its message since then.
    """
    if query.previous is None:
        return [_BY_FINGERPRINT + query.fingerprint]
    return [
        _BY_FINGERPRINT + query.fingerprint,
        _BY_FINGERPRINT + query.previous,
        _BY_PREVIOUS + query.previous,
    ]


def _decode_recent_answer(value: bytes | None, arrived_at: float) -> _StoredAnswer | None:
    """Decode a stored answer; return None if it is too old or too new to be followed up.

    Args:
        arrived_at: the Unix time at which the later request arrived.
    """
    answer = None if value is None else _decode_answer(value)
    if answer is None:
        return None
    return answer if MIN_SECONDS <= arrived_at - answer.at <= MAX_SECONDS else None


def _decode_answer(value: bytes) -> _StoredAnswer | None:
    if len(value) <= _HEADER.size:
        return None
    version, ability, arrived_at, fingerprint = _HEADER.unpack_from(value)
    if version != _VERSION:
        return None
    return _StoredAnswer(
        value[_HEADER.size :].decode(errors="replace"), ability, arrived_at, fingerprint
    )
