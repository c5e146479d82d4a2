"""Implements ComfyUI's prompts, queue and history on top of jobs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from moyin.comfy_api.files import ComfyFiles, parse_record
from moyin.comfy_api.protocol import response
from moyin.comfy_api.protocol.json_parts import encode_json, join_items, join_members
from moyin.domain import references
from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobSpec, Step, StepKind
from moyin.domain.prompt import ComfyPrompt, PromptRecord
from moyin.domain.queue_place import QueuePlace
from moyin.domain.serialization import decode
from moyin.errors import InvalidGraph, JobFinished, JobNotFound
from moyin.http.validation import parse_object, validate
from moyin.jobs.feed import JobFeed
from moyin.jobs.ports import GraphGuard, GraphValidator
from moyin.jobs.service import JobService
from moyin.render.protocol.graph import find_file_names, make_input_name, replace_inputs
from moyin.render.protocol.node_errors import summarize_node_errors
from moyin.render.protocol.wire import PromptBody
from moyin.store.blobs import BlobStore
from moyin.store.prompts import PromptStore, build_submitter_condition
from moyin.system.bounded import BoundedDict
from moyin.system.heavy_work import run_aside

_NORMAL_PRIORITY, _FRONT_PRIORITY = 3, 2
# Credentials for nodes that call services of Comfy's partners; they are removed and never stored.
_SECRETS = frozenset({"auth_token_comfy_org", "api_key_comfy_org"})
# ComfyUI's own response to a body without a prompt.
_NO_PROMPT = {
    "error": {
        "type": "no_prompt",
        "message": "No prompt provided",
        "details": "No prompt provided",
        "extra_info": {},
    },
    "node_errors": {},
}
T = TypeVar("T")
_MAX_CACHED_SPECS = 512
# Size in bytes above which a spec is not cached; a graph may be as large as a request body.
_MAX_CACHED_BYTES = 256 * 1024
# Size limit of the graphs and records in one response; clients request the rest with an offset.
_MAX_RESPONSE_BYTES = 64 * 1024 * 1024
# Encoding a graph for a response takes a fraction of the time that a submission takes.
_BYTES_READ_PER_BYTE_SUBMITTED = 4
_MAX_CACHED_WORKFLOWS = 10_000
# The number of queue rows with graphs. Later rows omit them, because they would be megabytes.
_MAX_ROWS_WITH_GRAPH = 500
_DEFAULT_ENTRIES = 200
_MAX_ENTRIES = 1_000
_MAX_PARALLEL = 8
# Seconds to wait for a job's end after a cancellation, because clients read the queue at once.
_CANCEL_SECONDS = 3.0


# Builds the body of a response from a job, its spec and its history entry.
_BodyBuilder = Callable[[Job, JobSpec | None, PromptRecord | None], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _StoredPrompt:
    """A job with the blobs of its prompt; ``spec`` is the decoded ``content`` if it is cached."""

    job: Job
    spec_size: int
    spec: JobSpec | None = None
    content: bytes = b""
    record: bytes = b""

    @property
    def size(self) -> int:
        return self.spec_size + len(self.record)

    def decode_spec(self) -> JobSpec | None:
        if self.spec is not None or not self.content:
            return self.spec
        return decode(JobSpec, self.content)


@dataclass(kw_only=True, eq=False)
class ComfyPrompts:
    """Submits, lists and cancels the prompts of one tenant at a time.

    Args:
        find_executed: returns those of the given prompt ids whose nodes have all been executed.
        read_places: returns the places of open jobs in the queues of their pools, by job id.
        wait_until_notified: returns when every connected client has received the end of a job.
    """

    service: JobService
    feed: JobFeed
    validator: GraphValidator
    guard: GraphGuard
    prompts: PromptStore
    files: ComfyFiles
    blobs: BlobStore
    find_executed: Callable[[Sequence[str]], Awaitable[Collection[str]]]
    read_places: Callable[[], Awaitable[Mapping[str, QueuePlace]]]
    wait_until_notified: Callable[[Job], Awaitable[None]]

    def __post_init__(self) -> None:
        # Pairs of a spec and its size in bytes, by the spec's digest.
        self._specs: BoundedDict[str, tuple[JobSpec, int]] = BoundedDict(_MAX_CACHED_SPECS)
        # A digest of the workflow id, which may have any length, by the spec's digest.
        self._workflows: BoundedDict[str, bytes] = BoundedDict(_MAX_CACHED_WORKFLOWS)
        self._blob_reads = asyncio.Semaphore(_MAX_PARALLEL)

    async def submit(
        self, caller: Identity, content: bytes, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Accept a prompt, and return the body of the response to ``POST /prompt``.

        Args:
            content: the JSON body of the request.

        Raises:
            InvalidJson, InvalidRequest, BodyTooLarge: the body is invalid.
            GraphTooLarge: the graph is larger than the caller's may be.
            Overloaded: too many large requests are waiting.
            InvalidGraph: ComfyUI rejects the graph; ``details`` hold its response.
            NodeNotAllowed: the graph has a node that the pool or the caller's limits do not allow.
            InputNotFound: the graph names a file that the caller does not have.
            MoyinError: the job is not accepted.
        """
        async with self.service.work.admit(caller.owner, len(content)):
            body = await run_aside(_parse_body, content)
            return await self._submit(caller, body, idempotency_key)

    async def _submit(
        self, caller: Identity, body: PromptBody, idempotency_key: str | None
    ) -> dict[str, Any]:
        graph, targets = body.prompt, body.partial_execution_targets
        await self.guard.check_size(caller, [("prompt", graph)])
        file_names = await run_aside(find_file_names, graph)
        files = await self.files.find_in_texts(caller.owner, file_names)
        pool = await self.guard.choose_pool(caller, graph)
        validation = await self._validate_graph(caller, pool, graph, files, targets)
        prompt = ComfyPrompt(
            client_id=body.client_id,
            number=body.number,
            front=bool(body.front) or (body.number or 0) < 0,
            extra_data={k: v for k, v in (body.extra_data or {}).items() if k not in _SECRETS},
            targets=None if targets is None else tuple(targets),
            outputs=tuple(validation.get("outputs", ())),
            files={text: artifact.id for text, artifact in files.items()},
        )
        payload = await run_aside(references.escape_references, graph)
        step = Step(kind=StepKind.RENDER, payload=payload, pool=pool)
        spec = JobSpec(
            kind=StepKind.RENDER.value,
            steps=(step,),
            priority=_FRONT_PRIORITY if prompt.front else _NORMAL_PRIORITY,
            comfyui=prompt,
        )
        job, _ = await self.service.submit(
            caller, spec, idempotency_key=idempotency_key, prompt_id=body.prompt_id, is_validated=True,
            priority_field=("front" if body.front else "number") if prompt.front else None,
            node_errors=summarize_node_errors(validation.get("node_errors")),
        )  # fmt: skip
        return {
            "prompt_id": job.prompt_id,
            "number": response.get_queue_number(job, prompt),
            "node_errors": validation.get("node_errors", {}),
        }

    async def count_open(self, owner: str) -> int:
        """Return the number of waiting and running prompts."""
        return await self.prompts.count_open(owner)

    async def list_queue(self, owner: str) -> bytes:
        """Return the JSON of the response to ``/queue``."""
        jobs = await self.prompts.list_open(owner)
        places = await self.read_places() if jobs else {}

        def build_row(job: Job, spec: JobSpec | None, _: PromptRecord | None) -> list[Any]:
            return response.build_queue_row(job, spec, places.get(job.id))

        stored_prompts = await _read_within_limit(
            jobs[:_MAX_ROWS_WITH_GRAPH], self._read_spec_content
        )
        rows = await self._encode(stored_prompts, build_row)
        rows += [_encode_for(job, build_row(job, None, None)) for job in jobs[len(rows) :]]
        running_rows: list[bytes] = []
        pending_rows: list[bytes] = []
        for job, row in zip(jobs, rows, strict=True):
            (pending_rows if job.started_at is None else running_rows).append(row)
        return join_members(
            {"queue_running": join_items(running_rows), "queue_pending": join_items(pending_rows)}
        )

    async def list_history(
        self, owner: str, *, max_items: int | None = None, offset: int | None = None
    ) -> bytes:
        """Return the JSON of the response to ``/history``, with at most ``max_items`` ended prompts.

        These are the newest prompts, or the prompts from the index ``offset``, counted from the
        oldest.
        """
        limit = _DEFAULT_ENTRIES if max_items is None else min(max_items, _MAX_ENTRIES)
        wants_newest = offset is None or offset < 0
        jobs = await self.prompts.list_ended(
            owner, limit=limit, offset=None if wants_newest else offset
        )
        entries = await self._encode_history_entries(jobs)
        return join_members(dict(reversed(entries.items())) if wants_newest else entries)

    async def get_history(self, owner: str, prompt_id: str) -> bytes:
        """Return the JSON of the response to ``/history/{id}``, which is empty until the prompt ends."""
        jobs = [j for j in await self.prompts.get(owner, [prompt_id]) if j.status.is_final]
        for job in jobs:
            await self.wait_until_notified(job)
        return join_members(await self._encode_history_entries(jobs))

    async def hide_from_history(
        self, caller: Identity, prompt_ids: Sequence[str] | None, *, client_id: str | None = None
    ) -> None:
        """Remove ended prompts from the history. Their jobs stay.

        Args:
            prompt_ids: the prompts' ids; None for all prompts of the caller, or of ``client_id``.
        """
        if prompt_ids is None:
            await self.prompts.hide(
                caller.owner, None, build_submitter_condition(caller, client_id)
            )
        else:
            await self.prompts.hide(caller.owner, prompt_ids)

    async def cancel_waiting(
        self, caller: Identity, prompt_ids: Sequence[str] | None, *, client_id: str | None = None
    ) -> None:
        """Cancel prompts that have not started.

        Args:
            prompt_ids: the prompts' ids; None for all prompts of the caller, or of ``client_id``.
        """
        if prompt_ids is None:
            jobs = await self.prompts.list_open(
                caller.owner, build_submitter_condition(caller, client_id)
            )
        else:
            selected_ids = set(prompt_ids)
            jobs = [
                job
                for job in await self.prompts.list_open(caller.owner)
                if job.id in selected_ids or job.prompt_id in selected_ids
            ]
        await self._cancel_jobs(caller, [job.id for job in jobs if job.started_at is None])

    async def interrupt(
        self, caller: Identity, prompt_id: str | None, *, client_id: str | None = None
    ) -> None:
        """Cancel one prompt of the tenant, or all running prompts of the caller.

        Like in ComfyUI, a prompt is not cancelled if all of its nodes have been executed.

        Args:
            prompt_id: the id; None for all running prompts of the caller, or of ``client_id``.
        """
        if prompt_id is not None:
            jobs = await self.prompts.get(caller.owner, [prompt_id])
            prompt_ids = [job.id for job in jobs if not job.status.is_final]
        else:
            jobs = await self.prompts.list_open(
                caller.owner, build_submitter_condition(caller, client_id)
            )
            prompt_ids = [job.id for job in jobs if job.started_at is not None]
        executed_ids = await self.find_executed(prompt_ids) if prompt_ids else ()
        await self._cancel_jobs(
            caller, [job_id for job_id in prompt_ids if job_id not in executed_ids]
        )

    async def cancel(self, caller: Identity, prompt_ids: Sequence[str]) -> bool:
        """Cancel the tenant's open prompts with these ids; return True if there is at least one."""
        jobs = await self.prompts.get(caller.owner, prompt_ids)
        unfinished_ids = [job.id for job in jobs if not job.status.is_final]
        await self._cancel_jobs(caller, unfinished_ids)
        return bool(unfinished_ids)

    async def list_jobs(
        self,
        owner: str,
        *,
        states: Sequence[str],
        workflow_id: str | None,
        sorts_by_duration: bool,
        is_ascending: bool,
        limit: int | None,
        offset: int,
    ) -> bytes:
        """Return the JSON of the response to ``/api/jobs``: open prompts and the last 1000 ended ones.

        Only jobs in one of ``states`` (such as ``pending``) are listed, or all if it is empty. If
        ``workflow_id`` is not None, only jobs of this workflow are listed.
        """
        jobs = [
            *await self.prompts.list_open(owner),
            *await self.prompts.list_ended(owner, limit=_MAX_ENTRIES),
        ]
        selected_jobs = [job for job in jobs if not states or response.get_job_state(job) in states]
        if workflow_id is not None:
            workflow_digest = _digest(workflow_id)
            async with self.service.work.admit(owner, math.inf):
                digests = await asyncio.gather(*map(self._get_workflow_digest, selected_jobs))
            selected_jobs = [
                j
                for j, digest in zip(selected_jobs, digests, strict=True)
                if digest == workflow_digest
            ]
        selected_jobs.sort(
            key=_get_execution_seconds if sorts_by_duration else _get_creation_time,
            reverse=not is_ascending,
        )
        page = selected_jobs[offset : offset + (limit or _DEFAULT_ENTRIES)]
        summaries = await self._read_and_encode(page, response.build_job_summary)
        pagination = {
            "offset": offset,
            "limit": limit,
            "total": len(selected_jobs),
            "has_more": offset + len(summaries) < len(selected_jobs),
        }
        return join_members({"jobs": join_items(summaries), "pagination": encode_json(pagination)})

    async def get_job(self, owner: str, job_id: str) -> bytes:
        """Return the JSON of the response to ``/api/jobs/{id}``.

        Raises:
            JobNotFound: the owner has no prompt with this id.
        """
        for job in await self.prompts.get(owner, [job_id]):
            return (await self._read_and_encode([job], response.build_job_detail))[0]
        raise JobNotFound(f"you have no prompt with the id {job_id!r}")

    async def _validate_graph(
        self,
        caller: Identity,
        pool: str,
        graph: Mapping[str, Any],
        files: Mapping[str, Artifact],
        targets: Sequence[str] | None,
    ) -> Mapping[str, Any]:
        """Validate a graph; return ComfyUI's response, which is empty if the pool is down.

        Args:
            files: the caller's files that the graph names.
            targets: ids of the output nodes to execute, or None for all.
        """
        artifacts = await self.files.find_referenced_artifacts(caller.owner, graph)
        names_by_id = {
            artifact_id: make_input_name(artifact) for artifact_id, artifact in artifacts.items()
        }
        names_by_text = {text: make_input_name(artifact) for text, artifact in files.items()}
        renamed_graph = await run_aside(replace_inputs, graph, names_by_id, names_by_text)
        own_names = {*names_by_id.values(), *names_by_text.values()}
        if not await self.guard.check_graph(caller, pool, renamed_graph, own_names):
            return {}
        return await self.validator.validate(pool, renamed_graph, targets, owner=caller.owner)

    async def _cancel_jobs(self, caller: Identity, prompt_ids: Sequence[str]) -> None:
        """Cancel jobs in parallel, and wait a few seconds until they have ended."""
        semaphore = asyncio.Semaphore(_MAX_PARALLEL)

        async def cancel(job_id: str) -> tuple[Job, str | None] | None:
            async with semaphore:
                newest_event_id = await self.feed.get_newest_id(job_id)
                try:
                    return await self.service.cancel(caller, job_id), newest_event_id
                except JobFinished:
                    return None

        cancelled_jobs = await asyncio.gather(*map(cancel, prompt_ids))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                for job, newest_event_id in filter(None, cancelled_jobs):
                    await self.feed.wait_for_end(job, newest_event_id)

    async def _encode_history_entries(self, jobs: Sequence[Job]) -> dict[str, bytes]:
        entries = await self._read_and_encode(jobs, response.build_history_entry)
        return {job.prompt_id: entry for job, entry in zip(jobs, entries, strict=False)}

    async def _read_and_encode(self, jobs: Sequence[Job], build_body: _BodyBuilder) -> list[bytes]:
        """Return the JSON of the first jobs' bodies, until their data reach a limit in bytes."""
        return await self._encode(await _read_within_limit(jobs, self._read_contents), build_body)

    async def _encode(
        self, stored_prompts: Sequence[_StoredPrompt], build_body: _BodyBuilder
    ) -> list[bytes]:
        """Return the JSON of the body that ``build_body`` makes of each prompt.

        Each is encoded by itself, so that other large requests need not wait for all of them.
        """
        if not stored_prompts:
            return []

        def encode(stored: _StoredPrompt) -> tuple[bytes, JobSpec | None]:
            spec = stored.decode_spec()
            body = build_body(stored.job, spec, parse_record(stored.record))
            return _encode_for(stored.job, body), spec

        size = sum(stored.size for stored in stored_prompts)
        owner = stored_prompts[0].job.owner
        bodies = []
        async with self.service.work.admit(owner, size / _BYTES_READ_PER_BYTE_SUBMITTED):
            for stored in stored_prompts:
                body, spec = await run_aside(encode, stored)
                bodies.append(body)
                self._cache_spec(stored, spec)
        return bodies

    async def _read_contents(self, job: Job) -> tuple[_StoredPrompt, int]:
        stored, _ = await self._read_spec_content(job)
        async with self._blob_reads:
            stored = replace(stored, record=await self.files.read_record_content(job))
        return stored, stored.size

    async def _read_spec_content(self, job: Job) -> tuple[_StoredPrompt, int]:
        """Return a job with its encoded spec or the cached one, and the size of the spec."""
        cached_spec = self._specs.get(job.spec)
        if cached_spec is not None:
            stored = _StoredPrompt(job=job, spec=cached_spec[0], spec_size=cached_spec[1])
            return stored, stored.size
        try:
            async with self._blob_reads:
                content = await self.blobs.get(job.spec)
        except FileNotFoundError:
            content = b""
        stored = _StoredPrompt(job=job, content=content, spec_size=len(content))
        return stored, stored.size

    def _cache_spec(self, stored: _StoredPrompt, spec: JobSpec | None) -> None:
        if spec is not None and stored.spec_size <= _MAX_CACHED_BYTES:
            self._specs[stored.job.spec] = spec, stored.spec_size

    async def _get_workflow_digest(self, job: Job) -> bytes:
        """Return a digest of the ``id`` in the client's workflow; empty if there is no ``id``."""
        digest = self._workflows.get(job.spec)
        if digest is None:
            stored, _ = await self._read_spec_content(job)
            spec = await run_aside(stored.decode_spec)
            self._cache_spec(stored, spec)
            workflow_id = response.build_job_summary(job, spec, None).get("workflow_id")
            digest = b"" if workflow_id is None else _digest(str(workflow_id))
            self._workflows[job.spec] = digest
        return digest


