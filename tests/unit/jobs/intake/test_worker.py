"""The intake over a broker that is a list, and a job service that can fail."""

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
from moyin.render.templates.catalog import Catalog

JOB = Job(
    id="j1", owner="ann", kind="http", status=JobStatus.QUEUED, spec="", steps=1,
    progress=Progress(), results=(), error=None, attempts=1, priority=3, metadata={},
    created_at=datetime.now(UTC), started_at=None, finished_at=None,
)  # fmt: skip
BODY = json.dumps({"kind": "http", "request": {"path": "/x"}}).encode()
LATE = json.dumps(
    {"kind": "http", "request": {"path": "/x"}, "deadline": "2020-01-01T00:00:00Z"}
).encode()


class Broker:
    """Delivers what is in ``waiting``; notes what became of it."""

    def __init__(self, *waiting: Delivery) -> None:
        self.waiting = list(waiting)
        self.completed: list[tuple[str | None, str, Any]] = []
        self.buried: list[tuple[str | None, str]] = []
        self.losses = 0
        self.settled = asyncio.Event()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Broker]:
        yield self

    async def deliveries(self) -> AsyncGenerator[Delivery, None]:
        if self.losses:
            self.losses -= 1
            raise BrokerLost("gone")
        for delivery in self.waiting:
            yield delivery
        await asyncio.Event().wait()

    async def complete(self, delivery: Delivery, result_id: str, result: bytes) -> None:
        self.completed.append((delivery.message_id, result_id, json.loads(result)))
        self.settled.set()

    async def dead_letter(self, delivery: Delivery, code: str, reason: str) -> None:
        self.buried.append((delivery.message_id, code))
        self.settled.set()


class Service:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.keys: list[str | None] = []
        self.submitters: list[Identity] = []

    async def ask(
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

    async def outputs(self, job: Job) -> list[Any]:
        return []


class Ended:
    """Both the feed and the list of jobs: every job has ended well."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], Job] = {}

    async def by_key(self, owner: str, key: str) -> Job | None:
        return self.keys.get((owner, key))

    async def find(self, job_id: str) -> Job:
        return replace(JOB, status=JobStatus.SUCCEEDED)

    async def follow(self, job: Job, after: str | None) -> AsyncGenerator[None, None]:
        yield None


def delivery(message_id: str | None = "m1", body: bytes = BODY, count: int = 1) -> Delivery:
    return Delivery(message_id=message_id, body=body, count=count, handle=None)


class Limits:
    """The tenant's own limits."""

    def __init__(self, *found: Limit) -> None:
        self.found = found

    async def of(self, subjects: Sequence[str]) -> tuple[Limit, ...]:
        return tuple(limit for limit in self.found if limit.subject in subjects)


async def worked(
    broker: Broker, service: Service, jobs: Ended | None = None, limits: Limits | None = None
) -> Broker:
    worker = IntakeWorker(
        broker,
        name="list",
        service=service,  # type: ignore[arg-type]
        jobs=jobs or Ended(),  # type: ignore[arg-type]
        feed=Ended(),  # type: ignore[arg-type]
        submitter=Identity(owner="ann", key_id="intake"),
        templates=Catalog(()),
        limits=limits or Limits(),  # type: ignore[arg-type]
        max_deliveries=5,
        max_body_bytes=500,
    )
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(5):
        await broker.settled.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return broker


async def test_a_message_becomes_a_job_and_its_end_a_result() -> None:
    service = Service()
    broker = await worked(Broker(delivery()), service)
    [(message_id, result_id, result)] = broker.completed
    assert (message_id, result_id) == ("m1", "j1-1")
    assert (result["message_id"], result["job"]["status"]) == ("m1", "succeeded")
    assert service.keys == ["list:m1"]


@pytest.mark.parametrize(
    ("poison", "code"),
    [
        (delivery(message_id=None), "invalid_request"),
        (delivery(message_id="m" * 300), "invalid_request"),
        (delivery(message_id="m\0"), "invalid_request"),
        (delivery(body=b"{"), "invalid_json"),
        (delivery(body=b'"' + b"x" * 500 + b'"'), "body_too_large"),
        (delivery(count=6), "invalid_request"),
    ],
)
async def test_poison_is_buried(poison: Delivery, code: str) -> None:
    broker = await worked(Broker(poison), Service())
    assert broker.buried == [(poison.message_id, code)]
    assert broker.completed == []


async def test_what_the_service_refuses_for_good_is_buried() -> None:
    broker = await worked(Broker(delivery()), Service(RenderFailed("no")))
    assert broker.buried == [("m1", "render_failed")]


async def test_what_was_accepted_goes_on_whatever_would_be_said_of_it_now() -> None:
    gone = json.dumps({"kind": "render", "template": "no-longer-there"}).encode()
    jobs = Ended()
    jobs.keys["ann", "list:m1"] = JOB
    broker = await worked(Broker(delivery(body=gone, count=2)), Service(RenderFailed("no")), jobs)
    assert broker.buried == []
    assert [result_id for _, result_id, _ in broker.completed] == ["j1-1"]


async def test_what_came_before_and_was_not_accepted_is_read_again() -> None:
    broker = await worked(Broker(delivery(count=2)), Service())
    assert [message for message, _, _ in broker.completed] == ["m1"]


@pytest.mark.parametrize("outage", [ServiceUnavailable("away"), OSError("away"), TimeoutError()])
async def test_an_outage_is_waited_for(outage: Exception) -> None:
    broker = await worked(Broker(delivery()), Service(outage))
    assert [message for message, _, _ in broker.completed] == ["m1"]


async def test_a_deadline_that_passed_on_the_way_is_the_job_s_matter() -> None:
    broker = await worked(Broker(delivery(body=LATE)), Service())
    assert broker.buried == []


async def test_a_lost_broker_is_called_again() -> None:
    broker = Broker(delivery())
    broker.losses = 1
    await worked(broker, Service())
    assert len(broker.completed) == 1


async def test_a_mistake_of_ours_is_told_and_tried_again() -> None:
    broker = await worked(Broker(delivery()), Service(ZeroDivisionError()))
    assert not issubclass(ZeroDivisionError, MoyinError)
    assert len(broker.completed) == 1


async def test_a_message_has_its_tenants_limits_but_for_the_number_of_jobs() -> None:
    limits = Limits(
        Limit(subject="owner:ann", best_priority=4, open_jobs=0, pools=("a",)),
        Limit(subject="owner:bob"),
    )
    service = Service()
    await worked(Broker(delivery()), service, limits=limits)
    [submitter] = service.submitters
    assert submitter.best_priority == 4
    assert submitter.limits == (Limit(subject="owner:ann", best_priority=4, pools=("a",)),)
