"""Defines `JobService`, which accepts, cancels and retries jobs for every API and the intake."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json

from moyin.domain.identity import TEXT, Identity
from moyin.domain.job import Canceller, Job, JobSpec, JobStatus, StepKind
from moyin.domain.prompt import build_channel_name, derive_job_id
from moyin.domain.serialization import decode, encode
from moyin.errors import (
    BudgetExceeded,
    IdempotencyMismatch,
    InsufficientScope,
    InvalidRequest,
    JobFinished,
    PriorityNotAllowed,
    ServiceUnavailable,
)
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.file_names import FileNameReplacer
from moyin.jobs.graphs import GraphChecker
from moyin.jobs.ports import GraphGuard, GraphValidator, JobBudgets, Launcher, NamedFiles
from moyin.jobs.protocol.renders import Templates
from moyin.jobs.protocol.request_to_domain import (
    compute_fingerprint,
    is_batch,
    parse_job_body,
    requires_valid_outputs,
    to_job_spec,
)
from moyin.jobs.protocol.response import build_status_event
from moyin.jobs.search_text import collect_text
from moyin.jobs.spec_cache import SpecCache
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.job_deletion import Deletion
from moyin.store.jobs import JobStore, Launch, NewJob
from moyin.system.heavy_work import HeavyWork, run_aside

_log = logging.getLogger(__name__)
# The most levels of nesting in a job. pydantic decodes up to 200 levels, and a stored spec needs
# some of them around its graph.
_MAX_LEVELS = 190
# The largest spec, in bytes, that the response of a job contains.
_MAX_SHOWN_SPEC = 1024 * 1024
_CACHED_SPEC_BYTES = 16 * 1024 * 1024


class JobService:
    """Accepts, cancels, retries and deletes jobs on behalf of callers.

    Attributes:
        work: processes large graphs beside other requests.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        artifacts: ArtifactStore,
        files: NamedFiles,
        blobs: BlobStore,
        events: EventStore,
        frames: FrameStore,
        launcher: Launcher,
        validator: GraphValidator,
        guard: GraphGuard,
        budgets: JobBudgets,
        networks: AllowedNetworks,
        work: HeavyWork | None = None,
    ) -> None:
        self.work = work or HeavyWork()
        self._jobs = jobs
        self._blobs = blobs
        self._events = events
        self._frames = frames
        self._launcher = launcher
        self._graphs = GraphChecker(artifacts=artifacts, validator=validator, guard=guard)
        self._budgets = budgets
        self._names = FileNameReplacer(files)
        self._networks = networks
        self._specs = SpecCache(_CACHED_SPEC_BYTES)

    async def submit_request(
        self,
        submitter: Identity,
        body: bytes,
        templates: Templates,
        *,
        now: datetime,
        idempotency_key: str | None = None,
    ) -> tuple[Job, bool]:
        """Accept a job from a JSON body in the format of the jobs API.

        A repeated request with the same idempotency key returns the first job, even if meanwhile
        the template, pool or files have changed or the deadline has passed.

        Args:
            now: the current time with a time zone; deadlines must be later.
            templates: a function that returns the template with the given name.

        Returns:
            The job, and True unless an earlier request with ``idempotency_key`` created it.

        Raises:
            InvalidJson, BodyTooLarge, InvalidRequest: the body is invalid.
            Overloaded: too many large requests are waiting.
            MoyinError: one of the errors of `submit`.
        """
        async with self.work.admit(submitter.owner, len(body)):
            request, fingerprint = await run_aside(parse_job_body, body), None
            if idempotency_key is not None:
                fingerprint = await run_aside(compute_fingerprint, request)
                first_job = await self._jobs.find_by_idempotency_key(
                    submitter.owner, idempotency_key
                )
                if first_job is not None:
                    _check_same_request(first_job, fingerprint)
                    return first_job, False
            # However short its request is, a batch has a graph for each child.
            async with self.work.admit(submitter.owner, math.inf if is_batch(request) else 0):
                request = await self._names.replace_in_templates(
                    submitter.owner, request, templates
                )
                spec = await run_aside(to_job_spec, request, now, templates)
                return await self.submit(
                    submitter,
                    spec,
                    idempotency_key=idempotency_key,
                    fingerprint=fingerprint,
                    priority_field="priority" if "priority" in request.model_fields_set else None,
                    is_strict=requires_valid_outputs(request),
                )

    async def submit(
        self,
        submitter: Identity,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
        prompt_id: str | None = None,
        is_validated: bool = False,
        priority_field: str | None = None,
        is_strict: bool = False,
        node_errors: Mapping[str, Any] | None = None,
    ) -> tuple[Job, bool]:
        """Accept a job, which runs with the submitter's rights.

        A job is accepted once its row is written: if Temporal is unavailable, the sweeper starts
        the job later.

        Args:
            fingerprint: the request's fingerprint; if None, that of ``spec`` is computed.
            prompt_id: the prompt's id in ComfyUI's API, which the client chose: a lower-case UUID.
                The job's id is derived from it.
            is_validated: True if the pool and the graphs have been checked already.
            priority_field: the request's field that sets the priority, or None if no field does.
                Without such a field, a forbidden priority of ``spec`` is replaced by the best
                permitted priority.
            is_strict: True to refuse a graph that has an invalid output beside valid ones.
            node_errors: the job's `Job.node_errors` if ``is_validated`` is True.

        Returns:
            The job, and True unless an earlier request with ``idempotency_key`` created it.

        Raises:
            PriorityNotAllowed: the submitter must not use the priority.
            InsufficientScope: the submitter must not call models.
            TooManyJobs: too many jobs of the submitter are queued or running.
            InvalidRequest: a pool is unknown, or the job is nested too deeply.
            GraphTooLarge: the graphs are larger than the submitter's may be.
            AddressNotAllowed: the webhook leads into a private network.
            InputNotFound: a graph names a file that the submitter does not have.
            NodeNotAllowed: a graph has a node that is not allowed.
            InvalidGraph: ComfyUI's validation rejects a graph, or, if ``is_strict`` is True, an
                output of it.
            IdempotencyMismatch: ``idempotency_key`` was used for another request.
            PromptIdTaken: ``prompt_id`` belongs to another job of the tenant.
            BudgetExceeded: a budget does not cover the estimated cost of the renders.
            ServiceUnavailable: the cost or the remaining budgets can't be determined.
        """
        if idempotency_key is not None and fingerprint is None:
            fingerprint = await run_aside(compute_fingerprint, spec)
        spec = _apply_allowed_priority(submitter, spec, priority_field)
        _check_scopes(submitter, spec)
        if spec.webhook is not None:
            self._networks.check_literal_address(spec.webhook)
        if not is_validated:
            await self._graphs.check_sizes(submitter, spec)
            spec = await self._names.replace_in_graphs(submitter.owner, spec)
            spec, node_errors = await self._graphs.check_new_job(
                submitter, spec, is_strict=is_strict
            )
        prompt = spec.comfyui
        new_job = NewJob(
            id=str(uuid.uuid4())
            if prompt_id is None
            else derive_job_id(submitter.owner, prompt_id),
            chosen_id=prompt_id,
            owner=submitter.owner,
            key_id=submitter.key_id,
            user=submitter.user,
            scopes=submitter.scopes,
            limits=submitter.limits,
            kind=spec.kind,
            spec=await self._blobs.put(await run_aside(serialize_spec, spec)),
            heads=tuple((step.kind, step.pool) for step in spec.steps),
            priority=spec.priority,
            metadata=spec.metadata,
            webhook=spec.webhook,
            deadline=spec.deadline,
            idempotency_key=idempotency_key,
            fingerprint=None if idempotency_key is None else fingerprint,
            channel=build_channel_name(submitter.owner, prompt.client_id)
            if prompt is not None and prompt.client_id is not None
            else None,
            children=None if spec.base is None else len(spec.steps),
            comfyui=prompt is not None,
            templates=tuple(dict.fromkeys(step.template for step in spec.steps if step.template)),
            has_chosen_id=prompt_id is not None,
            text=await run_aside(collect_text, spec),
            node_errors=node_errors or {},
        )
        job, is_new = await self._create_job(submitter, spec, new_job)
        if is_new:
            await self._publish_and_start(job, new_job.launch)
        return job, is_new

    async def _create_job(
        self, submitter: Identity, spec: JobSpec, new_job: NewJob
    ) -> tuple[Job, bool]:
        """Insert the job with its reservation, or find the job of an earlier identical request.

        Returns:
            The job, and True if it was inserted.
        """
        try:
            held_budget = await self._budgets.reserve(submitter, spec)
        except (BudgetExceeded, ServiceUnavailable):
            # Look for the first job before money is reserved, because a repeated request costs
            # nothing.
            if (repeated_job := await self._jobs.find_identical_job(new_job)) is not None:
                return repeated_job, False
            raise
        is_new = False
        try:
            job, is_new = await self._jobs.create(
                replace(new_job, reservation=held_budget.reservation)
            )
        finally:
            if not is_new:
                held_budget.release()
        return job, is_new

    async def cancel(self, caller: Identity, job_id: str) -> Job:
        """Request the cancellation of a job and return the job, which may still be running.

        The caller of the first successful request is recorded as the job's canceller.

        Raises:
            JobNotFound: the caller has no job with this id.
            JobFinished: the job has ended.
            ServiceUnavailable: Temporal is unavailable.
        """
        job = await self._jobs.get(caller.owner, job_id)
        if job.status.is_final:
            raise _new_finished_error(job)
        # Recorded before the workflow is cancelled, because the job may then end at once.
        canceller = Canceller.from_identity(caller)
        record_id = await self._jobs.record_canceller(job.id, job.attempts, canceller)
        try:
            has_workflow = await self._launcher.cancel(job.id, job.attempts)
        except ServiceUnavailable:
            if record_id is not None:
                await self._jobs.clear_canceller(job.id, job.attempts, record_id)
            raise
        if not has_workflow:
            return await self._cancel_without_workflow(job)
        return await self._jobs.get(caller.owner, job.id)

    async def retry(self, caller: Identity, job_id: str) -> Job:
        """Continue a failed or cancelled job after its last finished step, and return the job.

        Raises:
            JobNotFound: the caller has no job with this id.
            JobNotFinished: the job is still running.
            JobFinished: the job has succeeded.
            TooManyJobs: too many jobs of the caller are queued or running.
            PriorityNotAllowed: the caller must not use the job's priority.
            InsufficientScope: the caller must not call models, as a step of the job does.
            InvalidRequest: a pool no longer runs the caller's jobs.
            GraphTooLarge: the graphs are larger than the caller's may be by now.
            NodeNotAllowed: a graph has a node that the caller must no longer use.
            BudgetExceeded: a budget does not cover the estimated cost of the remaining renders.
        """
        stored_job = await self._jobs.get(caller.owner, job_id)
        if stored_job.priority < caller.best_priority:
            raise _new_priority_error(stored_job.priority, caller.best_priority, None)
        content = await self._load_content(stored_job) if stored_job.status.is_final else None
        if content is None:
            # Without its spec, the job will fail before it costs anything.
            job = await self._jobs.reopen(caller.owner, stored_job.id, caller.limits)
        else:
            async with self.work.admit(caller.owner, len(content)):
                spec = await run_aside(decode, JobSpec, content)
                _check_scopes(caller, spec)
                await self._graphs.check_retried_job(caller, spec)
                job = await self._reopen_job(caller, stored_job, spec)
        await self._publish_and_start(job)
        return job

    async def _reopen_job(self, caller: Identity, ended_job: Job, spec: JobSpec) -> Job:
        done_indexes = {result.index for result in ended_job.results}
        held_budget = await self._budgets.reserve(caller, spec, done_indexes)
        is_reopened = False
        try:
            job = await self._jobs.reopen(
                caller.owner, ended_job.id, caller.limits, held_budget.reservation
            )
            is_reopened = True
        finally:
            if not is_reopened:
                held_budget.release()
        return job

    async def delete(self, owner: str, job_ids: Sequence[str]) -> Deletion:
        """Delete the jobs with these ids, and their events, except for jobs that have not ended.

        The jobs' files are unreadable from then on; `moyin.store.deletion_pruning` deletes them
        later.

        Returns:
            The ids of the deleted jobs, and of those that are still open.
        """
        deletion = await self._jobs.delete(owner, job_ids)
        await self._events.delete(deletion.deleted)
        await self._frames.delete_files(deletion.deleted)
        return deletion

    async def load_outputs(self, job: Job) -> list[Mapping[str, Any]]:
        """Return the outputs of the job's finished steps, in the order of ``job.results``."""
        return [await self._load_output(result.output) for result in job.results]

    async def load_spec(self, job: Job) -> JobSpec | None:
        """Return the job's spec; None if the spec was deleted from the artifact store."""
        content = await self._load_content(job)
        if content is None:
            return None
        async with self.work.admit(job.owner, len(content)):
            return await run_aside(decode, JobSpec, content)

    async def load_small_spec(self, job: Job) -> JobSpec | None:
        """Return the job's spec; None if it is large or deleted, or the store is unavailable.

        Specs are cached, because clients poll their jobs.
        """
        if (cached_content := self._specs.get(job.spec)) is not None:
            async with self.work.admit(job.owner, len(cached_content)):
                return await run_aside(decode, JobSpec, cached_content)
        encoded_spec = bytearray()
        try:
            async with aclosing(self._blobs.read_chunks(job.spec)) as chunks:
                async for chunk in chunks:
                    encoded_spec += chunk
                    if len(encoded_spec) > _MAX_SHOWN_SPEC:
                        return None
        except (FileNotFoundError, ServiceUnavailable):
            # Respond without the spec, because the job's status does not depend on the artifact
            # store.
            return None
        self._specs.put(job.spec, bytes(encoded_spec))
        async with self.work.admit(job.owner, len(encoded_spec)):
            return await run_aside(decode, JobSpec, bytes(encoded_spec))

    async def encode_detail(self, job: Job, build_body: Callable[[], BaseModel]) -> bytes:
        """Return the JSON of a response that has the job's spec, which may be large."""
        size = len(self._specs.get(job.spec) or b"")
        async with self.work.admit(job.owner, size):
            return await run_aside(lambda: build_body().model_dump_json(by_alias=True).encode())

    async def _cancel_without_workflow(self, job: Job) -> Job:
        """Cancel and return a job whose workflow does not run.

        The workflow has not begun, or has just ended.

        Raises:
            JobFinished: the job has ended with another status.
        """
        is_written = await self._jobs.finish(
            job.id, job.attempts, JobStatus.CANCELLED, None, webhook_sent=False
        )
        job = await self._jobs.find(job.id)
        if is_written:
            await self._events.publish(job.id, *build_status_event(job))
            await self._frames.publish_end(job)
            try:
                await self._launcher.start_webhook(job.id, job.attempts)
            except ServiceUnavailable as error:
                _log.warning("the sweeper will start the webhook of job %s: %s", job.id, error)
        elif job.status is not JobStatus.CANCELLED:
            raise _new_finished_error(job)
        return job

    async def _load_content(self, job: Job) -> bytes | None:
        """Return the encoded spec of a job; None if it was deleted from the artifact store."""
        try:
            return await self._blobs.get(job.spec)
        except FileNotFoundError:
            return None

    async def _load_output(self, sha256: str) -> Mapping[str, Any]:
        try:
            output: Mapping[str, Any] = from_json(await self._blobs.get(sha256))
        except FileNotFoundError:
            # The output was deleted from the artifact store, but the job's row is still valid.
            return {}
        return output

    async def _publish_and_start(self, job: Job, launch: Launch | None = None) -> None:
        await self._events.publish(job.id, *build_status_event(job))
        await self._frames.publish_status(job)
        try:
            await self._launcher.start(job.id, launch)
        except ServiceUnavailable as error:
            _log.warning("the sweeper will start job %s: %s", job.id, error)


