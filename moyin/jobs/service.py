"""Accepting, cancelling and retrying jobs, for any front end."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic_core import from_json

from moyin.domain.identity import TEXT, Identity
from moyin.domain.job import Canceller, Job, JobSpec, JobStatus, StepKind
from moyin.domain.prompt import channel_name
from moyin.domain.serialization import decode, encode
from moyin.errors import (
    IdempotencyMismatch,
    InsufficientScope,
    InvalidRequest,
    JobFinished,
    PriorityNotAllowed,
    ServiceUnavailable,
)
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.graphs import GraphChecks
from moyin.jobs.ports import GraphGuard, GraphValidator, Launcher
from moyin.jobs.protocol.renders import Templates
from moyin.jobs.protocol.translate import event_of, fingerprint, read_job, to_spec
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.jobs import JobStore, Launch, NewJob

__all__ = ["JobService"]

_log = logging.getLogger(__name__)
# How deep a job may be nested.
_LEVELS = 190


class JobService:
    """What a gateway does with jobs."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        artifacts: ArtifactStore,
        blobs: BlobStore,
        events: EventStore,
        frames: FrameStore,
        launcher: Launcher,
        validator: GraphValidator,
        guard: GraphGuard,
        pools: Sequence[str],
        networks: AllowedNetworks,
    ) -> None:
        self._jobs = jobs
        self._blobs = blobs
        self._events = events
        self._frames = frames
        self._launcher = launcher
        self._graphs = GraphChecks(
            artifacts=artifacts, validator=validator, guard=guard, pools=pools
        )
        self._networks = networks

    async def ask(
        self,
        submitter: Identity,
        body: bytes,
        templates: Templates,
        *,
        now: datetime,
        idempotency_key: str | None = None,
    ) -> tuple[Job, bool]:
        """Accept the job that the JSON ``body`` asks for; see `submit`.

        A repeat under its key gives the first job, whatever has become of its template, its pool or
        its files meanwhile, and of its deadline.

        Args:
            now: aware; a deadline must lie after it.
            templates: finds the template that a render names.

        Raises:
            InvalidJson, InvalidRequest: see `parse_job`.
            MoyinError: see `submit`.
        """
        asked, mark = read_job(body), None
        if idempotency_key is not None:
            mark = fingerprint(asked)
            known = await self._jobs.by_key(submitter.owner, idempotency_key)
            if known is not None:
                return _repeated(known, mark), False
        spec = to_spec(asked, now, templates)
        return await self.submit(
            submitter,
            spec,
            idempotency_key=idempotency_key,
            mark=mark,
            priority_field="priority" if "priority" in asked.model_fields_set else None,
        )

    async def submit(
        self,
        submitter: Identity,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        mark: str | None = None,
        job_id: str | None = None,
        validated: bool = False,
        priority_field: str | None = None,
    ) -> tuple[Job, bool]:
        """Accept a job; returns it and whether it was made now. It runs with the submitter's rights.

        Once the row is written the job is accepted: if Temporal is away, the sweeper starts it.

        Args:
            mark: the request's fingerprint; None: that of ``spec``.
            job_id: a canonical lower-case UUID of the client's own making.
            validated: its pool and its graphs have been looked at already.
            priority_field: the part of the request that asks for the class of ``spec``; None: no
                part does, and the job gets the class that comes nearest.

        Raises:
            PriorityNotAllowed: the submitter's jobs may not be of that class.
            InsufficientScope: the submitter may not ask models.
            TooManyJobs: too many of the submitter's jobs are open.
            InvalidRequest: an unknown pool, or too many brackets.
            AddressNotAllowed: the webhook leads into a private network.
            InputNotFound: a graph names a file that the submitter does not have.
            NodeNotAllowed: a graph has a node that it may not have.
            InvalidGraph: a render pool refuses a graph.
            IdempotencyMismatch: the key was used for another request.
            PromptIdTaken: the id belongs to another job.
        """
        mark = mark or (None if idempotency_key is None else fingerprint(spec))
        spec = _in_class(submitter, spec, priority_field)
        _check_scopes(submitter, spec)
        if spec.webhook is not None:
            self._networks.check_literal(spec.webhook)
        if not validated:
            spec = await self._graphs.admitted(submitter, spec)
        asked = spec.comfyui
        new = NewJob(
            id=job_id or str(uuid.uuid4()),
            owner=submitter.owner,
            key_id=submitter.key_id,
            user=submitter.user,
            scopes=submitter.scopes,
            limits=submitter.limits,
            kind=spec.kind,
            spec=await self._blobs.put(_written(spec)),
            heads=tuple((step.kind, step.pool) for step in spec.steps),
            priority=spec.priority,
            metadata=spec.metadata,
            webhook=spec.webhook,
            deadline=spec.deadline,
            idempotency_key=idempotency_key,
            fingerprint=None if idempotency_key is None else mark,
            channel=channel_name(submitter.owner, asked.client_id)
            if asked is not None and asked.client_id is not None
            else None,
            children=None if spec.base is None else len(spec.steps),
            comfyui=asked is not None,
        )
        job, created = await self._jobs.create(new)
        if created:
            await self._queue(job, new.launch)
        return job, created

    async def cancel(self, caller: Identity, job_id: str) -> Job:
        """Ask for the end of a job; it may still be running when this returns.

        The job names the caller as its canceller, unless another one asked before.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
            JobFinished: it has ended.
            ServiceUnavailable: Temporal is away.
        """
        job = await self._jobs.get(caller.owner, job_id)
        if job.status.is_final:
            raise _finished(job)
        await self._jobs.note_canceller(job_id, job.attempts, Canceller.of(caller))
        if not await self._launcher.cancel(job_id, job.attempts):
            return await self._cancel_row(job)
        return await self._jobs.get(caller.owner, job_id)

    async def retry(self, caller: Identity, job_id: str) -> Job:
        """Run a failed or cancelled job on from its last finished step.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
            JobNotFinished, JobFinished: it is not one of those.
            TooManyJobs: too many of the caller's jobs are open.
            PriorityNotAllowed: the caller's own jobs may not be of the job's class.
            InvalidRequest: a pool does not run the caller's jobs any more.
            NodeNotAllowed: a graph has a node that the caller's may not have any more.
        """
        found = await self._jobs.get(caller.owner, job_id)
        if found.priority < caller.best_priority:
            raise _refused_class(found.priority, caller.best_priority, None)
        if found.status.is_final and (spec := await self.spec(found)) is not None:
            await self._graphs.check_again(caller, spec)
        job = await self._jobs.reopen(caller.owner, job_id, caller.limits)
        await self._queue(job)
        return job

    async def outputs(self, job: Job) -> list[Mapping[str, Any]]:
        """The outputs of the finished steps, in the order of ``job.results``."""
        return [await self._output(result.output) for result in job.results]

    async def spec(self, job: Job) -> JobSpec | None:
        """What was asked for; None when it has been swept out of the artifact store."""
        try:
            return decode(JobSpec, await self._blobs.get(job.spec))
        except FileNotFoundError:
            return None

    async def _cancel_row(self, job: Job) -> Job:
        """Cancel a job without a workflow: not started yet, or over while we asked for its end."""
        written = await self._jobs.finish(
            job.id, job.attempts, JobStatus.CANCELLED, None, announced=False
        )
        job = await self._jobs.find(job.id)
        if written:
            await self._events.publish(job.id, *event_of(job))
            await self._frames.end(job)
            try:
                await self._launcher.notify(job.id, job.attempts)
            except ServiceUnavailable as error:
                _log.warning("the webhook of job %s waits for the sweeper: %s", job.id, error)
        elif job.status is not JobStatus.CANCELLED:
            raise _finished(job)
        return job

    async def _output(self, sha256: str) -> Mapping[str, Any]:
        try:
            output: Mapping[str, Any] = from_json(await self._blobs.get(sha256))
        except FileNotFoundError:
            # Swept out of the artifact store; what the row knows of the job is still right.
            return {}
        return output

    async def _queue(self, job: Job, launch: Launch | None = None) -> None:
        await self._events.publish(job.id, *event_of(job))
        await self._frames.status(job)
        try:
            await self._launcher.start(job.id, launch)
        except ServiceUnavailable as error:
            _log.warning("job %s waits for the sweeper: %s", job.id, error)


