"""Tests the intake with a broker in memory and a job service that can fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobStatus, Progress
from moyin.domain.limits import Limit
from moyin.errors import MoyinError, RenderFailed, ServiceUnavailable
from moyin.jobs.intake import BrokerLost, Delivery, IntakeWorker
from moyin.jobs.protocol.renders import Templates
from moyin.jobs.protocol.request_to_domain import parse_job
from moyin.render.templates.catalog import TemplateCatalog
from tests.waiting import eventually

JOB = Job(
    id="j1", owner="ann", kind="http", status=JobStatus.QUEUED, spec="", steps=1,
    progress=Progress(), results=(), error=None, attempts=1, priority=3, metadata={},
    created_at=datetime.now(UTC), started_at=None, finished_at=None,
)  # fmt: skip
BODY = json.dumps({"kind": "http", "request": {"path": "/x"}}).encode()
LATE_BODY = json.dumps(
    {"kind": "http", "request": {"path": "/x"}, "deadline": "2020-01-01T00:00:00Z"}
).encode()


class FakeBroker:
    """A fake broker that delivers the given messages and records how each was settled."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.messages = list(deliveries)
        self.completed_deliveries: list[tuple[str | None, str, Any]] = []
        self.dead_letters: list[tuple[str | None, str]] = []
        self.losses = 0
        self.worker: IntakeWorker
        self.is_settled = asyncio.Event()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[FakeBroker]:
        yield self

    async def receive_deliveries(self) -> AsyncGenerator[Delivery, None]:
        if self.losses:
            self.losses -= 1
            raise BrokerLost("the connection broke")
        for delivery in self.messages:
            yield delivery
        await asyncio.Event().wait()

    async def complete_delivery(self, delivery: Delivery, result_id: str, result: bytes) -> None:
        self.completed_deliveries.append((delivery.message_id, result_id, json.loads(result)))
        self.is_settled.set()

    async def dead_letter(self, delivery: Delivery, code: str, reason: str) -> None:
        self.dead_letters.append((delivery.message_id, code))
        self.is_settled.set()


class FakeJobService:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.keys: list[str | None] = []
        self.submitters: list[Identity] = []

    async def submit_request(
        self,
        submitter: Identity,
        body: bytes,
        templates: Templates,
        *,
        now: datetime,
        idempotency_key: str | None,
    ) -> tuple[Job, bool]:
        if self.errors:
            raise self.errors.pop(0)
        parse_job(body, now, templates)
        self.submitters.append(submitter)
        self.keys.append(idempotency_key)
        return JOB, True

    async def load_outputs(self, job: Job) -> list[Any]:
        return []


