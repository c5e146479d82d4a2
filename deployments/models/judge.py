"""Runs the judge in one replica: samples answers, compares them, and counts the outcomes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from ray.util import metrics

from moyin.access.gatekeeper.limits import Meter
from moyin.errors import ServiceUnavailable
from moyin.settings import Settings
from moyin.store.comparisons import ComparisonStore
from moyin.store.quality import QualityStore
from moyin.text.judging.judge import Judge
from moyin.text.judging.rules import JudgeBudget, JudgeRules
from moyin.text.judging.sampling import AnswerSampler, ComparisonStarter
from moyin.text.judging.verdict import Outcome, OutcomeCounter
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.router import Router

if TYPE_CHECKING:
    from temporalio.client import Client
    from temporalio.worker import Worker

    from moyin.jobs.workflows.worker import WorkerRunner

__all__ = ["JudgeMetrics", "JudgeService"]

_log = logging.getLogger(__name__)
_CAPACITY = 10_000
_RESTART_SECONDS = 2.0


class JudgeMetrics:
    """Counts the outcomes of samples in Ray's metrics.

    `note` only queues an outcome, so that it costs a request little. One thread calls `work`.
    """

    def __init__(self) -> None:
        self._queued: deque[Outcome] = deque(maxlen=_CAPACITY)
        self._samples = metrics.Counter(
            "moyin_judge_samples",
            "Answers that were sampled for the judge, by outcome.",
            tag_keys=("outcome",),
        )

    def note(self, outcome: Outcome) -> None:
        """Queue an outcome."""
        self._queued.append(outcome)

    def work(self) -> None:
        """Export the queued outcomes."""
        counts = Counter(self._queued.popleft() for _ in range(len(self._queued)))
        for outcome, count in counts.items():
            self._samples.inc(count, {"outcome": outcome.value})


class JudgeService:
    """Runs the judge while `apply` has set rules; without rules it does not import Temporal's SDK.

    Args:
        count: called with the outcome of every sample.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        text_router: Router,
        estimator: Estimator,
        signals: QualityStore,
        count: OutcomeCounter,
    ) -> None:
        self._settings = settings
        self._text_router = text_router
        self._estimator = estimator
        self._count = count
        self._store = ComparisonStore(settings.redis_url, secret=settings.signing_key())
        # A separate meter: the settings may let tenants exceed budgets while Valkey is unavailable, but
        # the judge must never exceed its own.
        self._meter = Meter(settings.redis_url, budgets_fail_open=False)
        self.budget = JudgeBudget(self._meter)
        self._judge = Judge(text_router, store=self._store, signals=signals, budget=self.budget)
        self._sampler = AnswerSampler(count)
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def rules(self) -> JudgeRules | None:
        """The current rules; None while the judge is off."""
        return self._judge.rules

    def apply(self, rules: JudgeRules | None) -> None:
        """Apply new rules, also to jobs in progress.

        Without rules, the answers that wait for comparison are deleted. Their jobs end when the judge
        is on again, or after a day.
        """
        self._judge.rules = self._sampler.rules = rules
        self._text_router.sampler = None if rules is None else self._sampler
        self._changed.set()

    async def start(self) -> None:
        """Start the judge's task."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop working on jobs; other replicas continue them."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._meter.close()
        await self._store.close()

    async def spent(self) -> Decimal:
        """Return this month's spending in US dollars.

        Raises:
            ServiceUnavailable: Valkey does not respond.
        """
        return await self.budget.read_spent_usd()

    async def _run(self) -> None:
        while True:
            rules = self.rules
            self._changed.clear()
            if rules is None:
                await self._changed.wait()
                continue
            try:
                await self._work(rules.parallel)
                if self.rules is None:
                    await self._store.clear()
            except ServiceUnavailable as error:
                _log.warning("answers kept for the judge expire only after a day: %s", error)
            except Exception:
                _log.exception("the judge failed with an unexpected error; restarting it")
                await asyncio.sleep(_RESTART_SECONDS)

    async def _work(self, parallel: int) -> None:
        """Sample and judge until the judge is turned off or its parallelism changes."""
        starter, runner = self._parts(parallel)
        tasks = [asyncio.create_task(starter.run()), asyncio.create_task(runner.run())]
        try:
            while self.rules is not None and self.rules.parallel == parallel:
                changed = asyncio.create_task(self._changed.wait())
                done, _ = await asyncio.wait((*tasks, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._changed.clear()
                for task in done - {changed}:
                    await task  # raises the task's exception
                    raise RuntimeError("a task of the judge ended without being stopped")
        finally:
            tasks[0].cancel()
            await runner.stop()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _parts(self, parallel: int) -> tuple[ComparisonStarter, WorkerRunner]:
        # Imported here so that replicas without a judge do not import Temporal's SDK.
        from moyin.jobs.workflows.client import Temporal
        from moyin.jobs.workflows.judge import JudgeActivities, JudgeQueue, new_judge_worker
        from moyin.jobs.workflows.worker import WorkerRunner

        settings = self._settings
        temporal = Temporal(
            settings.temporal_address,
            settings.temporal_namespace,
            retention=timedelta(days=settings.job_history_days),
        )
        starter = ComparisonStarter(
            self._sampler,
            fleet=lambda: self._text_router.fleet,
            estimator=self._estimator,
            budget=self.budget,
            store=self._store,
            queue=JudgeQueue(temporal),
            count=self._count,
        )
        activities = JudgeActivities(self._judge, self._count)

        async def new_workers(client: Client) -> list[Worker]:
            return [new_judge_worker(client, activities, concurrency=parallel)]

        return starter, WorkerRunner(temporal, new_workers)
