"""`IntakeWorker`: makes jobs of messages, waits for their ends, publishes the results."""

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
from moyin.jobs.protocol.translate import job_detail
from moyin.jobs.service import JobService
from moyin.render.templates.catalog import Catalog, TemplateSnapshot
from moyin.store.jobs import JobStore
from moyin.store.limits import LimitStore, subjects_of

__all__ = ["IntakeWorker"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 15.0
_MAX_KEY = 255
_NO_TIME = datetime.min.replace(tzinfo=UTC)
# Outages of what jobs need: no message is to blame for them.
_OUTAGES = (RedisError, SQLAlchemyError, OSError, TimeoutError)


class IntakeWorker:
    """Works one source for as long as asked; any number may work the same.

    A message stays unsettled until its job has ended and the result is published, so that a worker
    that dies loses nothing: the message comes again, its id leads to the same job.

    Args:
        name: of the source; never changes, and tells its messages from another's of the submitter.
        submitter: of every job; who may write to the queue acts for it.
        limits: where the submitter's best priority, pools and nodes are found.
        max_deliveries: a message that has been delivered more often than that is poison.
        max_body_bytes: larger messages are poison.
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
        templates: Catalog,
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
        """Work until cancelled; a broker that is away only delays it."""
        pause = _FIRST_PAUSE
        while True:
            try:
                async with self._broker.session() as session:
                    self.error, pause = None, _FIRST_PAUSE
                    await self._work(session)
            except* BrokerLost as lost:
                _log.warning("intake %s: %s", self._name, lost.exceptions[0])
            except* Exception as error:
                self.error = error
                _log.exception("intake %s ended; starting again", self._name)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _work(self, session: Session) -> None:
        async with (
            aclosing(session.deliveries()) as deliveries,
            asyncio.TaskGroup() as group,
        ):
            async for delivery in deliveries:
                group.create_task(self._handle(session, delivery))

    async def _handle(self, session: Session, delivery: Delivery) -> None:
        try:
            accepted = await self._accepted(delivery)
            ended = await _patiently(lambda: self._end(accepted))
            result = await _patiently(lambda: self._result(ended, delivery))
        except MoyinError as error:
            _log.warning(
                "intake %s: message %r is poison: %s", self._name, delivery.message_id, error
            )
            await session.bury(delivery, error.code, error.message)
        else:
            await session.complete(delivery, f"{ended.id}-{ended.attempts}", result)

    async def _accepted(self, delivery: Delivery) -> Job:
        """The message's job.

        Raises:
            MoyinError: it never will have one.
        """
        key = self._key(delivery)
        if delivery.count > 1:
            # What was accepted goes on, whatever has become of its template, its pool or its files.
            known = await _patiently(lambda: self._jobs.by_key(self._submitter.owner, key))
            if known is not None:
                return known
        if len(delivery.body) > self._max_body_bytes:
            raise BodyTooLarge(f"the message is larger than {self._max_body_bytes} bytes")
        shelf = await self._templates.shelf()
        return await _patiently(lambda: self._submit(delivery, shelf, key))

    def _key(self, delivery: Delivery) -> str:
        """What makes the message one job.

        Raises:
            InvalidRequest: it has no id that can be kept, or has come too often.
        """
        if not delivery.message_id:
            raise InvalidRequest("the message has no id", field="message_id")
        if "\0" in delivery.message_id:
            # PostgreSQL has no such character, and what it says of one looks like an outage.
            raise InvalidRequest("the message's id has a NUL in it", field="message_id")
        key = f"{self._name}:{delivery.message_id}"
        if len(key) > _MAX_KEY:
            raise InvalidRequest("the message's id is too long", field="message_id")
        if delivery.count > self._max_deliveries:
            raise InvalidRequest(f"the message was delivered {delivery.count} times in vain")
        return key

    async def _submit(self, delivery: Delivery, shelf: TemplateSnapshot, key: str) -> Job:
        found = (
            *self._submitter.limits,
            *await self._limits.of(subjects_of(self._submitter)),
        )
        # A queue holds jobs back by itself, and a message that is one too many would be lost.
        limits = tuple(replace(limit, open_jobs=None) for limit in found)
        job, _ = await self._service.ask(
            replace(self._submitter, limits=limits),
            delivery.body,
            shelf.find,
            # A deadline that passed while the message waited is its job's end, not the message's.
            now=_NO_TIME,
            idempotency_key=key,
        )
        return job

    async def _end(self, job: Job) -> Job:
        """The job once it has ended, by its events; its row has the last word."""
        while not job.status.is_final:
            async with aclosing(self._feed.follow(job, None)) as events:
                async for _ in events:
                    continue
            job = await self._jobs.find(job.id)
        return job

    async def _result(self, job: Job, delivery: Delivery) -> bytes:
        detail = job_detail(job, await self._service.outputs(job))
        return to_json({"message_id": delivery.message_id, "job": detail.model_dump(mode="json")})


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do the work; what can be tried again is, for as long as it takes.

    Raises:
        MoyinError: trying again can't help.
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