def _repeated(known: Job, mark: str) -> Job:
    if known.fingerprint != mark:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used for another request; use a new key",
            field="Idempotency-Key",
        )
    return known


def _written(spec: JobSpec) -> bytes:
    """The spec as it is stored.

    Raises:
        InvalidRequest: it could not be read again: pydantic reads 200 brackets within each other,
            and the spec has some around the graph that a request for one render has not.
    """
    try:
        written = encode(spec)
        # So many brackets need not lie within each other; fewer can't lie too deep.
        if written.count(b"{") + written.count(b"[") > _LEVELS:
            from_json(written)
    except ValueError:
        field = _deepest(spec)
        raise InvalidRequest(
            f"{field} is nested too deep: some {_LEVELS} levels fit", field=field
        ) from None
    return written


def _deepest(spec: JobSpec) -> str:
    """Where in the request the most brackets are. It is no pipeline, whose request has as many
    around its steps as the spec."""
    step, asked = spec.steps[0], spec.comfyui
    if asked is not None and _depth(asked.extra_data) > _depth(step.payload):
        return "extra_data"
    return "workflow" if step.kind is StepKind.RENDER else "request"


def _depth(value: Any) -> int:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return 1 + max(map(_depth, value), default=0)


def _in_class(submitter: Identity, spec: JobSpec, field: str | None) -> JobSpec:
    """The spec in a class that its submitter may use.

    Raises:
        PriorityNotAllowed: ``field`` asks for a better one.
    """
    best = submitter.best_priority
    if spec.priority >= best:
        return spec
    if field is not None:
        raise _refused_class(spec.priority, best, field)
    return replace(spec, priority=best)


def _refused_class(asked: int, best: int, field: str | None) -> PriorityNotAllowed:
    return PriorityNotAllowed(
        f"jobs of class {asked} are not allowed for you: class {best} is the best that you may ask for",
        field=field,
        details={"limit": "best_priority", "best_priority": best},
    )


def _check_scopes(submitter: Identity, spec: JobSpec) -> None:
    """Tell at once what the step would be told later."""
    asks = any(step.kind is StepKind.CHAT for step in spec.steps)
    if asks and not submitter.has_scope(TEXT):
        raise InsufficientScope(f"a chat step needs the scope {TEXT}", details={"scope": TEXT})


def _finished(job: Job) -> JobFinished:
    ended = "been cancelled" if job.status is JobStatus.CANCELLED else job.status.value
    return JobFinished(f"job {job.id} has {ended}")
