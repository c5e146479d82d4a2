"""`FarmPrompts`: prompts as ComfyUI's clients submit, watch and cancel them; jobs underneath."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from moyin.comfy_api.files import FarmFiles
from moyin.comfy_api.protocol import response as answers
from moyin.domain import references
from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobSpec, Step, StepKind
from moyin.domain.prompt import ComfyPrompt
from moyin.domain.serialization import decode
from moyin.errors import JobFinished, JobNotFound
from moyin.jobs.feed import JobFeed
from moyin.jobs.ports import GraphGuard, GraphValidator
from moyin.jobs.service import JobService
from moyin.render.comfyui.prompts import BoundedDict
from moyin.render.protocol.graph import file_names, input_name, with_inputs
from moyin.render.protocol.wire import PromptBody
from moyin.store.blobs import BlobStore
from moyin.store.prompts import PromptStore, asked_by

__all__ = ["FarmPrompts"]

_NORMAL, _FRONT = 3, 2
# Of people at other companies' nodes: never written down.
_SECRETS = frozenset({"auth_token_comfy_org", "api_key_comfy_org"})
T = TypeVar("T")
_REMEMBERED_SPECS = 512
# Larger ones are read each time: a graph may be as large as a body.
_REMEMBERED_BYTES = 256 * 1024
# Graphs and records in one answer; what would come after is asked for with an offset.
_MOST_BYTES = 64 * 1024 * 1024
_REMEMBERED_WORKFLOWS = 10_000
# Rows of a longer queue come without their graphs, which would be megabytes.
_WHOLE_ROWS = 500
_DEFAULT_ENTRIES = 200
_MAX_ENTRIES = 1_000
_SIDE_BY_SIDE = 8
# A cancellation takes two processes a moment; clients look at the queue right after.
_PATIENCE_SECONDS = 3.0


class FarmPrompts:
    """What ComfyUI's queue and history would do, for one owner at a time.

    Args:
        executed: those of some prompts that ComfyUI is through with, as far as the pools say.
        heard: returns when the client of a job that has ended was told so, as far as it listens.
    """

    def __init__(
        self,
        *,
        service: JobService,
        feed: JobFeed,
        validator: GraphValidator,
        guard: GraphGuard,
        prompts: PromptStore,
        files: FarmFiles,
        blobs: BlobStore,
        executed: Callable[[Sequence[str]], Awaitable[Collection[str]]],
        heard: Callable[[Job], Awaitable[None]],
    ) -> None:
        self._service = service
        self._feed = feed
        self._validator = validator
        self._guard = guard
        self._prompts = prompts
        self._files = files
        self._blobs = blobs
        self._executed = executed
        self._heard = heard
        # With how many bytes they take.
        self._specs: BoundedDict[str, tuple[JobSpec, int]] = BoundedDict(_REMEMBERED_SPECS)
        # By spec. Digests: a client's own ids may be of any length.
        self._workflows: BoundedDict[str, bytes] = BoundedDict(_REMEMBERED_WORKFLOWS)
        self._reading = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def submit(
        self, caller: Identity, body: PromptBody, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Accept a prompt, as ``POST /prompt`` does.

        Raises:
            InvalidGraph: with ComfyUI's own body.
            NodeNotAllowed, InputNotFound: likewise; see `GraphGuard.check`.
            MoyinError: as `JobService.submit` does.
        """
        graph, targets = body.prompt, body.partial_execution_targets
        files = await self._files.named(caller.owner, file_names(graph))
        pool = await self._guard.pool_for(caller, graph)
        verdict = await self._verdict(caller, pool, graph, files, targets)
        asked = ComfyPrompt(
            client_id=body.client_id,
            number=body.number,
            front=bool(body.front) or (body.number or 0) < 0,
            extra_data={k: v for k, v in (body.extra_data or {}).items() if k not in _SECRETS},
            targets=None if targets is None else tuple(targets),
            outputs=tuple(verdict.get("outputs", ())),
            files={text: artifact.id for text, artifact in files.items()},
        )
        step = Step(kind=StepKind.RENDER, payload=references.escape_references(graph), pool=pool)
        spec = JobSpec(
            kind=StepKind.RENDER.value,
            steps=(step,),
            priority=_FRONT if asked.front else _NORMAL,
            comfyui=asked,
        )
        job, _ = await self._service.submit(
            caller,
            spec,
            idempotency_key=idempotency_key,
            job_id=body.prompt_id,
            validated=True,
            priority_field=_front_field(body) if asked.front else None,
        )
        return {
            "prompt_id": job.id,
            "number": answers.number_of(job, asked),
            "node_errors": verdict.get("node_errors", {}),
        }

    async def remaining(self, owner: str) -> int:
        """How many prompts wait or run."""
        return await self._prompts.open_count(owner)

    async def queue(self, owner: str) -> dict[str, list[list[Any]]]:
        """``/queue``."""
        found = await self._prompts.open(owner)
        specs = await _fitting(found[:_WHOLE_ROWS], self._sized_spec)
        rows = [
            (job, answers.queue_row(job, specs[place] if place < len(specs) else None))
            for place, job in enumerate(found)
        ]
        return {
            "queue_running": [row for job, row in rows if job.begun_at is not None],
            "queue_pending": [row for job, row in rows if job.begun_at is None],
        }

    async def history(
        self, owner: str, *, max_items: int | None = None, offset: int | None = None
    ) -> dict[str, Any]:
        """``/history``, oldest first: the newest ``max_items``, or those from ``offset`` on."""
        wanted = _DEFAULT_ENTRIES if max_items is None else min(max_items, _MAX_ENTRIES)
        newest = offset is None or offset < 0
        found = await self._prompts.ended(owner, limit=wanted, offset=None if newest else offset)
        entries = await self._entries(found)
        return dict(reversed(entries.items())) if newest else entries

    async def history_of(self, owner: str, prompt_id: str) -> dict[str, Any]:
        """``/history/{id}``; nothing of a prompt that has not ended."""
        found = [j for j in await self._prompts.get(owner, [prompt_id]) if j.status.is_final]
        for job in found:
            await self._heard(job)
        return await self._entries(found)

    async def forget(
        self, caller: Identity, ids: Sequence[str] | None, *, client_id: str | None = None
    ) -> None:
        """Take ended prompts out of the history; their jobs stay.

        Args:
            ids: of the tenant's prompts; None: the caller's own, or those of ``client_id``.
        """
        if ids is None:
            await self._prompts.hide(caller.owner, None, asked_by(caller, client_id))
        else:
            await self._prompts.hide(caller.owner, ids)

    async def remove(
        self, caller: Identity, ids: Sequence[str] | None, *, client_id: str | None = None
    ) -> None:
        """Take prompts that wait out of the queue.

        Args:
            ids: of the tenant's prompts; None: the caller's own, or those of ``client_id``.
        """
        if ids is None:
            found = await self._prompts.open(caller.owner, asked_by(caller, client_id))
        else:
            wanted = set(ids)
            found = [job for job in await self._prompts.open(caller.owner) if job.id in wanted]
        await self._cancel(caller, [job.id for job in found if job.begun_at is None])

    async def interrupt(
        self, caller: Identity, prompt_id: str | None, *, client_id: str | None = None
    ) -> None:
        """End one prompt of the tenant's, or those that run and are the caller's own.

        What is executed and only being stored ends by itself, and well, as it does in ComfyUI.

        Args:
            client_id: instead of the caller's own, the prompts of this client.
        """
        if prompt_id is not None:
            found = await self._prompts.get(caller.owner, [prompt_id])
            meant = [job.id for job in found if not job.status.is_final]
        else:
            found = await self._prompts.open(caller.owner, asked_by(caller, client_id))
            meant = [job.id for job in found if job.begun_at is not None]
        executed = await self._executed(meant) if meant else ()
        await self._cancel(caller, [job_id for job_id in meant if job_id not in executed])

    async def cancel(self, caller: Identity, ids: Sequence[str]) -> bool:
        """End prompts, whether they run or wait; whether there was any to end."""
        found = await self._prompts.get(caller.owner, ids)
        unfinished = [job.id for job in found if not job.status.is_final]
        await self._cancel(caller, unfinished)
        return bool(unfinished)

    async def jobs(
        self,
        owner: str,
        *,
        states: Sequence[str],
        workflow_id: str | None,
        by_duration: bool,
        ascending: bool,
        limit: int | None,
        offset: int,
    ) -> dict[str, Any]:
        """``/api/jobs``: of the newest thousand that wait, run or have ended."""
        found = [
            *await self._prompts.open(owner),
            *await self._prompts.ended(owner, limit=_MAX_ENTRIES),
        ]
        chosen = [job for job in found if not states or answers.state_of(job) in states]
        if workflow_id is not None:
            wanted, ids = _digest(workflow_id), await asyncio.gather(*map(self._workflow, chosen))
            chosen = [job for job, found in zip(chosen, ids, strict=True) if found == wanted]
        chosen.sort(key=_duration if by_duration else _created, reverse=not ascending)
        part = chosen[offset : offset + (limit or _DEFAULT_ENTRIES)]
        told = await _fitting(part, lambda job: self._told(job, answers.job_summary))
        return {
            "jobs": told,
            "pagination": {
                "offset": offset,
                "limit": limit,
                "total": len(chosen),
                "has_more": offset + len(told) < len(chosen),
            },
        }

    async def job(self, owner: str, job_id: str) -> dict[str, Any]:
        """``/api/jobs/{id}``.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
        """
        for job in await self._prompts.get(owner, [job_id]):
            return (await self._told(job, answers.job_detail))[0]
        raise JobNotFound(f"there is no job {job_id!r}")

    async def _verdict(
        self,
        caller: Identity,
        pool: str,
        graph: Mapping[str, Any],
        files: Mapping[str, Artifact],
        targets: Sequence[str] | None,
    ) -> Mapping[str, Any]:
        """What the pool's ComfyUI says of the graph, with its files under the renderer's names;
        nothing when nobody is there to say."""
        referred = await self._files.referred(caller.owner, graph)
        by_id = {artifact_id: input_name(artifact) for artifact_id, artifact in referred.items()}
        by_text = {text: input_name(artifact) for text, artifact in files.items()}
        renamed = with_inputs(graph, by_id, by_text)
        own = {*by_id.values(), *by_text.values()}
        if not await self._guard.check(caller, pool, renamed, own):
            return {}
        return await self._validator.validate(pool, renamed, targets)

    async def _cancel(self, caller: Identity, ids: Sequence[str]) -> None:
        limit = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def cancel(job_id: str) -> tuple[Job, str | None] | None:
            async with limit:
                seen = await self._feed.newest(job_id)
                try:
                    return await self._service.cancel(caller, job_id), seen
                except JobFinished:
                    # It has ended by itself meanwhile.
                    return None

        asked = await asyncio.gather(*map(cancel, ids))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                for job, seen in filter(None, asked):
                    await self._feed.ended(job, seen)

    async def _entries(self, found: Sequence[Job]) -> dict[str, Any]:
        told = await _fitting(found, lambda job: self._told(job, answers.history_entry))
        return {job.id: entry for job, entry in zip(found, told, strict=False)}

    async def _told(self, job: Job, shape: Any) -> tuple[dict[str, Any], int]:
        """A prompt as clients see it, and how many bytes that takes."""
        spec, size = await self._sized_spec(job)
        async with self._reading:
            record, more = await self._files.sized_record(job)
        return shape(job, spec, record), size + more

    async def _workflow(self, job: Job) -> bytes:
        """Digest of the job's workflow id; empty when it has none."""
        known = self._workflows.get(job.spec)
        if known is None:
            found = answers.job_summary(job, await self._spec(job), None).get("workflow_id")
            known = self._workflows[job.spec] = b"" if found is None else _digest(str(found))
        return known

    async def _spec(self, job: Job) -> JobSpec | None:
        """None when its blob has been swept away."""
        return (await self._sized_spec(job))[0]

    async def _sized_spec(self, job: Job) -> tuple[JobSpec | None, int]:
        known = self._specs.get(job.spec)
        if known is None:
            try:
                async with self._reading:
                    kept = await self._blobs.get(job.spec)
                    known = decode(JobSpec, kept), len(kept)
            except FileNotFoundError:
                return None, 0
            if len(kept) <= _REMEMBERED_BYTES:
                self._specs[job.spec] = known
        return known


async def _fitting(jobs: Sequence[Job], read: Callable[[Job], Awaitable[tuple[T, int]]]) -> list[T]:
    """What ``read`` gives of the first jobs, as many as fit into one answer."""
    told: list[T] = []
    left = _MOST_BYTES
    for first in range(0, len(jobs), _SIDE_BY_SIDE):
        for one, size in await asyncio.gather(*map(read, jobs[first : first + _SIDE_BY_SIDE])):
            left -= size
            if left < 0 and told:
                return told
            told.append(one)
    return told


def _front_field(body: PromptBody) -> str:
    """What asked for the front of the queue."""
    return "front" if body.front else "number"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _created(job: Job) -> float:
    return job.created_at.timestamp()


def _duration(job: Job) -> float:
    if job.begun_at is None or job.finished_at is None:
        return 0.0
    return (job.finished_at - job.begun_at).total_seconds()
