"""Keeps one replica's estimator in step with the signals of all replicas, off the hot path."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from moyin.store.quality import OWNER_ACTIONS, DecisionRow, QualityStore, SavedState, SignalRow
from moyin.text.quality.estimator import Estimate, Estimator, Signal, TenantState
from moyin.text.quality.question import Question
from moyin.text.quality.shared_levels import Levels, levels_of, shared_levels
from moyin.text.routing.background_queue import BackgroundQueue
from moyin.text.routing.decision import Candidate
from moyin.text.routing.request_quality import RequestQuality, question_from_json, question_to_json

__all__ = ["Learning"]

_log = logging.getLogger(__name__)
_TICK_SECONDS = 1.0
_SAVE_SECONDS = 60.0
_PRUNE_SECONDS = 3_600.0
_LOAD_SECONDS = 1.0
_AFTER_FAILURE_SECONDS = 10.0
_CAPACITY = 5_000
_BATCH = 200
_PAGE = 500
# Fewer than the estimator holds, so that it never drops an unsaved state.
_TENANTS = 60
_MAX_FAILURES = 5


@dataclass(kw_only=True, slots=True)
class _Decision:
    """Holds a decision as the hot path leaves it; the writer turns it into a row."""

    owner: str
    request_id: str
    model: str
    question: Question
    estimate: Estimate
    options: tuple[tuple[str, int, Estimate], ...]
    at: float

    def row(self) -> DecisionRow:
        """Return the database row."""
        return DecisionRow(
            # Ordered by time, so that the rows of a batch share index pages.
            id=f"{int(self.at * 1000):012x}{secrets.token_hex(10)}",
            owner=self.owner,
            request_id=self.request_id,
            model=self.model,
            question=question_to_json(self.question),
            p_good=self.estimate.p,
            options=[
                [model, pico // 1000, round(estimate.p, 4), round(estimate.low, 4)]
                for model, pico, estimate in self.options
            ],
            created_at=datetime.fromtimestamp(self.at, UTC),
        )


class Learning:
    """Writes decisions and signals in batches, and learns from all replicas' signals in order.

    A tenant's state is loaded with its first request and saved every minute. While the database is
    unavailable, estimates stay as they are. Rows that cannot be written wait in a bounded queue
    and are
    then dropped: they are statistics, not accounts.

    Attributes:
        background: queue of the tasks that learn from requests and answers.
    """

    def __init__(
        self, estimator: Estimator, store: QualityStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.background = BackgroundQueue()
        self._estimator = estimator
        self._store = store
        self._clock = clock
        self._decisions: deque[DecisionRow | _Decision] = deque()
        self._signals: deque[SignalRow] = deque()
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._dirty: set[str] = set()
        self._last_number = -1  # number of the newest signal that was read; -1: none yet
        self._lock = asyncio.Lock()
        self._retry_at = 0.0
        self._is_shared = True
        self._failures = 0
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the loop that writes, reads and saves."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what is queued and save what was learned; never raise."""
        await self.background.close()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        try:
            async with self._lock:
                await self._flush()
                await self._save()
        except Exception:
            _log.exception("quality signals could not be saved at shutdown")

    def set_sharing(self, is_shared: bool) -> None:
        """Set whether tenants learn from each other, from the next minute on."""
        self._is_shared = is_shared
        if not is_shared:
            self._estimator.set_shared_levels({})

    def now(self) -> float:
        """Return the seconds since 1970."""
        return self._clock()

    def is_ready(self, owner: str) -> bool:
        """Return whether the tenant's state is in memory, or cannot be loaded just now."""
        return owner in self._loaded or self._clock() < self._retry_at

    def record_decision(
        self,
        owner: str,
        request_id: str,
        quality: RequestQuality,
        candidates: Sequence[Candidate],
        chosen: Candidate,
        at: float,
    ) -> None:
        """Record which model answers a request, so that its feedback can be attributed."""
        forecast = chosen.forecast
        if forecast is None or forecast.estimate is None:
            return
        if len(self._decisions) >= _CAPACITY:
            self._dropped += 1
            return
        options = tuple(
            (option.deployment.model.name, option.forecast.cost_pico, option.forecast.estimate)
            for option in candidates
            if option.forecast is not None and option.forecast.estimate is not None
        )
        self._decisions.append(
            _Decision(
                owner=owner,
                request_id=request_id,
                model=chosen.deployment.model.name,
                question=quality.question,
                estimate=forecast.estimate,
                options=options,
                at=at,
            )
        )

    def record_signal(
        self,
        owner: str,
        request_id: str,
        signal: Signal,
        *,
        p_good: float | None = None,
        comment: str | None = None,
    ) -> None:
        """Record a signal that the gateway itself observed."""
        if len(self._signals) >= _CAPACITY:
            self._dropped += 1
            return
        self._signals.append(
            SignalRow(
                owner=owner,
                request_id=request_id,
                key_id=signal.key,
                source=signal.source,
                model=signal.model,
                question=question_to_json(signal.question),
                score=signal.score,
                weight=signal.weight,
                p_good=p_good,
                created_at=datetime.fromtimestamp(signal.at, UTC),
                comment=comment,
            )
        )

    async def find_decision(self, owner: str, request_id: str) -> DecisionRow | None:
        """Return the decision on a request of ``owner``, made by any replica."""
        return await self._store.get_decision(owner, request_id)

    async def load(self, owner: str) -> None:
        """Load what the tenant's signals taught, unless it is in memory."""
        if self.is_ready(owner):
            return
        try:
            async with asyncio.timeout(_LOAD_SECONDS), self._lock:
                await self._load(owner)
        except Exception:
            self._retry_at = self._clock() + _AFTER_FAILURE_SECONDS
            _log.exception(
                "the quality signals of %s could not be read; continuing without them", owner
            )

    async def flush(self) -> None:
        """Run the background tasks and write what is queued."""
        await self.background.drain()
        async with self._lock:
            await self._flush()

    async def catch_up(self) -> None:
        """Learn from the signals that were written by now."""
        async with self._lock:
            await self._apply_new_signals()

    async def apply_action(self, owner: str, action: str) -> None:
        """Reset, freeze or thaw a tenant's learned state, on every replica."""
        assert action in OWNER_ACTIONS, action
        row = SignalRow(
            owner=owner,
            request_id=uuid.uuid4().hex,
            key_id="",
            source=action,
            model="",
            question=None,
            score=0.0,
            weight=0.0,
            p_good=None,
            created_at=datetime.fromtimestamp(self._clock(), UTC),
        )
        async with self._lock:
            # Loaded first, so that its saved state changes too.
            if owner not in self._loaded:
                await self._load(owner)
        await (self._store.reset_owner(row) if action == "reset" else self._store.write((), (row,)))
        await self.catch_up()

    async def state(self, owner: str) -> TenantState:
        """Return the tenant's learned state, up to date."""
        async with self._lock:
            if owner not in self._loaded:
                await self._load(owner)
            await self._apply_new_signals()
        return self._estimator.state(owner)

    def levels_from_others(self, owner: str, model: str) -> Mapping[str, float]:
        """Return the logits by kind that other tenants' signals give ``model``."""
        return self._estimator.shared_levels(owner, model)

    async def refresh_levels(self) -> None:
        """Load the levels that tenants share.

        Every replica reads the same rows, so that they agree within two minutes. Nothing that is
        learned depends on the levels.
        """
        levels: Levels = {}
        if self._is_shared:
            # Takes tenths of a second with a thousand tenants.
            levels = await asyncio.to_thread(shared_levels, await self._store.list_levels())
        # Sharing may have been switched off meanwhile.
        self._estimator.set_shared_levels(levels if self._is_shared else {})

    async def _run(self) -> None:
        saved = pruned = self._clock()
        shared = saved - _SAVE_SECONDS
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                async with self._lock:
                    await self._flush()
                    await self._apply_new_signals()
                    if self._clock() - saved >= _SAVE_SECONDS:
                        await self._save()
                        saved = self._clock()
                if self._clock() - shared >= _SAVE_SECONDS:
                    await self.refresh_levels()
                    shared = self._clock()
                if self._clock() - pruned >= _PRUNE_SECONDS:
                    await self._store.prune()
                    pruned = self._clock()
            except Exception:
                _log.exception("quality signals could not be written or read; retrying")
                await asyncio.sleep(_AFTER_FAILURE_SECONDS)

    async def _flush(self) -> None:
        if self._dropped:
            _log.error("%d quality records were dropped because the queue was full", self._dropped)
            self._dropped = 0
        # Rows added meanwhile wait for the next batch. Otherwise each request would get a transaction
        # of its own under load.
        pending = max(len(self._decisions), len(self._signals))
        for _ in range(-(-pending // _BATCH)):
            # The rows replace their decisions in the queue, so that a retry uses the same ids.
            for index in range(min(_BATCH, len(self._decisions))):
                decision = self._decisions[index]
                if isinstance(decision, _Decision):
                    self._decisions[index] = decision.row()
            rows = [
                option
                for option in islice(self._decisions, _BATCH)
                if isinstance(option, DecisionRow)
            ]
            signals = list(islice(self._signals, _BATCH))
            try:
                await self._store.write(rows, signals)
            except Exception:
                self._failures += 1
                if self._failures < _MAX_FAILURES:
                    raise
                _log.exception("a batch of quality records is dropped after repeated failures")
            self._failures = 0
            for queue, count in ((self._decisions, len(rows)), (self._signals, len(signals))):
                for _ in range(count):
                    queue.popleft()

    async def _apply_new_signals(self) -> None:
        """Learn from the signals that were written since the last time."""
        if self._last_number < 0:
            self._last_number = await self._store.get_last_number()
        while True:
            rows = await self._store.list_signals(self._last_number, _PAGE)
            for row in rows:
                if row.owner in self._loaded:
                    self._apply(row)
                    self._dirty.add(row.owner)
                self._last_number = row.number
            if len(rows) < _PAGE:
                return

    async def _load(self, owner: str) -> None:
        if self._last_number < 0:
            self._last_number = await self._store.get_last_number()
        saved = await self._store.get_state(owner)
        state, number = TenantState(), 0
        if saved is not None:
            try:
                state, number = TenantState.from_json(saved.state), saved.number
            except ValueError:
                # Written by another version; it is rebuilt from the log of signals.
                _log.exception("the saved quality state of %s cannot be read", owner)
        self._estimator.load(owner, state)
        while True:
            rows = await self._store.list_signals(
                number, _PAGE, owner=owner, up_to=self._last_number
            )
            for row in rows:
                self._apply(row)
                number = row.number
            if len(rows) < _PAGE:
                break
        self._loaded[owner] = None
        while len(self._loaded) > _TENANTS:
            oldest = next(iter(self._loaded))
            if oldest in self._dirty:
                await self._save_one(oldest)
            del self._loaded[oldest]
            self._estimator.reset(oldest)

    def _apply(self, row: SignalRow) -> None:
        if row.source == "reset":
            self._estimator.reset(row.owner)
        elif row.question is None:
            self._estimator.freeze(row.owner, row.source == "freeze")
        else:
            self._estimator.learn(
                row.owner,
                Signal(
                    model=row.model,
                    question=question_from_json(row.question),
                    score=row.score,
                    weight=row.weight,
                    source=row.source,
                    key=row.key_id,
                    at=row.created_at.timestamp(),
                ),
            )

    async def _save(self) -> None:
        for owner in list(self._dirty):
            await self._save_one(owner)

    async def _save_one(self, owner: str) -> None:
        state = self._estimator.state(owner)
        saved = SavedState(state=state.to_json(), number=self._last_number, levels=levels_of(state))
        await self._store.save_state(owner, saved)
        self._dirty.discard(owner)
