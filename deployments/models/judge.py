"""Contains `JudgeService`, which samples answers and runs the judge in a replica."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from moyin.access.gatekeeper.limits import RequestMeter
from moyin.errors import ServiceUnavailable
from moyin.settings import Settings
from moyin.store.comparisons import ComparisonStore
from moyin.store.quality import QualityStore
from moyin.text.judging.budget import JudgeBudget
from moyin.text.judging.judge import Judge
from moyin.text.judging.rules import JudgeRules
from moyin.text.judging.sampling import AnswerSampler, ComparisonStarter
from moyin.text.judging.verdict import OutcomeCounter
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.router import Router

if TYPE_CHECKING:
    from temporalio.client import Client
    from temporalio.worker import Worker

    from moyin.jobs.workflows.worker import WorkerRunner

_log = logging.getLogger(__name__)
_RESTART_SECONDS = 2.0


class JudgeService:
    """Samples answers and judges them with Temporal jobs while rules are set.

    Args:
        count_outcome: called with the outcome of every sample.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        text_router: Router,
        estimator: Estimator,
        signal_store: QualityStore,
        count_outcome: OutcomeCounter,
    ) -> None:
        self._settings = settings
        self._text_router = text_router
        self._estimator = estimator
        self._count_outcome = count_outcome
        self._store = ComparisonStore(settings.redis_url, secret=settings.signing_key())
        # While Valkey is unavailable, the settings may allow tenants to exceed their budgets, but
        # the judge must not exceed its own. Therefore it has a separate meter.
        self._meter = RequestMeter(settings.redis_url, budgets_fail_open=False)
        self.budget = JudgeBudget(self._meter)
        self._judge = Judge(
            text_router, store=self._store, signals=signal_store, budget=self.budget
        )
        self._sampler = AnswerSampler(count_outcome)
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def rules(self) -> JudgeRules | None:
        """The current rules, or None while the judge is off."""
        return self._judge.rules

    def set_rules(self, rules: JudgeRules | None) -> None:
        """Set new rules, which apply also to jobs in progress.

        None turns the judge off and deletes the answers that wait for comparison. The jobs that
        would compare these answers stay queued, at most for a day, until the judge is on again.
        """
        self._judge.rules = self._sampler.rules = rules
        self._text_router.sampler = None if rules is None else self._sampler
        self._changed.set()

    async def start(self) -> None:
        """Start the task that runs the judge."""
        self._running = asyncio.create_task(self._run_forever())

    async def close(self) -> None:
        """Stop judging; other replicas continue the jobs."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._meter.close()
        await self._store.close()

    async def get_spending(self) -> Decimal:
        """Return the judge's spending in this calendar month in US dollars."""
        return await self.budget.read_spent_usd()

    async def _run_forever(self) -> None:
        while True:
            rules = self.rules
            self._changed.clear()
            if rules is None:
                await self._changed.wait()
                continue
            try:
                await self._judge_until_changed(rules.parallel)
                if self.rules is None:
                    await self._store.clear()
            except ServiceUnavailable as error:
                _log.warning("the judge paused, and stored answers expire in a day: %s", error)
            except Exception:
                _log.exception("the judge failed with an unexpected error; restarting it")
                await asyncio.sleep(_RESTART_SECONDS)

    async def _judge_until_changed(self, parallel: int) -> None:
        """Sample and judge answers until the judge is turned off or its parallelism changes."""
        starter, runner = self._new_starter_and_runner(parallel)
        tasks = [asyncio.create_task(starter.run()), asyncio.create_task(runner.run())]
        try:
            while self.rules is not None and self.rules.parallel == parallel:
                change_task = asyncio.create_task(self._changed.wait())
                done_tasks, _ = await asyncio.wait(
                    (*tasks, change_task), return_when=asyncio.FIRST_COMPLETED
                )
                change_task.cancel()
                self._changed.clear()
                for task in done_tasks - {change_task}:
                    await task  # Awaiting the tasks raises the exception of a failed one.
                    raise RuntimeError(
                        "the task that samples or judges answers ended although the judge is on; it is "
                        "started again"
                    )
        finally:
            tasks[0].cancel()
            await runner.stop()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _new_starter_and_runner(self, parallel: int) -> tuple[ComparisonStarter, WorkerRunner]:
        # Imported here, so that replicas without a judge do not import Temporal's SDK.
        from moyin.jobs.workflows.client import TemporalConnection
        from moyin.jobs.workflows.judge import JudgeActivities, JudgeQueue, new_judge_worker
        from moyin.jobs.workflows.worker import WorkerRunner

        settings = self._settings
        temporal = TemporalConnection(
            settings.temporal_address,
            settings.temporal_namespace,
            retention=timedelta(days=settings.job_history_days),
        )
        starter = ComparisonStarter(
            self._sampler,
            get_fleet=lambda: self._text_router.fleet,
            estimator=self._estimator,
            budget=self.budget,
            store=self._store,
            queue=JudgeQueue(temporal),
            count_outcome=self._count_outcome,
        )
        activities = JudgeActivities(self._judge, self._count_outcome)

        async def new_workers(client: Client) -> list[Worker]:
            return [new_judge_worker(client, activities, concurrency=parallel)]

        return starter, WorkerRunner(temporal, new_workers)
