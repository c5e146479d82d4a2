"""The judge of one replica: what it samples, what it works on, and what of it is counted."""

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
from moyin.text.judging.budget import JudgeBudget
from moyin.text.judging.judge import Judge
from moyin.text.judging.outcomes import Count, Outcome
from moyin.text.judging.rules import JudgeRules
from moyin.text.judging.sampling import AnswerSampler, ComparisonStarter
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.router import Router

if TYPE_CHECKING:
    from temporalio.client import Client
    from temporalio.worker import Worker

    from moyin.jobs.workflows.worker import WorkerRunner

__all__ = ["JudgeMetrics", "JudgePart"]

_log = logging.getLogger(__name__)
_CAPACITY = 10_000
_AGAIN_SECONDS = 2.0


class JudgeMetrics:
    """Counts how samples end. They are only noted on the way; `work` is called from one thread."""

    def __init__(self) -> None:
        self._noted: deque[Outcome] = deque(maxlen=_CAPACITY)
        self._samples = metrics.Counter(
            "moyin_judge_samples",
            "Answers that were drawn for the judge, by what became of them.",
            tag_keys=("outcome",),
        )

    def note(self, outcome: Outcome) -> None:
        self._noted.append(outcome)

    def work(self) -> None:
        """Hand on what was noted since the last time."""
        noted = Counter(self._noted.popleft() for _ in range(len(self._noted)))
        for outcome, count in noted.items():
            self._samples.inc(count, {"outcome": outcome.value})


class JudgePart:
    """Turned on and off by `apply`; without rules it costs nothing, and Temporal's SDK is not imported.

    Args:
        count: hears how every sample ends.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        text_router: Router,
        estimator: Estimator,
        signals: QualityStore,
        count: Count,
    ) -> None:
        self._settings = settings
        self._text_router = text_router
        self._estimator = estimator
        self._count = count
        self._store = ComparisonStore(settings.redis_url, secret=settings.signing_key())
        # Of its own: whatever the settings say of tenants' budgets, this one is never overspent.
        self._meter = Meter(settings.redis_url, budgets_fail_open=False)
        self.budget = JudgeBudget(self._meter)
        self._judge = Judge(text_router, store=self._store, signals=signals, budget=self.budget)
        self._sampler = AnswerSampler(count)
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def rules(self) -> JudgeRules | None:
        return self._judge.rules

    def apply(self, rules: JudgeRules | None) -> None:
        """Take over new rules, by which jobs under way go on. Without rules what they compare is
        deleted, and they end when there is a judge again, or after a day."""
        self._judge.rules = self._sampler.rules = rules
        self._text_router.sampler = None if rules is None else self._sampler
        self._changed.set()

    async def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Let go of running jobs, which other replicas go on with."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._meter.close()
        await self._store.close()

    async def spent(self) -> Decimal:
        """Return what counts against this month's budget, in US dollars.

        Raises:
            ServiceUnavailable: Valkey does not answer.
        """
        return await self.budget.spent()

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
                _log.warning("what the judge compared expires within a day: %s", error)
            except Exception:
                _log.exception("the judge has ended in an unforeseen way; starting it again")
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _work(self, parallel: int) -> None:
        """Sample and judge until the judge is off, or works on another number at a time."""
        starter, runner = self._parts(parallel)
        tasks = [asyncio.create_task(starter.run()), asyncio.create_task(runner.run())]
        try:
            while self.rules is not None and self.rules.parallel == parallel:
                changed = asyncio.create_task(self._changed.wait())
                done, _ = await asyncio.wait((*tasks, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._changed.clear()
                for task in done - {changed}:
                    await task  # raises what it ended by
                    raise RuntimeError("a part of the judge ended, though nobody stopped it")
        finally:
            tasks[0].cancel()
            await runner.stop()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _parts(self, parallel: int) -> tuple[ComparisonStarter, WorkerRunner]:
        # Here, because who has no judge need not import Temporal's SDK.
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
