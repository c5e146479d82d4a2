"""Submits, lists, cancels and follows render jobs for the routes of the Comfy API v2."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

from moyin.comfy_api.protocol_v2 import wire
from moyin.comfy_api.protocol_v2.request_to_domain import parse_job
from moyin.comfy_api.protocol_v2.response import V2Presenter, to_progress, to_status
from moyin.domain import references
from moyin.domain.identity import Identity
from moyin.domain.job import EventType, Job, JobEvent, JobSpec, Progress, StepKind
from moyin.domain.serialization import decode
from moyin.errors import IdempotencyMismatch, JobFinished, JobNotFound
from moyin.jobs.feed import JobFeed
from moyin.jobs.service import JobService
from moyin.store.blobs import BlobStore
from moyin.store.job_filter import JobFilter
from moyin.store.jobs import JobStore
from moyin.system.heavy_work import run_aside

# The name and the data of a server-sent event, or None for a keep-alive comment.
SseEvent: TypeAlias = tuple[str, wire.StatusBody | wire.ProgressBody | wire.OutputBody] | None
_RENDER = StepKind.RENDER.value


@dataclass(kw_only=True, eq=False)
class ComfyJobs:
    """Submits, lists, cancels and follows the render jobs of one tenant at a time."""

    service: JobService
    jobs: JobStore
    feed: JobFeed
    blobs: BlobStore

    async def submit(self, caller: Identity, body: bytes, *, idempotency_key: str | None) -> Job:
        """Accept a render job. Unlike in Moyin's other APIs, an Idempotency-Key is valid only once.

        Args:
            body: the JSON body of the request.
            idempotency_key: the Idempotency-Key of the request, or None.

        Raises:
            IdempotencyMismatch: the key was used before; ``details`` has the id of the first job.
            MoyinError: the job is not accepted.
        """
        async with self.service.work.admit(caller.owner, len(body)):
            spec = await run_aside(parse_job, body)
            job, is_new = await self.service.submit(caller, spec, idempotency_key=idempotency_key)
        if not is_new:
            raise IdempotencyMismatch(
                f"this Idempotency-Key was used for job {job.id}: use a new key for each job",
                field="Idempotency-Key",
                details={"job_id": job.id},
            )
        return job

    async def get_job(self, owner: str, job_id: str) -> Job:
        """Return a render job of the owner.

        Raises:
            JobNotFound: the owner has no job with this id, or the job is not a render.
        """
        job = await self.jobs.get(owner, job_id)
        if job.kind != _RENDER:
            raise JobNotFound(f"you have no render job with the id {job_id!r}")
        return job

    async def list_jobs(
        self, owner: str, *, labels: Mapping[str, str], limit: int, cursor: str | None
    ) -> tuple[list[Job], str | None]:
        """Return a page of the owner's render jobs, newest first, and the next page's cursor.

        Args:
            labels: only jobs with these labels in their metadata.
        """
        job_filter = JobFilter(kind=_RENDER, metadata=labels)
        return await self.jobs.list_page(owner, job_filter, limit=limit, cursor=cursor)

    async def list_outputs(self, job: Job) -> list[Mapping[str, Any]]:
        """Return the outputs of the job's finished steps, one mapping for each step."""
        return await self.service.load_outputs(job)

    async def cancel(self, caller: Identity, job_id: str) -> Job:
        """Request the cancellation of a render job. A finished job does not change.

        Raises:
            JobNotFound: the owner has no render job with this id.
        """
        await self.get_job(caller.owner, job_id)
        try:
            return await self.service.cancel(caller, job_id)
        except JobFinished:
            return await self.get_job(caller.owner, job_id)

    async def encode_graph(self, job: Job) -> bytes:
        """Return the JSON of a job's graph as it was submitted, as a `wire.WorkflowBody`.

        A batch returns the graph of its first child.

        Raises:
            JobNotFound: the job's spec is no longer in the blob store.
        """
        try:
            content = await self.blobs.get(job.spec)
        except FileNotFoundError:
            raise JobNotFound(
                f"the graph of job {job.id} was deleted from the artifact store; submit the graph again"
            ) from None
        async with self.service.work.admit(job.owner, len(content)):
            return await run_aside(_encode_graph, content)

    async def follow(self, job: Job, presenter: V2Presenter) -> AsyncGenerator[SseEvent, None]:
        """Yield events with the job's current state, then with each change until it has ended.

        Args:
            presenter: builds the data of the events.
        """
        newest_id = await self.feed.get_newest_id(job.id)
        # Read the job after the position, so that a change in between may be sent twice, but not
        # missed.
        tracker = _ChangeTracker(await self.jobs.find(job.id), presenter)
        for sse_event in await self._build_events(tracker, None):
            yield sse_event
        if tracker.job.status.is_final:
            return
        async with aclosing(self.feed.follow(tracker.job, newest_id)) as event_batches:
            async for events in event_batches:
                if not events:
                    yield None
                for event in events:
                    if event.type is not EventType.PROGRESS:
                        tracker.job = await self.jobs.find(job.id)
                    for sse_event in await self._build_events(tracker, event):
                        yield sse_event
                    # The job's row may show the end of the job before the event arrives.
                    if tracker.job.status.is_final:
                        return

    async def _build_events(
        self, tracker: _ChangeTracker, event: JobEvent | None
    ) -> list[SseEvent]:
        """Return the events for the client after a job event.

        Args:
            event: the job event, or None to send the job's present state.
        """
        if event is not None and event.type is EventType.PROGRESS:
            data = event.data
            progress = Progress(value=data["value"], max=data["max"], step=data["step"])
            return [("progress", to_progress(progress, data.get("node")))]
        outputs = await self.list_outputs(tracker.job)
        return [
            *tracker.build_status_events(),
            *tracker.build_file_events(outputs),
            *tracker.build_final_events(),
        ]


def _encode_graph(content: bytes) -> bytes:
    spec = decode(JobSpec, content)
    submitted_graph = spec.steps[0].payload if spec.base is None else spec.base
    graph: Mapping[str, Any] = references.resolve_references(submitted_graph, ())
    return wire.WorkflowBody(workflow=dict(graph)).model_dump_json().encode()


class _ChangeTracker:
    """Remembers which changes of a job its client has received."""

    def __init__(self, job: Job, presenter: V2Presenter) -> None:
        self.job = job
        self._presenter = presenter
        self._status: wire.Status | None = None
        self._files: set[str] = set()

    def build_status_events(self) -> list[SseEvent]:
        """Return events with the job's status and progress if the status is new and not final."""
        status = to_status(self.job)
        if self.job.status.is_final or status == self._status:
            return []
        self._status = status
        sse_events: list[SseEvent] = [("status", wire.StatusBody(status=status))]
        if self.job.progress.value > 0:
            sse_events.append(("progress", to_progress(self.job.progress)))
        return sse_events

    def build_file_events(self, outputs: list[Mapping[str, Any]]) -> list[SseEvent]:
        """Return events with the output files that the client has not received yet."""
        files = self._presenter.to_output_bodies(self.job, outputs)
        new_files = [file for file in files if file.id not in self._files]
        self._files.update(file.id for file in new_files)
        return [("output", file) for file in new_files]

    def build_final_events(self) -> list[SseEvent]:
        """Return an event with the job's status, if the status is final."""
        if not self.job.status.is_final:
            return []
        return [("status", wire.StatusBody(status=to_status(self.job)))]