def _check_same_request(first_job: Job, fingerprint: str) -> None:
    """Raise IdempotencyMismatch if the request that created ``first_job`` was not the same."""
    if first_job.fingerprint != fingerprint:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used for another request; use a new key",
            field="Idempotency-Key",
        )


def serialize_spec(spec: JobSpec) -> bytes:
    """Return the JSON of a spec; raise InvalidRequest if its nesting is too deep to be decoded."""
    try:
        encoded_spec = encode(spec)
        # A spec with fewer brackets than the limit can't have more levels, so skip the exact check.
        if encoded_spec.count(b"{") + encoded_spec.count(b"[") > _MAX_LEVELS:
            from_json(encoded_spec)
    except ValueError:
        field = _find_deepest_field(spec)
        raise InvalidRequest(
            f"{field} is nested too deeply: at most about {_MAX_LEVELS} levels are allowed",
            field=field,
        ) from None
    return encoded_spec


def _find_deepest_field(spec: JobSpec) -> str:
    """Return the field with the deepest nesting in the request of a spec's first step."""
    step, prompt = spec.steps[0], spec.comfyui
    if prompt is not None and _measure_depth(prompt.extra_data) > _measure_depth(step.payload):
        return "extra_data"
    return "workflow" if step.kind is StepKind.RENDER else "request"


