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

from moyin.store.quality import ACTS, DecisionRow, QualityStore, SavedState, SignalRow
from moyin.text.quality.estimator import Estimate, Estimator, Signal, TenantState
from moyin.text.quality.question import Question
from moyin.text.quality.shared import Levels, levels_of, shared_levels
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
# Fewer than the estimator holds, so that it never drops a state that was not saved.
_TENANTS = 60
_MOST_FAULTS = 5


@dataclass(kw_only=True, slots=True)
class _Decision:
    """A decision as the hot path leaves it; rows are made of it by the writer."""

    owner: str
    request_id: str
    model: str
    question: Question
    estimate: Estimate
    options: tuple[tuple[str, int, Estimate], ...]
    at: float

    def row(self) -> DecisionRow:
        return DecisionRow(
            # In the order of time, so that rows of a batch share the pages of their index.
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
    """Writes decisions and signals in batches, and learns from everybody's signals in their order.

    A tenant's state is loaded when its first request comes, and saved every minute. When the
    database is away, estimates go on as they are; what can't be written waits, bounded, and is then
    dropped: these are statistics, no accounts.

    Attributes:
        background: what is to be learned from requests and answers, and from how many.
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
        self._last_number = (
            -1
        )  # number of the newest signal that was read; -1: none were looked at yet
        self._lock = asyncio.Lock()
        self._retry_at = 0.0
        self._shares = True
        self._faults = 0
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what waits and save what was learned; raises nothing."""
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
            _log.exception("quality signals were not saved at the end")

    def set_sharing(self, shares: bool) -> None:
        """Say whether tenants learn from each other; from the next minute on."""
        self._shares = shares
        if not shares:
            self._estimator.share({})

    def now(self) -> float:
        """Return the seconds since 1970."""
        return self._clock()

    def is_ready(self, owner: str) -> bool:
        """Return whether the tenant's state is in memory, or can't be loaded just now."""
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
        """Note which model answers a request, so that its feedback can be understood."""
        forecast = chosen.forecast
        if forecast is None or forecast.estimate is None:
            return
        if len(self._decisions) >= _CAPACITY:
            self._dropped += 1
            return
        options = tuple(
            (one.deployment.model.name, one.forecast.cost_pico, one.forecast.estimate)
            for one in candidates
            if one.forecast is not None and one.forecast.estimate is not None
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
        """Note what the gateway itself saw of an answer."""
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
        """Return what was decided for a request of ``owner``, on whichever replica."""
        return await self._store.decision(owner, request_id)

    async def load(self, owner: str) -> None:
        """Load what the tenant's signals taught, unless it is in memory."""
        if self.is_ready(owner):
            return
        try:
            async with asyncio.timeout(_LOAD_SECONDS), self._lock:
                await self._load(owner)
        except Exception:
            self._retry_at = self._clock() + _AFTER_FAILURE_SECONDS
            _log.exception("quality: the signals of %s could not be read; going on without", owner)

    async def flush(self) -> None:
        """Write what waits."""
        await self.background.drain()
        async with self._lock:
            await self._flush()

    async def catch_up(self) -> None:
        """Learn from what was written by now."""
        async with self._lock:
            await self._apply_new_signals()

    async def apply_action(self, owner: str, action: str) -> None:
        """Reset, freeze or thaw what is learned for a tenant, on every replica."""
        assert action in ACTS, action
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
            # So that what is saved of it changes as well.
            if owner not in self._loaded:
                await self._load(owner)
        await (self._store.reset(row) if action == "reset" else self._store.write((), (row,)))
        await self.catch_up()

    async def state(self, owner: str) -> TenantState:
        """Return what is known of a tenant by now."""
        async with self._lock:
            if owner not in self._loaded:
                await self._load(owner)
            await self._apply_new_signals()
        return self._estimator.state(owner)

    def levels_from_others(self, owner: str, model: str) -> Mapping[str, float]:
        """Return what other tenants found out about ``model``: logits by kind."""
        return self._estimator.shared(owner, model)

    async def refresh_levels(self) -> None:
        """Take over the levels that all tenants share. Every replica reads the same rows, so that
        they agree within two minutes; nothing that is learned depends on them."""
        levels: Levels = {}
        if self._shares:
            # Of a thousand tenants it takes tenths of a second.
            levels = await asyncio.to_thread(shared_levels, await self._store.levels())
        # It may have been switched off meanwhile.
        self._estimator.share(levels if self._shares else {})

    # The loop.

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
                _log.exception("quality signals could not be written or read; trying again")
                await asyncio.sleep(_AFTER_FAILURE_SECONDS)

    async def _flush(self) -> None:
        if self._dropped:
            _log.error("quality: %d notes found no room and are lost", self._dropped)
            self._dropped = 0
        # What comes meanwhile is for the next time: under load each request would otherwise have a
        # transaction of its own.
        waiting = max(len(self._decisions), len(self._signals))
        for _ in range(-(-waiting // _BATCH)):
            # Rows take the place of what they are made of, so that a second try has the same ids.
            for place in range(min(_BATCH, len(self._decisions))):
                decision = self._decisions[place]
                if isinstance(decision, _Decision):
                    self._decisions[place] = decision.row()
            rows = [one for one in islice(self._decisions, _BATCH) if isinstance(one, DecisionRow)]
            signals = list(islice(self._signals, _BATCH))
            try:
                await self._store.write(rows, signals)
            except Exception:
                self._faults += 1
                if self._faults < _MOST_FAULTS:
                    raise
                _log.exception("quality: a batch is given up")
            self._faults = 0
            for queue, count in ((self._decisions, len(rows)), (self._signals, len(signals))):
                for _ in range(count):
                    queue.popleft()

    async def _apply_new_signals(self) -> None:
        """Learn from the signals that were written since the last time."""
        if self._last_number < 0:
            self._last_number = await self._store.last_number()
        while True:
            rows = await self._store.signals(self._last_number, _PAGE)
            for row in rows:
                if row.owner in self._loaded:
                    self._apply(row)
                    self._dirty.add(row.owner)
                self._last_number = row.number
            if len(rows) < _PAGE:
                return

    async def _load(self, owner: str) -> None:
        if self._last_number < 0:
            self._last_number = await self._store.last_number()
        saved = await self._store.state(owner)
        state, number = TenantState(), 0
        if saved is not None:
            try:
                state, number = TenantState.from_json(saved.state), saved.number
            except ValueError:
                # Of another version: the log of signals is still there.
                _log.exception("quality: the saved state of %s can't be read", owner)
        self._estimator.load(owner, state)
        while True:
            rows = await self._store.signals(number, _PAGE, owner=owner, upto=self._last_number)
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
        await self._store.save(owner, saved)
        self._dirty.discard(owner)
