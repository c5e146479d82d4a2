"""Defines `IntakeWorker`, which turns messages into jobs and publishes their results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from pydantic_core import to_json
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.identity import Identity
from moyin.domain.job import Job
from moyin.errors import BodyTooLarge, InvalidRequest, MoyinError
from moyin.jobs.feed import JobFeed
from moyin.jobs.intake.broker import Broker, BrokerLost, Delivery, Session
from moyin.jobs.protocol.response import job_detail
from moyin.jobs.service import JobService
from moyin.render.templates.catalog import TemplateCatalog, TemplateSnapshot
from moyin.store.jobs import JobStore
from moyin.store.limits import LimitStore, subjects_of

__all__ = ["IntakeWorker"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 15.0
_MAX_KEY = 255
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
# Outages of the services that jobs need; the message is not the cause.
_OUTAGES = (RedisError, SQLAlchemyError, OSError, TimeoutError)


class IntakeWorker:
    """Processes the messages of one source; any number of workers may share a source.

    A message stays unsettled until its job has ended and the result is published. If a worker dies,
    the message is delivered again and its id leads to the same job.

    Args:
        name: of the source; part of idempotency keys, so it must stay the same and be unique among
            the sources of the submitter.
        submitter: owns every job; everyone who can write to the queue acts with its rights.
        limits: has the submitter's best priority, pools and nodes.
        max_deliveries: a message that is delivered more often becomes a dead letter.
        max_body_bytes: larger messages become dead letters.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        name: str,
        service: JobService,
        jobs: JobStore,
        feed: JobFeed,
        submitter: Identity,
        limits: LimitStore,
        templates: TemplateCatalog,
        max_deliveries: int = 20,
        max_body_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self._broker = broker
        self._name = name
        self._service = service
        self._jobs = jobs
        self._feed = feed
        self._submitter = submitter
        self._limits = limits
        self._templates = templates
        self._max_deliveries = max_deliveries
        self._max_body_bytes = max_body_bytes
        self.error: Exception | None = None

    async def run(self) -> None:
        """Process messages until cancelled; an outage of the broker only delays it."""
        pause = _FIRST_PAUSE
        while True:
            try:
                async with self._broker.session() as session:
                    self.error, pause = None, _FIRST_PAUSE
                    await self._process(session)
            except* BrokerLost as lost:
                _log.warning("intake %s: %s", self._name, lost.exceptions[0])
            except* Exception as error:
                self.error = error
                _log.exception("intake %s failed; starting again", self._name)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _process(self, session: Session) -> None:
        async with (
            aclosing(session.deliveries()) as deliveries,
            asyncio.TaskGroup() as group,
        ):
            async for delivery in deliveries:
                group.create_task(self._handle(session, delivery))

    async def _handle(self, session: Session, delivery: Delivery) -> None:
        try:
            accepted = await self._accept(delivery)
            ended = await _retry(lambda: self._wait(accepted))
            result = await _retry(lambda: self._result(ended, delivery))
        except MoyinError as error:
            _log.warning(
                "intake %s: message %r becomes a dead letter: %s",
                self._name,
                delivery.message_id,
                error,
            )
            await session.dead_letter(delivery, error.code, error.message)
        else:
            await session.complete(delivery, f"{ended.id}-{ended.attempts}", result)

    async def _accept(self, delivery: Delivery) -> Job:
        """Return the message's job, which may exist already.

        Raises:
            MoyinError: the message can never become a job.
        """
        key = self._key(delivery)
        if delivery.count > 1:
            # An accepted job continues, even if its template, pool or files have changed since.
            first_job = await _retry(
                lambda: self._jobs.find_by_idempotency_key(self._submitter.owner, key)
            )
            if first_job is not None:
                return first_job
        if len(delivery.body) > self._max_body_bytes:
            raise BodyTooLarge(f"the message is larger than {self._max_body_bytes} bytes")
        templates = await self._templates.snapshot()
        return await _retry(lambda: self._submit(delivery, templates, key))

    def _key(self, delivery: Delivery) -> str:
        """Return the idempotency key of the message.

        Raises:
            InvalidRequest: the message has no valid id, or was delivered too often.
        """
        if not delivery.message_id:
            raise InvalidRequest("the message must have an id", field="message_id")
        if "\0" in delivery.message_id:
            # PostgreSQL cannot store this character, and its error looks like an outage.
            raise InvalidRequest("the message's id must not contain NUL", field="message_id")
        key = f"{self._name}:{delivery.message_id}"
        if len(key) > _MAX_KEY:
            raise InvalidRequest(
                f"the message's id is too long: at most {_MAX_KEY - len(self._name) - 1} characters are allowed",
                field="message_id",
            )
        if delivery.count > self._max_deliveries:
            raise InvalidRequest(
                f"the message was delivered {delivery.count} times without being processed"
            )
        return key

    async def _submit(self, delivery: Delivery, templates: TemplateSnapshot, key: str) -> Job:
        limits = (
            *self._submitter.limits,
            *await self._limits.list_for(subjects_of(self._submitter)),
        )
        # The queue itself holds jobs back; refusing a message because of open jobs would lose it.
        limits = tuple(replace(limit, open_jobs=None) for limit in limits)
        job, _ = await self._service.submit_request(
            replace(self._submitter, limits=limits),
            delivery.body,
            templates.find,
            # If the deadline passed while the message waited, its job fails, not the message.
            now=_LONG_AGO,
            idempotency_key=key,
        )
        return job

    async def _wait(self, job: Job) -> Job:
        """Follow the job's events until its row says that it has ended, and return it."""
        while not job.status.is_final:
            async with aclosing(self._feed.follow(job, None)) as events:
                async for _ in events:
                    continue
            job = await self._jobs.find(job.id)
        return job

    async def _result(self, job: Job, delivery: Delivery) -> bytes:
        detail = job_detail(job, await self._service.outputs(job))
        return to_json({"message_id": delivery.message_id, "job": detail.model_dump(mode="json")})


async def _retry(work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work`` and retry it until it succeeds.

    Raises:
        MoyinError: a retry cannot help.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return await work()
        except MoyinError as error:
            if not error.retryable:
                raise
            _log.info("intake waits: %s", error)
        except _OUTAGES as error:
            _log.warning("intake waits: %s: %s", type(error).__name__, error)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
