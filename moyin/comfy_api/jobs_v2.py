"""Renders as the Comfy API v2 knows them: the caller's render jobs, under the same ids."""

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

__all__ = ["ComfyJobs", "Told"]

# The name of a server-sent event and its data; None marks a quiet spell.
Told: TypeAlias = tuple[str, wire.StatusBody | wire.ProgressBody | wire.OutputBody] | None
_RENDER = StepKind.RENDER.value


class ComfyJobs:
    """Submitting and following renders."""

    def __init__(
        self, *, service: JobService, jobs: JobStore, feed: JobFeed, blobs: BlobStore
    ) -> None:
        self._service = service
        self._jobs = jobs
        self._feed = feed
        self._blobs = blobs

    async def submit(self, caller: Identity, spec: JobSpec, *, key: str | None) -> Job:
        """Accept a render. A key works once: a repeat is told which job the first became.

        Raises:
            IdempotencyMismatch: the key was used before.
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
        """The render.

        Raises:
            JobNotFound: there is none, it is somebody else's, or it renders nothing.
        """
        job = await self._jobs.get(owner, job_id)
        if job.kind != _RENDER:
            raise JobNotFound(f"there is no render {job_id!r}")
        return job

    async def page(
        self, owner: str, *, labels: Mapping[str, str], limit: int, cursor: str | None
    ) -> tuple[list[Job], str | None]:
        """The caller's renders, newest first, and where the next page begins."""
        return await self._jobs.page(owner, kind=_RENDER, labels=labels, limit=limit, cursor=cursor)

    async def outputs(self, job: Job) -> list[Mapping[str, Any]]:
        return await self._service.outputs(job)

    async def cancel(self, caller: Identity, job_id: str) -> Job:
        """Ask for the end of a render; one that has ended stays as it is.

        Raises:
            JobNotFound: see `get`.
        """
        await self.get(caller.owner, job_id)
        try:
            return await self._service.cancel(caller, job_id)
        except JobFinished:
            return await self.get(caller.owner, job_id)

    async def workflow(self, job: Job) -> Mapping[str, Any]:
        """The graph as it was submitted; of a batch, that of its first child.

        Raises:
            JobNotFound: it is no longer in the artifact store.
        """
        try:
            spec = decode(JobSpec, await self._blobs.get(job.spec))
        except FileNotFoundError:
            raise JobNotFound(f"the graph of job {job.id} is gone") from None
        submitted = spec.steps[0].payload if spec.base is None else spec.base
        graph: Mapping[str, Any] = references.resolve(submitted, ())
        return graph

    async def follow(self, job: Job, teller: V2Presenter) -> AsyncGenerator[Told, None]:
        """Where the render stands, and then everything new until its end, which comes last.

        Not a log: what was told before is not repeated.
        """
        newest = await self._feed.newest(job.id)
        # Read after that: what happens in between is told twice rather than never.
        scene = _SentState(await self._jobs.find(job.id), teller)
        for told in await self._news(scene, None):
            yield told
        if scene.job.status.is_final:
            return
        async with aclosing(self._feed.follow(scene.job, newest)) as followed:
            async for events in followed:
                if not events:
                    yield None
                for event in events:
                    if event.type is not EventType.PROGRESS:
                        scene.job = await self._jobs.find(job.id)
                    for told in await self._news(scene, event):
                        yield told
                    # The last event may still be on its way when the store tells the end.
                    if scene.job.status.is_final:
                        return

    async def _news(self, scene: _SentState, event: JobEvent | None) -> list[Told]:
        if event is not None and event.type is EventType.PROGRESS:
            data = event.data
            progress = Progress(value=data["value"], max=data["max"], step=data["step"])
            return [("progress", progress_of(progress, data.get("node")))]
        outputs = await self.outputs(scene.job)
        return [*scene.status(), *scene.files(outputs), *scene.end()]


class _SentState:
    """What a client has been told of a job."""

    def __init__(self, job: Job, teller: V2Presenter) -> None:
        self.job = job
        self._teller = teller
        self._status: wire.Status | None = None
        self._files: set[str] = set()

    def status(self) -> list[Told]:
        """The job's status, if it is new and not its last, and how far it is."""
        status = status_of(self.job)
        if self.job.status.is_final or status == self._status:
            return []
        self._status = status
        told: list[Told] = [("status", wire.StatusBody(status=status))]
        if self.job.progress.value > 0:
            told.append(("progress", progress_of(self.job.progress)))
        return told

    def files(self, outputs: list[Mapping[str, Any]]) -> list[Told]:
        """The files that are new."""
        made = self._teller.outputs(self.job, outputs)
        new = [file for file in made if file.id not in self._files]
        self._files.update(file.id for file in new)
        return [("output", file) for file in new]

    def end(self) -> list[Told]:
        """The job's last status, after which nobody listens."""
        if not self.job.status.is_final:
            return []
        return [("status", wire.StatusBody(status=status_of(self.job)))]