class EndedJobs:
    """A fake of both the job feed and the job store; every job in it has succeeded."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], Job] = {}

    async def find_by_idempotency_key(self, owner: str, key: str) -> Job | None:
        return self.keys.get((owner, key))

    async def find(self, job_id: str) -> Job:
        return replace(JOB, status=JobStatus.SUCCEEDED)

    async def follow(self, job: Job, after: str | None) -> AsyncGenerator[None, None]:
        yield None


def make_delivery(message_id: str | None = "m1", body: bytes = BODY, count: int = 1) -> Delivery:
    return Delivery(message_id=message_id, body=body, count=count, handle=None)


class FakeLimits:
    """A fake store of limits."""

    def __init__(self, *limits: Limit) -> None:
        self.limits = limits

    async def list_for(self, subjects: Sequence[str]) -> tuple[Limit, ...]:
        return tuple(limit for limit in self.limits if limit.subject in subjects)


async def run_worker(
    broker: FakeBroker,
    service: FakeJobService,
    jobs: EndedJobs | None = None,
    limits: FakeLimits | None = None,
) -> FakeBroker:
    worker = IntakeWorker(
        broker,
        name="list",
        service=service,  # type: ignore[arg-type]
        jobs=jobs or EndedJobs(),  # type: ignore[arg-type]
        feed=EndedJobs(),  # type: ignore[arg-type]
        submitter=Identity(owner="ann", key_id="intake"),
        templates=TemplateCatalog(()),
        limits=limits or FakeLimits(),  # type: ignore[arg-type]
        max_deliveries=5,
        max_body_bytes=500,
    )
    broker.worker = worker
    worker_task = asyncio.create_task(worker.run())
    async with asyncio.timeout(5):
        await broker.is_settled.wait()
        await eventually(lambda: not worker.counts.open)
    assert worker.is_connected
    worker_task.cancel()
    await asyncio.gather(worker_task, return_exceptions=True)
    assert not worker.is_connected
    return broker


async def test_a_message_becomes_a_job_and_its_result_is_published() -> None:
    service = FakeJobService()
    broker = await run_worker(FakeBroker(make_delivery()), service)
    [(message_id, result_id, result)] = broker.completed_deliveries
    assert (message_id, result_id) == ("m1", "j1-1")
    assert (result["message_id"], result["job"]["status"]) == ("m1", "succeeded")
    assert service.keys == ["list:m1"]
    counts = broker.worker.counts
    assert (counts.accepted, counts.refused, counts.open) == (1, 0, 0)
    assert counts.last_message is not None
    assert counts.last_message >= counts.started


@pytest.mark.parametrize(
    ("invalid_delivery", "code"),
    [
        (make_delivery(message_id=None), "invalid_request"),
        (make_delivery(message_id="m" * 300), "invalid_request"),
        (make_delivery(message_id="m\0"), "invalid_request"),
        (make_delivery(body=b"{"), "invalid_json"),
        (make_delivery(body=b'"' + b"x" * 500 + b'"'), "body_too_large"),
        (make_delivery(count=6), "invalid_request"),
    ],
)
async def test_an_invalid_message_becomes_a_dead_letter(
    invalid_delivery: Delivery, code: str
) -> None:
    broker = await run_worker(FakeBroker(invalid_delivery), FakeJobService())
    assert broker.dead_letters == [(invalid_delivery.message_id, code)]
    assert broker.completed_deliveries == []
    assert (broker.worker.counts.accepted, broker.worker.counts.refused) == (0, 1)


async def test_a_message_that_the_service_refuses_becomes_a_dead_letter() -> None:
    broker = await run_worker(FakeBroker(make_delivery()), FakeJobService(RenderFailed("no")))
    assert broker.dead_letters == [("m1", "render_failed")]


async def test_an_accepted_job_continues_if_its_message_would_be_refused_now() -> None:
    body_with_unknown_template = json.dumps(
        {"kind": "render", "template": "no-longer-there"}
    ).encode()
    jobs = EndedJobs()
    jobs.keys["ann", "list:m1"] = JOB
    broker = await run_worker(
        FakeBroker(make_delivery(body=body_with_unknown_template, count=2)),
        FakeJobService(RenderFailed("no")),
        jobs,
    )
    assert broker.dead_letters == []
    assert [result_id for _, result_id, _ in broker.completed_deliveries] == ["j1-1"]
    assert broker.worker.counts.accepted == 0, "it was counted before"


async def test_a_redelivered_message_without_a_job_is_submitted() -> None:
    broker = await run_worker(FakeBroker(make_delivery(count=2)), FakeJobService())
    assert [message for message, _, _ in broker.completed_deliveries] == ["m1"]


@pytest.mark.parametrize("outage", [ServiceUnavailable("away"), OSError("away"), TimeoutError()])
async def test_an_outage_only_delays_the_job(outage: Exception) -> None:
    broker = await run_worker(FakeBroker(make_delivery()), FakeJobService(outage))
    assert [message for message, _, _ in broker.completed_deliveries] == ["m1"]


async def test_a_deadline_that_has_passed_does_not_make_a_dead_letter() -> None:
    broker = await run_worker(FakeBroker(make_delivery(body=LATE_BODY)), FakeJobService())
    assert broker.dead_letters == []


async def test_a_lost_connection_is_opened_again() -> None:
    broker = FakeBroker(make_delivery())
    broker.losses = 1
    await run_worker(broker, FakeJobService())
    assert len(broker.completed_deliveries) == 1


async def test_a_bug_is_logged_and_the_message_retried() -> None:
    broker = await run_worker(FakeBroker(make_delivery()), FakeJobService(ZeroDivisionError()))
    assert not issubclass(ZeroDivisionError, MoyinError)
    assert len(broker.completed_deliveries) == 1


async def test_the_tenants_limits_apply_except_for_the_number_of_open_jobs() -> None:
    limits = FakeLimits(
        Limit(subject="owner:ann", best_priority=4, open_jobs=0, pools=("a",)),
        Limit(subject="owner:bob"),
    )
    service = FakeJobService()
    await run_worker(FakeBroker(make_delivery()), service, limits=limits)
    [submitter] = service.submitters
    assert submitter.best_priority == 4
    assert submitter.limits == (Limit(subject="owner:ann", best_priority=4, pools=("a",)),)
