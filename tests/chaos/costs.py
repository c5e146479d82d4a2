"""Checks that the booked costs of an hour of GPU work are right although processes are killed.

``python -m tests.chaos.costs`` starts a stack with several ComfyUIs. Renders of various lengths
succeed, fail, are cancelled and are retried, and every few seconds a ComfyUI, an actor, the pool or
the jobs worker is killed. At the end, four sums are compared: the costs of the jobs, the ledger,
the spending of the tenant's budget, and the busy time in the ComfyUIs' own logs. The first three
must be equal, and the last within 1 %, except for actors that were lost. ``--seconds`` is the
GPU time of all renders (3,600), and ``--actors`` is the number of actors that share the GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil

from moyin.domain.limits import Limit
from moyin.render.comfyui.install import find_comfyui
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore
from moyin.store.sql import Database
from moyin.store.usage import UsageEntry
from moyin.store.usage_reports import CallFilter, UsageReports
from tests.chaos import victims
from tests.chaos.busy import Execution, list_executions
from tests.chaos.client import FINAL
from tests.chaos.graphs import busy
from tests.chaos.soak import farm
from tests.stack import RunningStack

KILLS = ("ComfyUI", "RenderPool", "JobWorker", "actor")
_OWNER = "costs"
_USD_PER_HOUR = Decimal(180)
# The pool polls its actors every second, so these last seconds of a lost actor's run may be
# missing.
_LOST_SECONDS = 2.0
_MAX_ERROR = 0.01


@dataclass(frozen=True, kw_only=True)
class CostPlan:
    """The amount of work to run.

    Attributes:
        seconds: the total duration of the renders.
        actors: the number of ComfyUIs.
        every: the number of seconds between kills.
        lengths: the shortest and the longest render in seconds.
        failing: the share of renders that fail.
        cancelled: the share of renders that are cancelled.
    """

    seconds: float = 3600.0
    actors: int = 4
    every: float = 20.0
    lengths: tuple[float, float] = (2.0, 20.0)
    failing: float = 0.1
    cancelled: float = 0.1
    seed: int = 1


@dataclass(kw_only=True)
class Report:
    """The booked costs, and the busy times in ComfyUI's logs."""

    statuses: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    rows: Sequence[UsageEntry] = ()
    executions: Sequence[Execution] = ()
    jobs_usd: Decimal = Decimal(0)
    spent_usd: Decimal = Decimal(0)
    problems: list[str] = field(default_factory=list)

    @property
    def booked_seconds(self) -> float:
        return sum(row.quantity or 0 for row in self.rows) / 1000

    @property
    def busy_seconds(self) -> float:
        return sum(execution.seconds for execution in self.executions)

    @property
    def sentence(self) -> str:
        error = self.booked_seconds / self.busy_seconds - 1
        return (
            f"{self.statuses.total()} jobs {dict(self.statuses)}, kills {dict(self.kills)}: "
            f"{len(self.executions)} executions, {len(self.rows)} runs; ComfyUIs were busy for "
            f"{self.busy_seconds:.2f} s, booked were {self.booked_seconds:.2f} s ({error:+.2%})"
        )


async def check_costs(gateway: RunningStack, plan: CostPlan) -> Report:
    """Execute the plan and return a report; `Report.problems` lists the deviations."""
    report, rng = Report(), random.Random(plan.seed)
    database = Database(gateway.settings.sql_url)
    kill_task = asyncio.create_task(_kill_processes(gateway, plan, report))
    try:
        _, key = await KeyStore(database).create(_OWNER, "costs")
        budget_limit = Limit(subject=f"owner:{_OWNER}", usd_per_month=Decimal(100_000))
        await LimitStore(database).set(budget_limit)
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30) as client:
            await _run_jobs(client, plan, rng)
            kill_task.cancel()
            await asyncio.gather(kill_task, return_exceptions=True)
            report.rows = await _wait_for_rows(database)
            jobs = await _list_jobs(client)
            report.spent_usd = await _wait_for_budget(client)
        report.statuses.update(job["status"] for job in jobs)
        report.jobs_usd = sum((Decimal(str(job["cost_usd"])) for job in jobs), Decimal(0))
        report.executions = list_executions(gateway.data)
    finally:
        kill_task.cancel()
        await database.close()
    _compare_costs(report)
    return report


