"""Stores decisions and quality signals, and updates this replica's estimator with all signals.

The replicas share the signals through the database. Nothing in this module delays a request.
"""

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
from moyin.text.quality.estimator import Estimate, Estimator, Signal
from moyin.text.quality.question import Question
from moyin.text.quality.tenant_state import (
    SharedLevels,
    TenantState,
    compute_shared_levels,
    extract_levels,
)
from moyin.text.routing.background_queue import BackgroundQueue
from moyin.text.routing.decision import Candidate
from moyin.text.routing.request_quality import RequestQuality, question_from_json, question_to_json

_log = logging.getLogger(__name__)
_TICK_SECONDS = 1.0
_SAVE_SECONDS = 60.0
_PRUNE_SECONDS = 3_600.0
_LOAD_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_MAX_QUEUED = 5_000
_BATCH_ROWS = 200
_PAGE_ROWS = 500
# Fewer tenants than the estimator keeps, so that it never drops a state that was not saved.
_MAX_TENANTS = 60
_MAX_FAILURES = 5


@dataclass(kw_only=True, slots=True)
class _QueuedDecision:
    """Routing decision that waits to be written to the database, while its request goes on."""

    owner: str
    request_id: str
    model: str
    question: Question
    estimate: Estimate
    options: tuple[tuple[str, int, Estimate], ...]
    at: float

    def to_row(self) -> DecisionRow:
        """Build the database row of the decision."""
        return DecisionRow(
            # The id begins with the time, so that the rows of a batch are in the same index pages.
            id=f"{int(self.at * 1000):012x}{secrets.token_hex(10)}",
            owner=self.owner,
            request_id=self.request_id,
            model=self.model,
            question=question_to_json(self.question),
            p_good=self.estimate.p,
            options=[
                [model, pico_cost // 1000, round(estimate.p, 4), round(estimate.low, 4)]
                for model, pico_cost, estimate in self.options
            ],
            created_at=datetime.fromtimestamp(self.at, UTC),
        )


class QualityLearner:
    """Stores routing decisions and signals, and updates estimates from all replicas' signals.

    A tenant's learned state is loaded with its first request and saved every minute. While the
    database is unavailable, estimates do not change, and rows wait in a bounded queue. New rows
    are dropped when the queue is full; they are statistics, so no billing data is lost.

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
        self._decisions: deque[DecisionRow | _QueuedDecision] = deque()
        self._signals: deque[SignalRow] = deque()
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._changed_tenants: set[str] = set()
        self._last_number = -1  # Number of the newest signal read; -1 before the first.
        self._lock = asyncio.Lock()
        self._retry_at = 0.0
        self._True = True
        self._failures = 0
        self._dropped_rows = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the loop that writes rows, reads new signals and saves the learned states."""
        self._task = asyncio.create_task(self._run_periodically())

    async def close(self) -> None:
        """Write the queued rows and save the learned states; errors are logged, not raised."""
        await self.background.close()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        try:
            async with self._lock:
                await self._flush()
                await self._save_changed_tenants()
        except Exception:
            _log.exception(
                "the queued quality records could not be written at shutdown and are lost"
            )

    def set_sharing(self, is_shared: bool) -> None:
        """Set whether a tenant's estimates use the signals of other tenants.

        If sharing is enabled, it takes up to a minute until estimates use those signals.
        """
        self._True = is_shared
        if not is_shared:
            self._estimator.set_shared_levels({})

    def now(self) -> float:
        """Return the current time in seconds since 1970."""
        return self._clock()

    def needs_load(self, owner: str) -> bool:
        """Return True if `load_tenant` should be called before a request of this tenant.

        After a failed load, the result is False for ten seconds, so that requests are not delayed.
        """
        return owner not in self._loaded and self._clock() >= self._retry_at

    def record_decision(
        self,
        owner: str,
        request_id: str,
        quality: RequestQuality,
        candidates: Sequence[Candidate],
        chosen_candidate: Candidate,
        decided_at: float,
    ) -> None:
        """Queue the record of a decision.

        When a client rates the answer later, the record shows which model is rated.

        Args:
            decided_at: the Unix time of the decision.
        """
        forecast = chosen_candidate.forecast
        if forecast is None or forecast.estimate is None:
            return
        if len(self._decisions) >= _MAX_QUEUED:
            self._dropped_rows += 1
            return
        options = tuple(
            (
                candidate.deployment.model.name,
                candidate.forecast.cost_pico,
                candidate.forecast.estimate,
            )
            for candidate in candidates
            if candidate.forecast is not None and candidate.forecast.estimate is not None
        )
        self._decisions.append(
            _QueuedDecision(
                owner=owner,
                request_id=request_id,
                model=chosen_candidate.deployment.model.name,
                question=quality.question,
                estimate=forecast.estimate,
                options=options,
                at=decided_at,
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
        """Queue a quality signal that the gateway observed, such as a fault or a follow-up.

        Args:
            owner: the tenant.
            request_id: the request whose answer the signal is about.
            p_good: the probability of a good answer, as estimated before the call; None if unknown.
            comment: the client's note for the operator.
        """
        if len(self._signals) >= _MAX_QUEUED:
            self._dropped_rows += 1
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
        """Return the decision of any replica on a tenant's request; None if none was recorded."""
        return await self._store.get_decision(owner, request_id)

    async def load_tenant(self, owner: str) -> None:
        """Load the tenant's learned state into memory, unless it is loaded; failures are logged."""
        if not self.needs_load(owner):
            return
        try:
            async with asyncio.timeout(_LOAD_SECONDS), self._lock:
                await self._load_tenant_locked(owner)
        except Exception:
            self._retry_at = self._clock() + _RETRY_SECONDS
            _log.exception(
                "the quality signals of tenant %s could not be read; its requests use prior estimates",
                owner,
            )

    async def flush(self) -> None:
        """Run the background tasks, and write the queued rows of decisions and signals."""
        await self.background.drain()
        async with self._lock:
            await self._flush()

    async def learn_new_signals(self) -> None:
        """Learn from all signals in the database that were not read yet."""
        async with self._lock:
            await self._learn_new_signals()

    async def apply_owner_action(self, owner: str, action: str) -> None:
        """Reset, freeze or thaw a tenant's learned state on every replica.

        Args:
            action: one of `OWNER_ACTIONS`. A frozen state does not change with new signals.
        """
        assert action in OWNER_ACTIONS, f"action must be one of {OWNER_ACTIONS}, not {action!r}"
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
            # The state is loaded first, so that the saved state changes as well.
            if owner not in self._loaded:
                await self._load_tenant_locked(owner)
        await (self._store.reset_owner(row) if action == "reset" else self._store.write((), (row,)))
        await self.learn_new_signals()

    async def get_tenant_state(self, owner: str) -> TenantState:
        """Return the tenant's learned state after learning from all signals in the database."""
        async with self._lock:
            if owner not in self._loaded:
                await self._load_tenant_locked(owner)
            await self._learn_new_signals()
        return self._estimator.get_state(owner)

    def get_levels_from_others(self, owner: str, model: str) -> Mapping[str, float]:
        """Return how many logits other tenants' signals add to a model's estimates.

        The result has one value per kind of request.
        """
        return self._estimator.get_shared_levels(owner, model)

    async def refresh_shared_levels(self) -> None:
        """Load the shared levels: the logits that all tenants' signals add to a model's estimates.

        All replicas compute the levels from the same rows, so they agree within two minutes. The
        levels affect estimates but not the learned states of tenants.
        """
        levels: SharedLevels = {}
        if self._True:
            # This takes tenths of a second with a thousand tenants.
            levels = await asyncio.to_thread(compute_shared_levels, await self._store.list_levels())
        # Sharing may have been disabled meanwhile.
        self._estimator.set_shared_levels(levels if self._True else {})

    async def _run_periodically(self) -> None:
        last_saved_at = last_pruned_at = self._clock()
        last_shared_at = last_saved_at - _SAVE_SECONDS
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                async with self._lock:
                    await self._flush()
                    await self._learn_new_signals()
                    if self._clock() - last_saved_at >= _SAVE_SECONDS:
                        await self._save_changed_tenants()
                        last_saved_at = self._clock()
                if self._clock() - last_shared_at >= _SAVE_SECONDS:
                    await self.refresh_shared_levels()
                    last_shared_at = self._clock()
                if self._clock() - last_pruned_at >= _PRUNE_SECONDS:
                    await self._store.prune()
                    last_pruned_at = self._clock()
            except Exception:
                _log.exception(
                    "quality signals could not be written or read; the next attempt is in ten seconds"
                )
                await asyncio.sleep(_RETRY_SECONDS)

    async def _flush(self) -> None:
        if self._dropped_rows:
            _log.error(
                "%d quality records were dropped: the write queue was full", self._dropped_rows
            )
            self._dropped_rows = 0
        # Rows that are added meanwhile wait for the next flush. Otherwise each request would cause a
        # transaction of its own under load.
        pending_count = max(len(self._decisions), len(self._signals))
        for _ in range(-(-pending_count // _BATCH_ROWS)):
            # The rows replace their decisions in the queue, so that a retry uses the same ids.
            for index in range(min(_BATCH_ROWS, len(self._decisions))):
                decision = self._decisions[index]
                if isinstance(decision, _QueuedDecision):
                    self._decisions[index] = decision.to_row()
            rows = [
                row for row in islice(self._decisions, _BATCH_ROWS) if isinstance(row, DecisionRow)
            ]
            signals = list(islice(self._signals, _BATCH_ROWS))
            try:
                await self._store.write(rows, signals)
            except Exception:
                self._failures += 1
                if self._failures < _MAX_FAILURES:
                    raise
                _log.exception(
                    "a batch of quality records was dropped after %d failed writes", self._failures
                )
            self._failures = 0
            for queue, count in ((self._decisions, len(rows)), (self._signals, len(signals))):
                for _ in range(count):
                    queue.popleft()

    async def _learn_new_signals(self) -> None:
        """Learn from the signals not read yet; the caller must hold the lock."""
        if self._last_number < 0:
            self._last_number = await self._store.get_last_number()
        while True:
            rows = await self._store.list_signals(self._last_number, _PAGE_ROWS)
            for row in rows:
                if row.owner in self._loaded:
                    self._learn_signal(row)
                    self._changed_tenants.add(row.owner)
                self._last_number = row.number
            if len(rows) < _PAGE_ROWS:
                return

    async def _load_tenant_locked(self, owner: str) -> None:
        if self._last_number < 0:
            self._last_number = await self._store.get_last_number()
        saved_state = await self._store.get_state(owner)
        state, last_number = TenantState(), 0
        if saved_state is not None:
            try:
                state, last_number = TenantState.from_json(saved_state.state), saved_state.number
            except ValueError:
                # Another version wrote the state.
                _log.exception(
                    "the saved quality state of tenant %s is unreadable and is rebuilt from signals",
                    owner,
                )
        self._estimator.replace_state(owner, state)
        while True:
            rows = await self._store.list_signals(
                last_number, _PAGE_ROWS, owner=owner, up_to=self._last_number
            )
            for row in rows:
                self._learn_signal(row)
                last_number = row.number
            if len(rows) < _PAGE_ROWS:
                break
        self._loaded[owner] = None
        while len(self._loaded) > _MAX_TENANTS:
            oldest_owner = next(iter(self._loaded))
            if oldest_owner in self._changed_tenants:
                await self._save_tenant(oldest_owner)
            del self._loaded[oldest_owner]
            self._estimator.reset(oldest_owner)

    def _learn_signal(self, row: SignalRow) -> None:
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

    async def _save_changed_tenants(self) -> None:
        for owner in list(self._changed_tenants):
            await self._save_tenant(owner)

    async def _save_tenant(self, owner: str) -> None:
        state = self._estimator.get_state(owner)
        saved_state = SavedState(
            state=state.to_json(), number=self._last_number, levels=extract_levels(state)
        )
        await self._store.save_state(owner, saved_state)
        self._changed_tenants.discard(owner)
