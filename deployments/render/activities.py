"""`RenderActivities`: the render step of a job, as a Temporal activity."""

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
from moyin.domain.prompt import ComfyPrompt, PromptRecord, channel_name
from moyin.domain.renderer import RenderProgress, RenderRequest, RenderSucceeded
from moyin.domain.serialization import to_plain
from moyin.errors import MoyinError
from moyin.jobs.workflows.failures import to_application_error
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.steps import Pulse, heartbeating, load_step, save_output
from moyin.jobs.workflows.types import StepDone, StepInput
from moyin.render.comfyui.sizes import ModelSizes
from moyin.render.protocol.graph import artifact_ids, input_name, with_inputs
from moyin.render.protocol.models import models_of
from moyin.render.scheduling.policy import PendingRender
from moyin.store.artifacts import ArtifactStore, step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.jobs import JobStore
from moyin.store.prompts import PromptStore
from moyin.store.renders import CacheRules, KeptRender, RenderCache

__all__ = ["RenderActivities", "prompt_id_of"]

# A large window waits; each beat costs Temporal a write.
_WAITING_BEAT_SECONDS = 2.0
# As the back end of a step that nobody had to render.
_CACHE = "cache"
_log = logging.getLogger(__name__)


class RenderActivities:
    """The activity of a queue ``render-<pool>``, with the clients it needs."""

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
        self._kept = RenderResultCache(cache, blobs, rules)
        self._pool = pool
        self._blobs = blobs
        self._artifacts = artifacts
        self._jobs = jobs
        self._prompts = prompts
        self._events = events
        self._record = record

    @activity.defn
    async def render_step(self, step: StepInput) -> StepDone | StepResult:
        """Render the graph; a repeat attaches to the prompt that a lost attempt left running."""
        async with heartbeating(_WAITING_BEAT_SECONDS) as pulse:
            try:
                return await self._record.around(step, lambda: self._render(step, pulse))
            except ApplicationError:
                raise
            except Exception as error:
                raise _failure(error, pulse) from error

    async def _render(self, step: StepInput, pulse: Pulse) -> StepResult:
        spec, asked, graph = await load_step(self._blobs, step)
        request = await self._request(step, graph, spec.comfyui or ComfyPrompt())
        await self._guard.check(step.owner, asked.pool, request.graph, request.files)
        digest = self._kept.digest(spec, asked, request)
        found = await self._kept.find(step.owner, digest, request) if digest else None
        if found is not None:
            done, record = found
            result = await self._result(step, _CACHE, _wanted(done, asked.outputs), record)
            return replace(result, cached=True)
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
            pulse.quicken()
            reporter.report(progress)

        try:
            async with reporter:
                backend, done = await self._pool.render(
                    request,
                    _waiting(step, spec, request),
                    on_progress,
                    on_record=records.append,
                    repeated=activity.info().attempt > 1,
                )
        except asyncio.CancelledError:
            record = await self._cancelled(step, request.prompt_id)
            if record is not None:
                await self._keep_record(step, spec, record)
            raise
        except MoyinError:
            if records:
                await self._keep_record(step, spec, records[-1])
            raise
        record = records[-1] if records else None
        if digest:
            kept = KeptRender(prompt_id=request.prompt_id, done=done, record=record)
            await self._kept.keep(step.owner, digest, kept)
        return await self._result(step, backend, _wanted(done, asked.outputs), record)

    async def _request(
        self, step: StepInput, graph: Mapping[str, Any], asked: ComfyPrompt
    ) -> RenderRequest:
        names, files = {}, {}
        for artifact_id in sorted({*artifact_ids(graph), *asked.files.values()}):
            artifact = await self._artifacts.for_job(step.owner, artifact_id)
            name = input_name(artifact)
            names[artifact_id] = name
            files[name] = artifact.sha256
        texts = {text: names[artifact_id] for text, artifact_id in asked.files.items()}
        return RenderRequest(
            prompt_id=prompt_id_of(step.job_id, step.index),
            graph=with_inputs(graph, names, texts),
            files=files,
            models=await self._sizes.of(models_of(graph)),
            extra_data=self._guard.extra_data(step.owner, asked.extra_data),
            targets=asked.targets,
            channel=None if asked.client_id is None else channel_name(step.owner, asked.client_id),
        )

    async def _keep_record(self, step: StepInput, spec: JobSpec, record: PromptRecord) -> None:
        """Of a prompt without a result, for the history; its files are known by it."""
        if len(spec.steps) == 1:
            kept = await self._blobs.put(to_json({"record": to_plain(record)}))
            await self._prompts.record(step.job_id, kept, step.attempt)

    async def _cancelled(self, step: StepInput, prompt_id: str) -> PromptRecord | None:
        if await self._is_unwanted(step):
            with contextlib.suppress(MoyinError):
                return await self._pool.cancel(prompt_id)
        return None

    async def _is_unwanted(self, step: StepInput) -> bool:
        """Whether nobody will ask for the prompt again, as another attempt of the activity would."""
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
                id=step_artifact_id(step.job_id, step.index, ordinal),
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


def _failure(error: Exception, pulse: Pulse) -> ApplicationError:
    """What to tell Temporal; what it has cost is left for the next attempt."""
    trials = FailureCounts.read(pulse.details).after(error)
    pulse.details = (trials.write(),)
    pulse.beat()
    cause = trials.poisoned(error) or error
    if not isinstance(cause, MoyinError):
        _log.error("a render failed for an internal reason", exc_info=error)
        cause = MoyinError("the render failed for an internal reason")
        return to_application_error(cause, retryable=not trials.exhausted(error))
    return to_application_error(cause, retryable=not trials.exhausted(cause))


def prompt_id_of(job_id: str, index: int) -> str:
    """ComfyUI's id of a step: the job's own for the first, by which stock clients know it."""
    return job_id if index == 0 else str(uuid.uuid5(uuid.UUID(job_id), str(index)))


def _waiting(step: StepInput, spec: JobSpec, request: RenderRequest) -> PendingRender:
    return PendingRender(
        id=request.prompt_id,
        priority=spec.priority,
        # Kept through retries.
        arrived=activity.info().scheduled_time.timestamp(),
        owner=step.owner,
        deadline=None if spec.deadline is None else spec.deadline.timestamp(),
        models=request.models,
    )


def _wanted(done: RenderSucceeded, outputs: tuple[str, ...]) -> RenderSucceeded:
    """Without the files of nodes that are no result, such as previews; values are kept."""
    if not outputs:
        return done
    return replace(done, files=tuple(file for file in done.files if file.node in outputs))


def _outputs(
    done: RenderSucceeded, artifacts: tuple[Artifact, ...]
) -> dict[str, dict[str, list[Any]]]:
    """By node and slot as ComfyUI's history has it, with files as ``artifact:<id>``."""
    outputs: dict[str, dict[str, list[Any]]] = {}
    for file, artifact in zip(done.files, artifacts, strict=True):
        slot = outputs.setdefault(file.node, {}).setdefault(file.slot, [])
        slot.append(f"artifact:{artifact.id}")
    for node, values in done.values.items():
        for name, items in values.items():
            outputs.setdefault(node, {}).setdefault(name, []).extend(items)
    return outputs