def _compare_costs(report: Report) -> None:
    ledger_usd = sum((row.cost_usd for row in report.rows), Decimal(0))
    if abs(ledger_usd - report.jobs_usd) > Decimal("0.000001"):
        report.problems.append(f"the ledger has {ledger_usd} USD, the jobs have {report.jobs_usd}")
    if ledger_usd != report.spent_usd:
        report.problems.append(
            f"the ledger has {ledger_usd} USD, the budget has {report.spent_usd}"
        )
    expected_usd = Decimal(str(report.booked_seconds)) * _USD_PER_HOUR / 3600
    if abs(ledger_usd - expected_usd) > Decimal("0.001") * len(report.rows):
        report.problems.append(
            f"the ledger has {ledger_usd} USD for {report.booked_seconds} s, but the price is {expected_usd} USD"
        )
    if len(report.rows) > len(report.executions):
        report.problems.append(
            f"{len(report.executions)} executions were booked as {len(report.rows)} runs"
        )
    lost_executions = len(report.executions) - len(report.rows)
    # An actor may be lost before the pool has seen its run.
    if lost_executions > report.kills["actor"]:
        report.problems.append(
            f"{lost_executions} executions were not booked, but only {report.kills['actor']} actors killed"
        )
    allowed_seconds = _MAX_ERROR * report.busy_seconds
    difference_seconds = report.booked_seconds - report.busy_seconds
    if (
        not -allowed_seconds - _LOST_SECONDS * report.kills["actor"]
        <= difference_seconds
        <= allowed_seconds
    ):
        report.problems.append(
            f"booked and busy time differ by {difference_seconds:+.2f} s, allowed are {allowed_seconds:.2f} s"
        )


async def _run_jobs(client: httpx.AsyncClient, plan: CostPlan, rng: random.Random) -> None:
    remaining_seconds, number = plan.seconds, 0
    async with asyncio.TaskGroup() as group:
        # At most as many jobs at a time as the pool's window and actors hold.
        slots = asyncio.Semaphore(4 * plan.actors)
        while remaining_seconds > 0:
            await slots.acquire()
            seconds, random_share = round(rng.uniform(*plan.lengths), 2), rng.random()
            remaining_seconds -= seconds
            number += 1
            job_run = _run_job(client, plan, number, seconds, random_share)
            group.create_task(job_run).add_done_callback(lambda _: slots.release())


async def _run_job(
    client: httpx.AsyncClient, plan: CostPlan, number: int, seconds: float, random_share: float
) -> None:
    """Run one job, and retry it once if it fails.

    Args:
        number: the job's number, from which its graph and its idempotency key are made.
        seconds: how long the graph runs.
        random_share: a number from 0 to 1, which determines whether the job fails, is cancelled or
            succeeds.
    """
    should_fail = random_share < plan.failing
    body = {"kind": "render", "workflow": busy(seconds, 0x400000 + number, fails=should_fail)}
    headers = {"idempotency-key": f"costs-{number}"}
    job = await _call(client, "POST", "/jobs", json=body, headers=headers)
    path = f"/jobs/{job['id']}"
    if plan.failing <= random_share < plan.failing + plan.cancelled:
        job = await _wait_for_status(client, path, FINAL | {"running"})
        await asyncio.sleep(seconds / 3)
        await _call(client, "POST", f"{path}/cancel", accepted_statuses=(202, 409))
    job = await _wait_for_status(client, path, FINAL)
    if job["status"] == "failed":
        await _call(client, "POST", f"{path}/retry", accepted_statuses=(202, 409))
        await _wait_for_status(client, path, FINAL)


