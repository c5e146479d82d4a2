"""Tests budgets of renders with a real Valkey, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from moyin.access.gatekeeper.limits import RequestMeter
from moyin.domain.identity import Identity
from moyin.domain.job import JobStatus
from moyin.domain.render_run import RenderAccount, RenderPrice, RenderRun
from moyin.errors import BudgetExceeded, JobFinished, ServiceUnavailable
from moyin.jobs.budgets import BudgetSettler
from moyin.jobs.service import JobService
from moyin.store import jobs as jobs_module
from moyin.store import reservations
from moyin.store.jobs import JobStore
from moyin.store.render_ledger import RenderLedger
from moyin.store.sql import Database
from tests.integration.jobs.budget_process import USUAL, build_spec, create_caller, open_service
from tests.integration.servers import ValkeyServer
from tests.stack import ROOT
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)
PROCESSES, SUBMISSIONS = 4, 13


@dataclass(frozen=True)
class BudgetedJobs:
    """A job service, a tenant who submits renders, and the settler of reservations in the budget."""

    database: Database
    url: str
    blobs: str
    meter: RequestMeter
    service: JobService
    settler: BudgetSettler
    jobs: JobStore
    caller: Identity

    async def read_amounts(self) -> tuple[Decimal, Decimal]:
        """Return the spent and the reserved part of the tenant's daily budget."""
        states = await self.meter.budgets.list_states(self.caller.limits, self.caller.owner)
        [key_budget, owner_budget] = states
        assert (key_budget.spent, key_budget.reserved) == (
            owner_budget.spent,
            owner_budget.reserved,
        )
        return owner_budget.spent, owner_budget.reserved

    async def submit_renders(self, *graphs: Mapping[str, Any]) -> str:
        job, _ = await self.service.submit(self.caller, build_spec(*graphs))
        return job.id

    async def book_run(self, job_id: str, seconds: float, run_id: str | None = None) -> None:
        price = RenderPrice(usd_per_gpu_hour=Decimal(3600))
        account = RenderAccount(owner=self.caller.owner, job_id=job_id, pool="default", price=price)
        render_run = RenderRun(
            id=run_id or uuid.uuid4().hex, prompt_id=job_id, account=account, seconds=seconds
        )
        await RenderLedger(self.database).book([render_run])

    async def finish_job(self, job_id: str, status: JobStatus, attempt: int = 1) -> None:
        assert await self.jobs.finish(job_id, attempt, status, None)

    async def settle_all(self) -> None:
        while await self.settler.settle():
            continue


@pytest.fixture
async def budgeted_jobs(
    database_url: str, valkey_server: ValkeyServer, tmp_path: Path
) -> AsyncIterator[BudgetedJobs]:
    database, meter = Database(database_url), RequestMeter(valkey_server.url)
    await database.ensure_schema()
    blobs_url = f"file://{tmp_path / 'blobs'}"
    async with open_service(database, meter, valkey_server.url, blobs_url) as service:
        yield BudgetedJobs(
            database=database,
            url=database_url,
            blobs=blobs_url,
            meter=meter,
            service=service,
            settler=BudgetSettler(database, meter.job_reservations),
            jobs=JobStore(database),
            caller=create_caller(f"tenant-{uuid.uuid4().hex[:8]}", 10),
        )
    await meter.close()
    await database.close()


