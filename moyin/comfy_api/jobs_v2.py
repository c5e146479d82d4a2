"""Serves renders through the Comfy API v2: the caller's render jobs, under the same ids."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

from moyin.comfy_api.protocol_v2 import wire
from moyin.comfy_api.protocol_v2.response import V2Presenter, progress_of, status_of
from moyin.domain import references
from moyin.domain.identity import Identity
from moyin.domain.job import EventType, Job, JobEvent, JobSpec, Progress, StepKind
from moyin.domain.serialization import decode
from moyin.errors import IdempotencyMismatch, JobFinished, JobNotFound
from moyin.jobs.feed import JobFeed
from moyin.jobs.service import JobService
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore

__all__ = ["ComfyJobs", "SseEvent"]

# The name and data of a server-sent event; None asks for a keep-alive comment.
SseEvent: TypeAlias = tuple[str, wire.StatusBody | wire.ProgressBody | wire.OutputBody] | None
_RENDER = StepKind.RENDER.value


class ComfyJobs:
    """Submits, lists, cancels and follows renders."""

    def __init__(
        self, *, service: JobService, jobs: JobStore, feed: JobFeed, blobs: BlobStore
    ) -> None:
        self._service = service
        self._jobs = jobs
        self._feed = feed
        self._blobs = blobs

    async def submit(self, caller: Identity, spec: JobSpec, *, key: str | None) -> Job:
        """Accept a render. An Idempotency-Key works once; a repeat is rejected.

        Raises:
            IdempotencyMismatch: the key was used before; ``details`` name the first job.
            MoyinError: see `JobService.submit`.
        """
        job, created = await self._service.submit(caller, spec, idempotency_key=key)
        if not created:
            raise IdempotencyMismatch(
                f"this Idempotency-Key was used for job {job.id}; an Idempotency-Key works once",
                field="Idempotency-Key",
                details={"job_id": job.id},
            )
        return job

    async def get(self, owner: str, job_id: str) -> Job:
        """Return a render of the owner.

        Raises:
            JobNotFound: the owner has no job with this id, or it is not a render.
        """
        job = await self._jobs.get(owner, job_id)
        if job.kind != _RENDER:
            raise JobNotFound(f"you have no render job {job_id!r}")
        return job

    async def page(
        self, owner: str, *, labels: Mapping[str, str], limit: int, cursor: str | None
    ) -> tuple[list[Job], str | None]:
        """Return the owner's renders, newest first, and the cursor of the next page."""
        return await self._jobs.list_page(
            owner, kind=_RENDER, labels=labels, limit=limit, cursor=cursor
        )

    async def outputs(self, job: Job) -> list[Mapping[str, Any]]:
        """Return the outputs of the job's finished steps."""
        return await self._service.load_outputs(job)

    async def cancel(self, caller: Identity, job_id: str) -> Job:
        """Request the cancellation of a render; a finished one stays as it is.

        Raises:
            JobNotFound: see `get`.
        """
        await self.get(caller.owner, job_id)
        try:
            return await self._service.cancel(caller, job_id)
        except JobFinished:
            return await self.get(caller.owner, job_id)

    async def workflow(self, job: Job) -> Mapping[str, Any]:
        """Return the graph as it was submitted; for a batch, the graph of its first child.

        Raises:
            JobNotFound: the graph is no longer in the artifact store.
        """
        try:
            spec = decode(JobSpec, await self._blobs.get(job.spec))
        except FileNotFoundError:
            raise JobNotFound(f"the graph of job {job.id} is no longer stored") from None
        submitted = spec.steps[0].payload if spec.base is None else spec.base
        graph: Mapping[str, Any] = references.resolve_references(submitted, ())
        return graph

    async def follow(self, job: Job, presenter: V2Presenter) -> AsyncGenerator[SseEvent, None]:
        """Yield the render's current state and then every change, up to its final status.

        Events are live only: earlier ones are not repeated.
        """
        newest = await self._feed.get_newest_id(job.id)
        # Read the job after the position: a change in between is then sent twice instead of never.
        state = _SentState(await self._jobs.find(job.id), presenter)
        for message in await self._messages(state, None):
            yield message
        if state.job.status.is_final:
            return
        async with aclosing(self._feed.follow(state.job, newest)) as feed:
            async for events in feed:
                if not events:
                    yield None
                for event in events:
                    if event.type is not EventType.PROGRESS:
                        state.job = await self._jobs.find(job.id)
                    for message in await self._messages(state, event):
                        yield message
                    # The store may report the end before its event arrives.
                    if state.job.status.is_final:
                        return

    async def _messages(self, state: _SentState, event: JobEvent | None) -> list[SseEvent]:
        if event is not None and event.type is EventType.PROGRESS:
            data = event.data
            progress = Progress(value=data["value"], max=data["max"], step=data["step"])
            return [("progress", progress_of(progress, data.get("node")))]
        outputs = await self.outputs(state.job)
        return [*state.new_status(), *state.new_files(outputs), *state.final_status()]


class _SentState:
    """Remembers what a client has received about a job."""

    def __init__(self, job: Job, presenter: V2Presenter) -> None:
        self.job = job
        self._presenter = presenter
        self._status: wire.Status | None = None
        self._files: set[str] = set()

    def new_status(self) -> list[SseEvent]:
        """Return the job's status and progress if the status is new and not final."""
        status = status_of(self.job)
        if self.job.status.is_final or status == self._status:
            return []
        self._status = status
        messages: list[SseEvent] = [("status", wire.StatusBody(status=status))]
        if self.job.progress.value > 0:
            messages.append(("progress", progress_of(self.job.progress)))
        return messages

    def new_files(self, outputs: list[Mapping[str, Any]]) -> list[SseEvent]:
        """Return the output files that the client has not received yet."""
        files = self._presenter.outputs(self.job, outputs)
        new = [file for file in files if file.id not in self._files]
        self._files.update(file.id for file in new)
        return [("output", file) for file in new]

    def final_status(self) -> list[SseEvent]:
        """Return the job's status if it is final."""
        if not self.job.status.is_final:
            return []
        return [("status", wire.StatusBody(status=status_of(self.job)))]