def _measure_depth(value: Any) -> int:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return 1 + max(map(_measure_depth, value), default=0)


def _apply_allowed_priority(submitter: Identity, spec: JobSpec, field: str | None) -> JobSpec:
    """Return the spec with a priority that the submitter may use.

    Raises:
        PriorityNotAllowed: the client named a priority, in ``field``, that it must not use.
    """
    best_priority = submitter.best_priority
    if spec.priority >= best_priority:
        return spec
    if field is not None:
        raise _new_priority_error(spec.priority, best_priority, field)
    return replace(spec, priority=best_priority)


def _new_priority_error(priority: int, best_priority: int, field: str | None) -> PriorityNotAllowed:
    return PriorityNotAllowed(
        f"you must not use priority {priority}: your best priority is {best_priority}; use it or a "
        "larger number",
        field=field,
        details={"limit": "best_priority", "best_priority": best_priority},
    )


def _check_scopes(caller: Identity, spec: JobSpec) -> None:
    """Raise InsufficientScope for chat steps of a caller that must not call models."""
    has_chat = any(step.kind is StepKind.CHAT for step in spec.steps)
    if has_chat and not caller.has_scope(TEXT):
        raise InsufficientScope(
            f"a chat step needs the scope {TEXT!r}, which you lack: use a key with this scope",
            details={"scope": TEXT},
        )


def _new_finished_error(job: Job) -> JobFinished:
    status = "been cancelled" if job.status is JobStatus.CANCELLED else job.status.value
    return JobFinished(f"job {job.id} has {status}; only a queued or running job can be cancelled")