async def test_racing_submissions_of_several_processes_never_overshoot_a_budget(
    budgeted_jobs: BudgetedJobs, valkey_server: ValkeyServer
) -> None:
    options = {
        "database": budgeted_jobs.url,
        "redis": valkey_server.url,
        "blobs": budgeted_jobs.blobs,
        "owner": budgeted_jobs.caller.owner,
        "usd": 10,
        "count": SUBMISSIONS,
    }
    command = (sys.executable, "-m", "tests.integration.jobs.budget_process", json.dumps(options))
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
        for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"up\n"
    outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    outcome_counts = Counter(code for output, _ in outputs for code in json.loads(output))
    refused_count = PROCESSES * SUBMISSIONS - 10
    assert outcome_counts == {"accepted": 10, "budget_exceeded": refused_count}
    assert await budgeted_jobs.read_amounts() == (0, 10)
    page, _ = await budgeted_jobs.jobs.list_page(budgeted_jobs.caller.owner)
    assert len(page) == 10

    await budgeted_jobs.finish_job(page[0].id, JobStatus.CANCELLED)
    await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (0, 9)
    await budgeted_jobs.submit_renders()
    with pytest.raises(BudgetExceeded):
        await budgeted_jobs.submit_renders()


async def test_cost_replaces_the_estimate_once(
    budgeted_jobs: BudgetedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await budgeted_jobs.submit_renders(USUAL)
    assert await budgeted_jobs.read_amounts() == (0, 5)
    # Cheaper than the estimate so far.
    await budgeted_jobs.book_run(job_id, 2)
    await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (0, 5)
    # Dearer: the rest of the budget is known at once, and not only when the job has ended.
    await budgeted_jobs.book_run(job_id, 5)
    await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (0, 7)
    await budgeted_jobs.finish_job(job_id, JobStatus.SUCCEEDED)
    await asyncio.gather(*(budgeted_jobs.settle_all() for _ in range(5)))
    assert await budgeted_jobs.read_amounts() == (7, 0)
    assert await budgeted_jobs.settler._store.delete_settled() == 0, "a run may be booked yet"
    # A run that could not be booked before, and its repetition.
    for _ in range(2):
        await budgeted_jobs.book_run(job_id, 1, run_id="a" * 32)
        await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (8, 0)
    monkeypatch.setattr(reservations, "_KEPT", timedelta(0))
    assert [await budgeted_jobs.settler._store.delete_settled() for _ in range(2)] == [1, 0]


async def test_settling_goes_on_after_a_crash_between_valkey_and_sql(
    budgeted_jobs: BudgetedJobs, valkey_server: ValkeyServer
) -> None:
    job_id = await budgeted_jobs.submit_renders()
    await budgeted_jobs.book_run(job_id, 3)
    await budgeted_jobs.finish_job(job_id, JobStatus.SUCCEEDED)
    [due_settlement] = await budgeted_jobs.settler._store.list_due()
    job_reservations = budgeted_jobs.meter.job_reservations
    # As a process does that dies before it writes to SQL; meanwhile another run is booked.
    await job_reservations.recount(
        due_settlement.reservation, due_settlement.amount, counted_nano_usd=0, is_open=False
    )
    assert await budgeted_jobs.read_amounts() == (3, 0)
    await budgeted_jobs.book_run(job_id, 1)
    assert await budgeted_jobs.settler._store.mark_counted(due_settlement) is False
    await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (4, 0)
    async with redis.Redis.from_url(valkey_server.url, decode_responses=True) as valkey:
        money_key = (
            f"moyin:limit:{{{budgeted_jobs.caller.owner}}}:owner:{budgeted_jobs.caller.owner}:money"
        )
        fields: list[Any] = await valkey.hkeys(money_key)
    assert not [field for field in fields if field.startswith(("lease:", "cost:"))]


async def test_cancelled_render_is_covered_until_its_run_is_booked(
    budgeted_jobs: BudgetedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await budgeted_jobs.submit_renders(USUAL)
    await budgeted_jobs.jobs.start(job_id, 1)
    await budgeted_jobs.finish_job(job_id, JobStatus.CANCELLED)
    await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (0, 5)
    await budgeted_jobs.book_run(job_id, 2)
    await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (0, 5), "another run of the job may be booked yet"

    monkeypatch.setattr(jobs_module, "_LATE_RUNS", jobs_module._LATE_RUNS * 0)
    later_job = await budgeted_jobs.submit_renders()
    await budgeted_jobs.jobs.start(later_job, 1)
    await budgeted_jobs.finish_job(later_job, JobStatus.FAILED)
    await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (0, 5)
    # A deleted job does not escape.
    await budgeted_jobs.service.delete(budgeted_jobs.caller.owner, [later_job])
    await budgeted_jobs.book_run(later_job, 2)
    await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (2, 5)


async def test_retry_reserves_the_remaining_amount(budgeted_jobs: BudgetedJobs) -> None:
    job_id = await budgeted_jobs.submit_renders()
    await budgeted_jobs.finish_job(job_id, JobStatus.FAILED)
    await budgeted_jobs.settle_all()
    full_job = await budgeted_jobs.submit_renders(USUAL, USUAL)
    with pytest.raises(BudgetExceeded) as exc_info:
        await budgeted_jobs.service.retry(budgeted_jobs.caller, job_id)
    assert exc_info.value.details["reserved_usd"] == "10"
    assert (await budgeted_jobs.jobs.find(job_id)).status is JobStatus.FAILED
    await budgeted_jobs.finish_job(full_job, JobStatus.CANCELLED)
    await budgeted_jobs.settle_all()
    await budgeted_jobs.service.retry(budgeted_jobs.caller, job_id)
    assert await budgeted_jobs.read_amounts() == (0, 1)
    await budgeted_jobs.book_run(job_id, 4)
    await budgeted_jobs.finish_job(job_id, JobStatus.SUCCEEDED, attempt=2)
    await budgeted_jobs.settle_all()
    assert await budgeted_jobs.read_amounts() == (4, 0)
    with pytest.raises(JobFinished):
        await budgeted_jobs.service.retry(budgeted_jobs.caller, job_id)
    await _wait_for_amounts(budgeted_jobs, (4, 0))


async def test_repeated_request_needs_no_remaining_budget(budgeted_jobs: BudgetedJobs) -> None:
    spec = build_spec(USUAL, USUAL)
    first_job, _ = await budgeted_jobs.service.submit(
        budgeted_jobs.caller, spec, idempotency_key="k"
    )
    same_job, is_new = await budgeted_jobs.service.submit(
        budgeted_jobs.caller, spec, idempotency_key="k"
    )
    assert (same_job.id, is_new) == (first_job.id, False)
    assert await budgeted_jobs.read_amounts() == (0, 10)


async def test_refused_job_returns_its_reservation(budgeted_jobs: BudgetedJobs) -> None:
    chosen_id = str(uuid.uuid4())
    await budgeted_jobs.service.submit(budgeted_jobs.caller, build_spec(), prompt_id=chosen_id)
    # The same job again, with money for a second one.
    _, is_new = await budgeted_jobs.service.submit(
        budgeted_jobs.caller, build_spec(), prompt_id=chosen_id
    )
    assert not is_new
    await _wait_for_amounts(budgeted_jobs, (0, 1))


async def test_callers_without_budgets_need_neither_estimates_nor_valkey(
    budgeted_jobs: BudgetedJobs,
) -> None:
    meter = RequestMeter("redis://127.0.0.1:1")
    async with open_service(
        budgeted_jobs.database, meter, "redis://127.0.0.1:1", budgeted_jobs.blobs
    ) as service:
        unlimited_caller = replace(budgeted_jobs.caller, limits=())
        with pytest.raises(ServiceUnavailable):
            await service.submit(budgeted_jobs.caller, build_spec())
        budget_hold = await service._budgets.reserve(unlimited_caller, build_spec())
        assert budget_hold.reservation is None
    await meter.close()


async def _wait_for_amounts(budgeted_jobs: BudgetedJobs, expected_amounts: tuple[int, int]) -> None:
    """Wait for the expected amounts, because reservations are released in the background."""

    async def are_as_expected() -> bool:
        return await budgeted_jobs.read_amounts() == expected_amounts

    await eventually(are_as_expected)
