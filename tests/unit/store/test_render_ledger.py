from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from moyin.domain.job import StepKind, StepResult
from moyin.domain.render_run import RenderAccount, RenderPrice, RenderRun
from moyin.store.jobs import JobStore, NewJob
from moyin.store.render_ledger import RenderLedger
from moyin.store.schema import usage
from moyin.store.sql import Database, migrate, now
from moyin.store.usage import UsageEntry, build_usage_row
from moyin.store.usage_reports import CallFilter, GroupBy, PriceClasses, UsageReports

JOB = "5f0c9a52-5c3f-4a4c-9a43-1f0f4d1c2b3a"
ACCOUNT = RenderAccount(
    owner="ann", job_id=JOB, pool="fast", price=RenderPrice(usd_per_gpu_hour=Decimal(36))
)
RUN = RenderRun(id="1" * 32, prompt_id=JOB, account=ACCOUNT, seconds=2.0)


async def create_job(database: Database) -> JobStore:
    jobs = JobStore(database)
    heads = ((StepKind.RENDER, "fast"),)
    await jobs.create(NewJob(id=JOB, owner="ann", kind="render", spec="0" * 64, heads=heads))
    return jobs


async def test_run_is_booked_once_by_racing_processes(database: Database) -> None:
    jobs, ledger = await create_job(database), RenderLedger(database)
    other_run = replace(RUN, id="2" * 32, seconds=1.0)
    await asyncio.gather(*(ledger.book([RUN, other_run]) for _ in range(5)))
    assert (await jobs.find(JOB)).cost_usd == Decimal("0.03")


async def test_longer_measurement_of_a_run_replaces_the_shorter(database: Database) -> None:
    jobs, ledger = await create_job(database), RenderLedger(database)
    for seconds, error in ((2.0, "worker_lost"), (5.0, None), (3.0, "worker_lost")):
        await ledger.book([replace(RUN, seconds=seconds, error=error)])
    assert (await jobs.find(JOB)).cost_usd == Decimal("0.05")
    [row] = (await UsageReports(database).list_calls(CallFilter(owner="ann"), limit=9))[0]
    assert (row.quantity, row.cost_usd, row.complete) == (5000, Decimal("0.05"), True)


async def test_recorded_end_replaces_an_assumed_loss_of_equal_length(database: Database) -> None:
    jobs, ledger = await create_job(database), RenderLedger(database)
    account = replace(ACCOUNT, price=RenderPrice(usd_per_picture=Decimal("0.5")))
    ended_run = replace(RUN, account=account, pictures=2)
    lost_run = replace(RUN, account=account, error="worker_lost")
    for run in (lost_run, ended_run, lost_run):
        await ledger.book([run])
    assert (await jobs.find(JOB)).cost_usd == Decimal(1)
    [row] = (await UsageReports(database).list_calls(CallFilter(owner="ann"), limit=9))[0]
    assert (row.cost_usd, row.complete, row.error) == (Decimal(1), True, None)


async def test_step_result_of_an_older_worker_does_not_double_the_cost(
    database: Database,
) -> None:
    jobs = await create_job(database)
    await jobs.start(JOB, 1)
    await RenderLedger(database).book([RUN])
    # The older worker does not know `gpu_seconds`.
    await jobs.record_step(JOB, 1, StepResult(index=0, output="0" * 64, cost_usd=RUN.cost_usd))
    assert (await jobs.find(JOB)).cost_usd == RUN.cost_usd


async def test_run_without_an_account_or_a_job_is_accepted(database: Database) -> None:
    ledger, reports = RenderLedger(database), UsageReports(database)
    await ledger.book([replace(RUN, account=None)])
    assert (await reports.list_calls(CallFilter(owner=None), limit=9))[0] == []
    await ledger.book([RUN])
    [row] = (await reports.list_calls(CallFilter(owner="ann"), limit=9))[0]
    assert (row.request_id, row.key_id, row.cost_usd) == (JOB, None, Decimal("0.02"))


async def test_reports_sum_renders_by_operation(database: Database) -> None:
    await create_job(database)
    await RenderLedger(database).book([RUN, replace(RUN, id="2" * 32, error="render_failed")])
    usage_sums = await UsageReports(database).sum_calls(
        CallFilter(owner="ann"), [GroupBy.OPERATION], PriceClasses()
    )
    assert {
        (usage_sum.group, usage_sum.unit, usage_sum.is_complete) for usage_sum in usage_sums
    } == {
        (("render",), "gpu_milliseconds", True),
        (("render",), "gpu_milliseconds", False),
    }
    assert sum(usage_sum.cost_usd for usage_sum in usage_sums) == Decimal("0.04")


async def test_downgrade_removes_the_rows_of_renders(database: Database, tmp_path: Path) -> None:
    await RenderLedger(database).book([RUN])
    chat_entry = UsageEntry(
        request_id="r",
        owner="ann",
        backend="b",
        model="m",
        input_tokens=1,
        cached_tokens=0,
        output_tokens=1,
        cost_usd=Decimal(1),
        complete=True,
    )
    row = build_usage_row(chat_entry, now(), "2" * 32)
    await database.write(lambda connection: connection.execute(usage.insert(), row))
    path = tmp_path / "moyin.db"
    await asyncio.to_thread(migrate, f"sqlite:///{path}", "0015", down=True)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT model FROM usage").fetchall() == [("m",)]
