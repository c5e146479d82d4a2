"""Defines `IntakeWorker`, which turns messages of a broker into jobs and publishes the results."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
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
from moyin.jobs.protocol.response import render_job_detail
from moyin.jobs.service import JobService
from moyin.render.templates.catalog import TemplateCatalog, TemplateSnapshot
from moyin.store.jobs import JobStore
from moyin.store.limits import LimitStore, list_limit_subjects

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 15.0
_MAX_KEY = 255
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
# Errors of services that jobs need. They are never caused by a message, so they are retried.
_OUTAGES = (RedisError, SQLAlchemyError, OSError, TimeoutError)


@dataclass(kw_only=True, slots=True)
class IntakeCounts:
    """Counts the messages of a worker since its start.

    Attributes:
        started: when the worker was created, in seconds since the epoch.
        last_message: when the last message arrived, in seconds since the epoch.
        accepted: the number of messages that became jobs; one that is delivered again counts once.
        refused: the number of messages that became dead letters.
        open: the number of messages that are being processed.
    """

    started: float
    last_message: float | None = None
    accepted: int = 0
    refused: int = 0
    open: int = 0


class IntakeWorker:
    """Processes the messages of one broker queue; several workers may share a queue.

    The broker keeps a message until its job has ended and the result is published. If a worker
    dies, the broker delivers the message again, and another worker finds the job by the message's
    id.

    Args:
        name: the name of the queue in the configuration. It is a part of idempotency keys, so it
            must never change and must be unique among the submitter's queues.
        submitter: the identity that submits and owns every job.
        limits: the store of the submitter's limits.
        max_deliveries: the number of deliveries after which a message becomes a dead letter.
        max_body_bytes: the largest message in bytes; larger messages become dead letters.

    Attributes:
        error: the bug that ended the last session; None while a session lasts.
        is_connected: True while the worker has a connection to the broker.
        counts: the numbers of messages.
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
        self.is_connected = False
        self.counts = IntakeCounts(started=time.time())

    async def run(self) -> None:
        """Process messages until cancelled, and connect again after an outage of the broker."""
        pause = _FIRST_PAUSE
        while True:
            try:
                async with self._broker.connect() as session:
                    self.error, pause, self.is_connected = None, _FIRST_PAUSE, True
                    await self._process_deliveries(session)
            except* BrokerLost as error_group:
                _log.warning("intake %s connects again: %s", self._name, error_group.exceptions[0])
            except* Exception as error:
                self.error = error
                _log.exception("intake %s failed with a bug and starts again", self._name)
            finally:
                self.is_connected = False
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _process_deliveries(self, session: Session) -> None:
        async with (
            aclosing(session.receive_deliveries()) as deliveries,
            asyncio.TaskGroup() as task_group,
        ):
            async for delivery in deliveries:
                self.counts.last_message = time.time()
                task_group.create_task(self._handle_delivery(session, delivery))

    async def _handle_delivery(self, session: Session, delivery: Delivery) -> None:
        self.counts.open += 1
        try:
            await self._settle_delivery(session, delivery)
        finally:
            self.counts.open -= 1

    async def _settle_delivery(self, session: Session, delivery: Delivery) -> None:
        try:
            accepted_job = await self._accept_delivery(delivery)
            ended_job = await _retry_until_done(lambda: self._wait_for_end(accepted_job))
            result = await _retry_until_done(lambda: self._build_result(ended_job, delivery))
        except MoyinError as error:
            _log.warning(
                "intake %s: message %r becomes a dead letter: %s",
                self._name,
                delivery.message_id,
                error,
            )
            await session.dead_letter(delivery, error.code, error.message)
            self.counts.refused += 1
        else:
            await session.complete_delivery(
                delivery, f"{ended_job.id}-{ended_job.attempts}", result
            )

    async def _accept_delivery(self, delivery: Delivery) -> Job:
        """Return the job of a message, and submit the job if it does not exist yet.

        Raises:
            MoyinError: the message can't become a job.
        """
        key = self._build_idempotency_key(delivery)
        if delivery.count > 1:
            # An accepted job continues, even if its template, pool or files have changed since.
            first_job = await _retry_until_done(
                lambda: self._jobs.find_by_idempotency_key(self._submitter.owner, key)
            )
            if first_job is not None:
                return first_job
        if len(delivery.body) > self._max_body_bytes:
            raise BodyTooLarge(f"the message must have at most {self._max_body_bytes} bytes")
        templates = await self._templates.get_snapshot()
        job, is_new = await _retry_until_done(lambda: self._submit_job(delivery, templates, key))
        self.counts.accepted += is_new
        return job

    def _build_idempotency_key(self, delivery: Delivery) -> str:
        """Return the idempotency key of a message; raise InvalidRequest if its id is invalid."""
        if not delivery.message_id:
            raise InvalidRequest("the message must have a message_id", field="message_id")
        if "\0" in delivery.message_id:
            # PostgreSQL cannot store this character, and its error would look like an outage.
            raise InvalidRequest("message_id must not contain NUL characters", field="message_id")
        key = f"{self._name}:{delivery.message_id}"
        if len(key) > _MAX_KEY:
            max_length = _MAX_KEY - len(self._name) - 1
            raise InvalidRequest(
                f"message_id must have at most {max_length} characters", field="message_id"
            )
        if delivery.count > self._max_deliveries:
            raise InvalidRequest(
                f"the message was delivered {delivery.count} times without being processed; "
                f"at most {self._max_deliveries} deliveries are allowed"
            )
        return key

    async def _submit_job(
        self, delivery: Delivery, templates: TemplateSnapshot, key: str
    ) -> tuple[Job, bool]:
        """Submit the job of a message; return it, and True if it is new."""
        limits = (
            *self._submitter.limits,
            *await self._limits.list_for(list_limit_subjects(self._submitter)),
        )
        # No limit of open jobs applies to messages, because the queue's concurrency limits these
        # jobs.
        limits = tuple(replace(limit, open_jobs=None) for limit in limits)
        return await self._service.submit_request(
            replace(self._submitter, limits=limits),
            delivery.body,
            templates.find,
            # Accept every deadline here: one that has passed must fail the job, not the message.
            now=_LONG_AGO,
            idempotency_key=key,
        )

    async def _wait_for_end(self, job: Job) -> Job:
        """Follow the job's events until its row has a final status, and return the job."""
        while not job.status.is_final:
            async with aclosing(self._feed.follow(job, None)) as events:
                async for _ in events:
                    continue
            job = await self._jobs.find(job.id)
        return job

    async def _build_result(self, job: Job, delivery: Delivery) -> bytes:
        job_detail = render_job_detail(job, await self._service.load_outputs(job))
        return to_json(
            {"message_id": delivery.message_id, "job": job_detail.model_dump(mode="json")}
        )


async def _retry_until_done(operation: Callable[[], Awaitable[T]]) -> T:
    """Run ``operation`` until it succeeds, or raise its MoyinError if a retry can't help."""
    pause = _FIRST_PAUSE
    while True:
        try:
            return await operation()
        except MoyinError as error:
            if not error.retryable:
                raise
            _log.info("the intake retries an operation: %s", error)
        except _OUTAGES as error:
            _log.warning("the intake retries an operation: %s: %s", type(error).__name__, error)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