async def _wait_for_status(client: httpx.AsyncClient, path: str, statuses: set[str]) -> Any:
    while True:
        job = await _call(client, "GET", path)
        if job["status"] in statuses:
            return job
        await asyncio.sleep(0.3)


async def _call(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    accepted_statuses: tuple[int, ...] = (200, 202),
    **options: Any,
) -> Any:
    """Repeat a call, which must be safe to repeat, until the gateway answers; return the body."""
    deadline = time.monotonic() + 300
    while True:
        try:
            response = await client.request(method, path, **options)
            if response.status_code in accepted_statuses:
                return response.json()
            # While processes are killed, the farm may respond with 5xx, but no other error.
            assert response.status_code >= 500, (method, path, response.text)
        except httpx.TransportError as error:
            assert time.monotonic() < deadline, error
        assert time.monotonic() < deadline, (method, path)
        await asyncio.sleep(0.5)


async def _list_jobs(client: httpx.AsyncClient) -> list[Any]:
    jobs: list[Any] = []
    cursor = None
    while True:
        query = f"/jobs?limit=200{'' if cursor is None else f'&cursor={cursor}'}"
        page = await _call(client, "GET", query)
        jobs += page["jobs"]
        cursor = page["next_cursor"]
        if cursor is None:
            return jobs


async def _wait_for_rows(database: Database) -> list[UsageEntry]:
    """Wait until the ledger gets no more rows, and return its rows of renders."""
    rows_before = None
    while rows_before != (rows := await _list_rows(database)):
        rows_before = rows
        await asyncio.sleep(20)
    return rows


async def _wait_for_budget(client: httpx.AsyncClient) -> Decimal:
    """Wait until the budget holds no reservations, and return what it has spent."""
    while True:
        [budget] = (await _call(client, "GET", "/v1/usage"))["budgets"]
        if Decimal(budget["reserved_usd"]) == 0:
            return Decimal(budget["spent_usd"])
        await asyncio.sleep(2)


async def _list_rows(database: Database) -> list[UsageEntry]:
    rows: list[UsageEntry] = []
    cursor = None
    while True:
        page, cursor = await UsageReports(database).list_calls(
            CallFilter(owner=_OWNER), limit=200, cursor=cursor
        )
        rows += page
        if cursor is None:
            return rows


async def _kill_processes(gateway: RunningStack, plan: CostPlan, report: Report) -> None:
    rng = random.Random(plan.seed)
    while True:
        for name in KILLS:
            await asyncio.sleep(plan.every)
            victim_processes = await asyncio.to_thread(
                victims.list_processes, gateway.data, victims.KILLS[name]
            )
            if not victim_processes:
                continue  # not back yet from its last death
            try:
                rng.choice(victim_processes).kill()
            except psutil.NoSuchProcess:
                continue
            report.kills[name] += 1


async def _run_plan(plan: CostPlan) -> int:
    with tempfile.TemporaryDirectory(prefix="moyin-costs-") as folder:
        price = {"usd_per_gpu_hour": float(_USD_PER_HOUR * plan.actors)}
        comfyui = find_comfyui(Settings())
        async with farm(comfyui, Path(folder), plan.actors, **price) as gateway:
            report = await check_costs(gateway, plan)
    print(report.sentence)
    print("\n".join(report.problems) or "all executions were booked once")
    return 1 if report.problems else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    plan = CostPlan()
    parser.add_argument(
        "--seconds", type=float, default=plan.seconds, help="GPU time of all renders"
    )
    parser.add_argument("--actors", type=int, default=plan.actors)
    parser.add_argument("--every", type=float, default=plan.every, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=plan.seed)
    options = parser.parse_args()
    sys.exit(asyncio.run(_run_plan(CostPlan(**vars(options)))))


if __name__ == "__main__":
    main()
