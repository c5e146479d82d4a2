"""`RenderActivities`: runs the render step of a job as a Temporal activity."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic_core import to_json
from temporalio import activity
from temporalio.exceptions import ApplicationError

from deployments.render.failure_counts import FailureCounts
from deployments.render.guard import RenderGuard
from deployments.render.pool import Pool
from deployments.render.reporter import ProgressReporter
from deployments.render.result_cache import RenderResultCache
from moyin.domain.artifact import Artifact
from moyin.domain.job import JobSpec, StepResult
from moyin.domain.prompt import ComfyPrompt, PromptRecord, build_channel_name
from moyin.domain.renderer import RenderProgress, RenderRequest, RenderSucceeded
from moyin.domain.serialization import to_plain
from moyin.errors import MoyinError
from moyin.jobs.workflows.failures import to_application_error
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.step_io import Heartbeat, load_step, save_output, send_heartbeats
from moyin.jobs.workflows.types import StepInput, StepOutcome
from moyin.render.comfyui.model_sizes import ModelSizes
from moyin.render.protocol.graph import (
    find_artifact_ids,
    find_model_files,
    make_input_name,
    replace_inputs,
)
from moyin.render.scheduling.rules import PendingRender
from moyin.store.artifacts import ArtifactStore, derive_step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.jobs import JobStore
from moyin.store.prompts import PromptStore
from moyin.store.render_cache import CachedRender, CacheRules, RenderCache

__all__ = ["RenderActivities", "prompt_id_of"]

# Many renders wait in a window, and each heartbeat costs Temporal a write.
_WAITING_HEARTBEAT_SECONDS = 2.0
# Name of the back end of a step whose result came from the cache.
_CACHE = "cache"
_log = logging.getLogger(__name__)


class RenderActivities:
    """Holds the activity of a queue ``render-<pool>`` and the clients that it needs."""

    def __init__(
        self,
        *,
        pool: Pool,
        blobs: BlobStore,
        artifacts: ArtifactStore,
        jobs: JobStore,
        prompts: PromptStore,
        events: EventStore,
        record: JobStatusWriter,
        sizes: ModelSizes,
        cache: RenderCache,
        rules: CacheRules,
        guard: RenderGuard,
    ) -> None:
        self._guard = guard
        self._sizes = sizes
        self._cache = RenderResultCache(cache, blobs, rules)
        self._pool = pool
        self._blobs = blobs
        self._artifacts = artifacts
        self._jobs = jobs
        self._prompts = prompts
        self._events = events
        self._record = record

    @activity.defn
    async def render_step(self, step: StepInput) -> StepOutcome | StepResult:
        """Render the graph; a retry attaches to the prompt that a lost attempt left running."""
        async with send_heartbeats(_WAITING_HEARTBEAT_SECONDS) as heartbeat:
            try:
                return await self._record.run_step(step, lambda: self._render(step, heartbeat))
            except ApplicationError:
                raise
            except Exception as error:
                raise _failure(error, heartbeat) from error

    async def _render(self, step: StepInput, heartbeat: Heartbeat) -> StepResult:
        spec, step_spec, graph = await load_step(self._blobs, step)
        request = await self._request(step, graph, spec.comfyui or ComfyPrompt())
        await self._guard.check(step.owner, step_spec.pool, request.graph, request.files)
        digest = self._cache.digest(spec, step_spec, request)
        cached = await self._cache.find(step.owner, digest, request) if digest else None
        if cached is not None:
            done, record = cached
            done = _with_outputs(done, step_spec.outputs)
            return replace(await self._result(step, _CACHE, done, record), cached=True)
        reporter = ProgressReporter(
            self._jobs,
            self._events,
            job_id=step.job_id,
            step=step.index,
            batch=spec.base is not None,
            at_once=request.channel is not None,
        )
        records: list[PromptRecord] = []

        def on_progress(progress: RenderProgress) -> None:
            heartbeat.quicken()
            reporter.report(progress)

        try:
            async with reporter:
                backend, done = await self._pool.render(
                    request,
                    _pending(step, spec, request),
                    on_progress,
                    on_record=records.append,
                    is_retry=activity.info().attempt > 1,
                )
        except asyncio.CancelledError:
            record = await self._cancel(step, request.prompt_id)
            if record is not None:
                await self._store_record(step, spec, record)
            raise
        except MoyinError:
            if records:
                await self._store_record(step, spec, records[-1])
            raise
        record = records[-1] if records else None
        if digest:
            kept = CachedRender(prompt_id=request.prompt_id, done=done, record=record)
            await self._cache.store(step.owner, digest, kept)
        return await self._result(step, backend, _with_outputs(done, step_spec.outputs), record)

    async def _request(
        self, step: StepInput, graph: Mapping[str, Any], prompt: ComfyPrompt
    ) -> RenderRequest:
        names, files = {}, {}
        for artifact_id in sorted({*find_artifact_ids(graph), *prompt.files.values()}):
            artifact = await self._artifacts.get_even_if_deleted(step.owner, artifact_id)
            name = make_input_name(artifact)
            names[artifact_id] = name
            files[name] = artifact.sha256
        texts = {text: names[artifact_id] for text, artifact_id in prompt.files.items()}
        return RenderRequest(
            prompt_id=prompt_id_of(step.job_id, step.index),
            graph=replace_inputs(graph, names, texts),
            files=files,
            models=await self._sizes.measure(find_model_files(graph)),
            extra_data=self._guard.extra_data(step.owner, prompt.extra_data),
            targets=prompt.targets,
            channel=None
            if prompt.client_id is None
            else build_channel_name(step.owner, prompt.client_id),
        )

    async def _store_record(self, step: StepInput, spec: JobSpec, record: PromptRecord) -> None:
        """Store the record of a prompt without a result, so that the history knows its files."""
        if len(spec.steps) == 1:
            blob = await self._blobs.put(to_json({"record": to_plain(record)}))
            await self._prompts.set_record(step.job_id, blob, step.attempt)

    async def _cancel(self, step: StepInput, prompt_id: str) -> PromptRecord | None:
        """Cancel the prompt, unless another attempt of the activity will attach to it."""
        if await self._is_last_attempt(step):
            with contextlib.suppress(MoyinError):
                return await self._pool.cancel(prompt_id)
        return None

    async def _is_last_attempt(self, step: StepInput) -> bool:
        details = activity.cancellation_details()
        if details is None:
            return False
        if not details.not_found:
            return details.cancel_requested
        # Temporal has closed the workflow, or has given the step to another attempt.
        return (await self._jobs.find(step.job_id)).status.is_final

    async def _result(
        self, step: StepInput, backend: str, done: RenderSucceeded, record: PromptRecord | None
    ) -> StepResult:
        artifacts = tuple(
            Artifact(
                id=derive_step_artifact_id(step.job_id, step.index, ordinal),
                name=file.name,
                media_type=file.media_type,
                size=file.size,
                sha256=file.sha256,
            )
            for ordinal, file in enumerate(done.files)
        )
        output = await save_output(
            self._blobs,
            body={"outputs": _outputs(done, artifacts)},
            artifacts=artifacts,
            record=record,
        )
        return StepResult(index=step.index, output=output, artifacts=artifacts, backend=backend)


def _failure(error: Exception, heartbeat: Heartbeat) -> ApplicationError:
    """Return the error for Temporal, and leave the failure counts for the next attempt."""
    counts = FailureCounts.read(heartbeat.details).after(error)
    heartbeat.details = (counts.write(),)
    heartbeat.send()
    cause = counts.poisoned(error) or error
    if not isinstance(cause, MoyinError):
        _log.error("a render failed for an internal reason", exc_info=error)
        cause = MoyinError("the render failed for an internal reason")
        return to_application_error(cause, retryable=not counts.is_exhausted(error))
    return to_application_error(cause, retryable=not counts.is_exhausted(cause))


def prompt_id_of(job_id: str, index: int) -> str:
    """Return the prompt id of a step; that of the first is the job id, which stock clients know."""
    return job_id if index == 0 else str(uuid.uuid5(uuid.UUID(job_id), str(index)))


def _pending(step: StepInput, spec: JobSpec, request: RenderRequest) -> PendingRender:
    return PendingRender(
        id=request.prompt_id,
        priority=spec.priority,
        # The same for all attempts.
        arrived=activity.info().scheduled_time.timestamp(),
        owner=step.owner,
        deadline=None if spec.deadline is None else spec.deadline.timestamp(),
        models=request.models,
    )


def _with_outputs(done: RenderSucceeded, outputs: tuple[str, ...]) -> RenderSucceeded:
    """Drop the files of other nodes, such as previews, if ``outputs`` names some; keep values."""
    if not outputs:
        return done
    return replace(done, files=tuple(file for file in done.files if file.node in outputs))


def _outputs(
    done: RenderSucceeded, artifacts: tuple[Artifact, ...]
) -> dict[str, dict[str, list[Any]]]:
    """Return the outputs by node and slot, as in ComfyUI's history, with files as ``artifact:<id>``."""
    outputs: dict[str, dict[str, list[Any]]] = {}
    for file, artifact in zip(done.files, artifacts, strict=True):
        slot = outputs.setdefault(file.node, {}).setdefault(file.slot, [])
        slot.append(f"artifact:{artifact.id}")
    for node, values in done.values.items():
        for name, items in values.items():
            outputs.setdefault(node, {}).setdefault(name, []).extend(items)
    return outputs