def _encode_for(job: Job, body: Any) -> bytes:
    """Return the JSON of a part of a response, in which the job has the prompt's id."""
    return response.show_prompt_id(encode_json(body), job)


def _parse_body(content: bytes) -> PromptBody:
    body = parse_object(content)
    if "prompt" not in body:
        raise InvalidGraph("No prompt provided", details=_NO_PROMPT)
    return validate(PromptBody, body)


async def _read_within_limit(
    jobs: Sequence[Job], read: Callable[[Job], Awaitable[tuple[T, int]]]
) -> list[T]:
    """Return the results of ``read`` for the first jobs, until their size reaches a limit in bytes.

    The function ``read`` returns a result and the size in bytes of the data that it has read.
    """
    results: list[T] = []
    bytes_left = _MAX_RESPONSE_BYTES
    for start in range(0, len(jobs), _MAX_PARALLEL):
        for result, size in await asyncio.gather(*map(read, jobs[start : start + _MAX_PARALLEL])):
            bytes_left -= size
            if bytes_left < 0 and results:
                return results
            results.append(result)
    return results


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _get_creation_time(job: Job) -> float:
    return job.created_at.timestamp()


def _get_execution_seconds(job: Job) -> float:
    if job.started_at is None or job.finished_at is None:
        return 0.0
    return (job.finished_at - job.started_at).total_seconds()
